"""Runs programs, hands over what they print, and can end them all at once: what Ctrl-C comes down to."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from gpuspawner.dockerd.images import Say
from gpuspawner.errors import BuildError

__all__ = ["Children", "Say"]

# What a program has to end in good order. A docker program waits for the engine to give up a step, which can hang; once
# it is gone, the engine breaks the build off by itself.
GRACE_SECONDS = 5.0


class Children:
    """The programs that one run has started. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, argv: Sequence[str], say: Say, *, environ: Mapping[str, str], stdin: IO[bytes] | None = None) -> int:
        """Run a program and hand over each line as it comes; the exit status.

        Raises:
            BuildError: it cannot be started, or everything was stopped meanwhile.
        """
        with self._lock:
            if self._stopped:
                raise BuildError("stopped")
            try:
                process = subprocess.Popen(
                    argv, env=dict(environ), text=True, errors="replace", stdin=stdin or subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise BuildError(f"{argv[0]} cannot be run: {error.strerror}.") from error
            self._running.add(process)
        assert process.stdout is not None  # noqa: S101  (asked for above)
        try:
            for line in process.stdout:
                say(line.rstrip())
            status = process.wait()
        finally:
            _end([process])
            process.stdout.close()
            with self._lock:
                self._running.discard(process)
        if self._stopped:
            raise BuildError("stopped")
        return status

    def stop(self) -> None:
        """End all of them, within `GRACE_SECONDS`, and let none begin any more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        _end(running)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End these programs, and what they have started: `docker buildx` is a program of its own, which holds the pipe."""
    processes = [process for process in processes if process.poll() is None]
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    # Each is the leader of a session, so that its id is that of its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
