"""Adapter: extended time, in the file `extensions.json` of the Hub's state folder.

The labels of a running container cannot be changed, so what was added to a lease is written here: lease id → its new
end. The labels stay the lease: without this file, or with one that cannot be read, the ends that they say hold, and an
entry of a lease that no container carries means nothing. It decides nothing: `guard.may_extend` does.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpuspawner.statefile import StateFile

NAME = "extensions.json"
_FORMAT = 1


class Extensions:
    """The extensions of one Hub, for any number of processes."""

    def __init__(self, folder: Path) -> None:
        self._file: StateFile[dict[str, datetime]] = StateFile(
            folder / NAME, _decode, _encode, dict, "The original ends hold."
        )

    def read(self) -> dict[str, datetime]:
        """Lease id → its new end in UTC. For `Lease.ends_with`. Never raises."""
        return self._file.read()

    def extend(self, lease_id: str, end: datetime, living: Collection[str]) -> None:
        """Let a lease end later. Entries of leases that are not among `living` are dropped.

        An end that lies before the one that is written down changes nothing. Blocks for some milliseconds.

        Raises:
            OSError: it could not be written down; nothing has changed.
        """

        def extended(old: dict[str, datetime]) -> dict[str, datetime]:
            new = {key: value for key, value in old.items() if key in living}
            return {**new, lease_id: max(end, old.get(lease_id, end))}

        self._file.change(extended)


def _decode(value: Any) -> dict[str, datetime]:
    if value["format"] != _FORMAT:
        raise ValueError(f"format {value['format']!r} is not {_FORMAT}")
    return {str(key): _moment(text) for key, text in value["ends"].items()}


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.astimezone(timezone.utc)


def _encode(value: dict[str, datetime]) -> Any:
    return {"format": _FORMAT, "ends": {key: end.astimezone(timezone.utc).isoformat() for key, end in value.items()}}
