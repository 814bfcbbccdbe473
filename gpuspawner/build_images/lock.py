"""One run at a time for each engine: whoever comes second is told who is at it."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from gpuspawner.errors import BuildError


@contextmanager
def locked(engine_id: str, folder: Path | None = None) -> Iterator[None]:
    """Hold the lock of an engine. The system lets it go when the process ends, however it ends.

    Raises:
        BuildError: another run holds it: its process, user, command and beginning.
    """
    path = (folder or _folder()) / f"gpuspawner-images-{hashlib.sha256(engine_id.encode()).hexdigest()[:16]}.lock"
    with _open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(_holder(file)) from None
        about = {
            "process": os.getpid(),
            "user": _user(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        file.seek(0)
        file.truncate()
        file.write(json.dumps(about))
        file.flush()
        yield


def _folder() -> Path:
    usual = Path("/run/lock")
    return usual if usual.is_dir() and os.access(usual, os.W_OK) else Path(tempfile.gettempdir())


def _open(path: Path) -> IO[str]:
    """The file, also one of another user: in such a folder the kernel refuses to "create" that one."""
    try:
        return path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.fchmod(descriptor, 0o666)
        return os.fdopen(descriptor, "r+", encoding="utf-8")
    except OSError as error:
        raise BuildError(f"The lock {path} cannot be opened: {error.strerror}. Remove it, or use sudo.") from error


def _holder(file: IO[str]) -> str:
    try:
        about = json.loads(file.read())
        who = (
            f"process {about['process']} of {about['user']} ({about['command']}) has been at it since {about['since']}"
        )
    except (ValueError, KeyError, TypeError):
        who = "another run is at it"
    return f"The images of this engine are being changed already: {who}. Wait for its end, then try again."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
