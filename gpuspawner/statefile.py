"""Adapter: a small JSON file in the Hub's state folder, shared by processes. It knows nothing of what is in it.

A write is a new file, flushed to the disk and then renamed: a reader and a crash see the old content or the new one.
Writers take turns by a lock of the kernel, which goes with its process. Calls block for some milliseconds.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class StateFile(Generic[T]):
    """One file with a value of one kind.

    Args:
        path: the file; a lock file of the same name with `.lock` lies beside it.
        decode: from JSON. Raises ValueError, TypeError, KeyError or AttributeError for what it does not know.
        encode: to JSON.
        empty: the value where there is no file, or none that can be read.
        without: what the log says holds, while the file cannot be read.
    """

    def __init__(
        self, path: Path, decode: Callable[[Any], T], encode: Callable[[T], Any], empty: Callable[[], T], without: str
    ) -> None:
        self.path = path
        self._decode, self._encode, self._empty = decode, encode, empty
        self._without = without
        self._complained = ""

    def read(self) -> T:
        """The value, or the empty one. A file that cannot be read is said in the log, once. Never raises."""
        try:
            value = self._decode(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            value = self._empty()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if self._complained != (complaint := repr(error)):
                self._complained = complaint
                LOG.warning("%s cannot be read (%s). %s", self.path, complaint, self._without)
            return self._empty()
        self._complained = ""
        return value

    def change(self, new: Callable[[T], T]) -> T:
        """Replace the value by `new(value)` and return it; nothing is written where both are equal.

        Raises:
            OSError: the folder cannot be written to; the old value holds.
        """
        with self._locked():
            old = self.read()
            value = new(old)
            if value != old:
                write(self.path, json.dumps(self._encode(value), ensure_ascii=False, indent=1))
        return value

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_name(self.path.name + ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Put a new file in the place of this one: flushed, renamed, and the folder flushed, so that it outlasts a crash.

    Raises:
        OSError: it cannot be written; the old file is there, and nothing beside it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
