"""Tells when a container with a lease begins or ends to hold it: the engine's event stream, followed for ever.

The stream is a hint to look, never a fact: what is true is read from the labels afterwards. So nothing is lost when a
stream breaks, as long as somebody looks once more when the next one has begun.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import requests
from docker.errors import DockerException

from gpuspawner import leases
from gpuspawner.dockerd.engine import Engine

LOG = logging.getLogger(__name__)

# A stream that looks alive may be dead, through a firewall for one; a new one costs a millisecond.
STREAM_SECONDS = 300.0
RECONNECT_SECONDS = 2.0

FILTERS = {
    "type": "container",
    "label": [leases.LEASE],
    "event": ["create", "start", "die", "destroy", "pause", "unpause"],
}


async def watch_leases(engine: Engine, changed: Callable[[], None]) -> None:
    """Call `changed` on this loop when a look is worth it, until cancelled. An engine that is down is waited for."""
    was_lost = False
    while True:
        stream = _Stream(engine, changed)
        try:
            await asyncio.wait([stream.ended], timeout=STREAM_SECONDS)
            # It is over, and something may have happened that it did not tell.
            changed()
            lost = stream.ended.done()
            if lost and not was_lost:
                LOG.info("The event stream of the Docker engine was lost (%s); following it anew.", stream.error)
            was_lost = lost
        finally:
            stream.close()
        if was_lost:
            await asyncio.sleep(RECONNECT_SECONDS)


class _Stream:
    """One connection, read by a thread of its own: docker-py waits for the next event without a way to wake it."""

    def __init__(self, engine: Engine, changed: Callable[[], None]) -> None:
        self._engine = engine
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._stream: Any = None
        self._closed = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.error = ""
        threading.Thread(target=self._read, name="docker-events", daemon=True).start()

    def close(self) -> None:
        """Let the thread end; a connection that is still being made is closed when it has been."""
        with self._lock:
            self._closed = True
            stream, self._stream = self._stream, None
        if stream is not None:
            _close(stream)

    def _read(self) -> None:
        try:
            stream = self._engine.client.events(decode=True, filters=FILTERS)
            with self._lock:
                closed = self._closed
                self._stream = None if closed else stream
            if closed:
                _close(stream)
                return
            # What happened before it was open is seen by a look from here on.
            self._call(self._changed)
            for _ in stream:
                self._call(self._changed)
            self.error = "the engine has ended it"
        except (DockerException, requests.RequestException, OSError, ValueError) as error:
            self.error = str(error)
        finally:
            self._call(self._end)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _call(self, what: Callable[[], None]) -> None:
        # A Hub that ends closes its loop first.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)


def _close(stream: Any) -> None:
    with suppress(OSError, AttributeError, DockerException):
        stream.close()
