"""Adapter: the file `cards.json` of the Hub's data folder, which keeps drained and struck cards across restarts.

Two programs write it: the command line and the Hub. A change is made under a lock of the folder and put in place by
one rename, so that a reader, or a machine that loses its power, meets the old file or the new one and never a part.
It decides nothing; what the entries mean is in `quarantine`.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpuspawner import statefile
from gpuspawner.errors import RecordError
from gpuspawner.gpus import GpuUuid
from gpuspawner.quarantine import Drained, Record, Struck

NAME = "cards.json"
FORMAT = 1
LOCK_SECONDS, LOCK_RETRY_SECONDS = 5.0, 0.05

Stamp = tuple[int, int, int]


class CardsFile:
    """The file in a folder; a missing one says that every card is in use."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def stamp(self) -> Stamp | None:
        """What changes whenever the file does; None where there is none. Raises RecordError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error) from error
        return found.st_mtime_ns, found.st_ino, found.st_size

    def read(self) -> Record:
        """What it says now.

        Raises:
            RecordError: it cannot be read, or not all of it can be understood.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Record()
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from error
        try:
            return _decode(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._unreadable(error) from error

    def change(self, how: Callable[[Record], Record]) -> Record:
        """Read, change and write it while nobody else does, and return what it says then. It may wait for seconds.

        Raises:
            RecordError: it cannot be read or written; it is what it was then.
        """
        with self._locked():
            before = self.read()
            after = how(before)
            if after != before:
                self._write(_encode(after))
            return after

    def _write(self, text: str) -> None:
        try:
            # Written by root on the command line, read by the Hub's own user.
            statefile.write(self.path, text, mode=0o644)
        except OSError as error:
            raise self._unwritable(error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder's lock, which the system lets go when the process ends. The file itself is replaced each time."""
        try:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise RecordError(
                            f"{self.path} is being changed by another program that does not come to an end. "
                            "Try again; `fuser` with the name of that folder shows which one it is."
                        ) from None
                    # The kernel has no lock with a time limit. Callers know that this blocks.
                    time.sleep(LOCK_RETRY_SECONDS)
                except OSError as error:
                    raise self._unwritable(error) from error
            yield
        finally:
            os.close(folder)

    def _unreadable(self, error: Exception) -> RecordError:
        if isinstance(error, PermissionError):
            return RecordError(
                f"{self.path}, which says what cards are drained, is not for you to read. Use sudo, or be the user "
                "that the Hub runs as."
            )
        said = error.strerror if isinstance(error, OSError) else repr(error)
        return RecordError(
            f"{self.path}, which says what cards are drained, cannot be read ({said}). Mend it, or move it away and "
            "drain those cards again."
        )

    def _unwritable(self, error: OSError) -> RecordError:
        folder = self.path.parent
        match error:
            case FileNotFoundError() | NotADirectoryError():
                return RecordError(
                    f"There is no folder {folder}. Name the Hub's data folder by --state or GPUSPAWNER_STATE (in the "
                    "Hub's configuration: c.GPUSpawner.state_path)."
                )
            case PermissionError():
                return RecordError(f"You may not write in {folder}. Use sudo, or be the user that the Hub runs as.")
            case _:
                return RecordError(f"{self.path} cannot be written ({error.strerror}); it is what it was.")


def _encode(record: Record) -> str:
    entries: dict[str, Any] = {
        "format": FORMAT,
        "drained": {
            uuid: {"at": _text(drained.at), "by": drained.by, "reason": drained.reason}
            for uuid, drained in sorted(record.drained.items())
        },
        "xids": {uuid: {"at": _text(struck.at), "xid": struck.xid} for uuid, struck in sorted(record.struck.items())},
    }
    return json.dumps(entries, ensure_ascii=False, indent=2) + "\n"


def _decode(entries: Mapping[str, Any]) -> Record:
    """Raises ValueError, KeyError, TypeError or AttributeError."""
    if entries["format"] != FORMAT:
        raise ValueError(f"format {entries['format']!r} is not {FORMAT}: written by another version?")
    return Record(
        drained={
            GpuUuid(uuid): Drained(_moment(each["at"]), str(each["by"]), str(each["reason"]))
            for uuid, each in entries["drained"].items()
        },
        struck={GpuUuid(uuid): Struck(_moment(each["at"]), int(each["xid"])) for uuid, each in entries["xids"].items()},
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
