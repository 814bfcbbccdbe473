"""The containers of one trial: made for a moment, and all removed at its end, whoever ends it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from gpuspawner.dockerd.boxes import Box, Boxes
from gpuspawner.errors import BuildError


class Desk:
    """The boxes of one trial. Once closed, none is left and none can be opened."""

    def __init__(self, boxes: Boxes, stopped: threading.Event) -> None:
        self.boxes = boxes
        self._stopped = stopped
        self._lock = threading.Lock()
        self._closed = False
        self._open: set[str] = set()

    @contextmanager
    def box(self, box: Box, *, start: bool = True) -> Iterator[str]:
        """A container that runs (or is only made), by its name; removed afterwards."""
        name = f"gpuspawner-trial-{uuid.uuid4().hex[:12]}"
        with self._lock:
            self._refuse_if_closed()
            self._open.add(name)
        try:
            self.boxes.make(name, box, start=start)
            # `close` may have come while the engine was making it, and have found nothing to remove.
            self._refuse_if_closed()
            yield name
        finally:
            self.boxes.remove(name)
            self._open.discard(name)

    def close(self) -> None:
        """Remove all that is open; whoever waits for one of them waits no longer."""
        with self._lock:
            self._closed = True
        for name in list(self._open):
            self.boxes.remove(name)

    def _refuse_if_closed(self) -> None:
        if self._closed or self._stopped.is_set():
            raise BuildError("stopped")
