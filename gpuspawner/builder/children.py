"""Runs programs, hands over what they print, and can end them all at once: what Ctrl-C comes down to."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from gpuspawner.dockerd.images import Say
from gpuspawner.errors import BuildError

__all__ = ["Children", "Say"]


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
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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
            if process.poll() is None:
                process.terminate()
                process.wait()
            process.stdout.close()
            with self._lock:
                self._running.discard(process)
        if self._stopped:
            raise BuildError("stopped")
        return status

    def stop(self) -> None:
        """End all of them, and let none begin any more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
