"""Waiting for what other threads and processes do: by a condition, never by a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Poll a condition to a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        threading.Event().wait(0.01)
