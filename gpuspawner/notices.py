"""Adapter: where a warning goes, and the words about a server that was stopped. This is the one seam for both.

`Notices` is what the watch gives its words to. `FileNotices` writes them to `notices.json` of the Hub's state folder,
where the Hub's pages find them with `read_notices`; another way to reach a student is another implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal, Protocol

from gpuspawner.guard import Stop, Warn
from gpuspawner.statefile import StateFile
from gpuspawner.texts import Text

NAME = "notices.json"
KEEP_STOPPED = timedelta(days=1)
_FORMAT = 1

Kind = Literal["warning", "stopped"]


@dataclass(frozen=True)
class Notice:
    """Words for the owner of a server. Moments are in UTC.

    `ends` is the end of the lease that it is about, `stops` when the server is stopped or was. A warning's `text` is as
    of `given`; `guard.warning` says it anew for another moment. A warning whose `ends` is not the lease's end any more
    is out of date: somebody has just extended it.
    """

    lease_id: str
    user: str
    server: str
    kind: Kind
    given: datetime
    ends: datetime
    stops: datetime
    step_seconds: int
    text: Text

    @classmethod
    def warning(cls, verdict: Warn, given: datetime) -> Notice:
        """The notice of a warning."""
        owner = verdict.lease.owner
        return cls(
            lease_id=verdict.lease.id,
            user=owner.user,
            server=owner.server,
            kind="warning",
            given=given,
            ends=verdict.ends,
            stops=verdict.stops,
            step_seconds=verdict.step_seconds,
            text=verdict.text,
        )

    @classmethod
    def stopped(cls, verdict: Stop, given: datetime) -> Notice:
        """The notice that a server was stopped, with the reason."""
        owner = verdict.lease.owner
        return cls(
            lease_id=verdict.lease.id,
            user=owner.user,
            server=owner.server,
            kind="stopped",
            given=given,
            ends=verdict.ends,
            stops=given,
            step_seconds=0,
            text=verdict.reason,
        )


class Notices(Protocol):
    """Where the watch gives its words to."""

    async def give(self, new: Sequence[Notice], standing: Collection[str], now: datetime) -> None:
        """Give new notices, and take back the warnings of leases that are not `standing` any more.

        Raises:
            OSError: they could not be given.
        """
        ...

    def given(self) -> Mapping[str, Notice]:
        """Lease id → its latest notice, also of a process before this one. Never raises."""
        ...


class FileNotices:
    """`notices.json`. The words about stopped servers stay for a day."""

    def __init__(self, folder: Path) -> None:
        self._file: StateFile[dict[str, Notice]] = StateFile(
            folder / NAME, _decode, _encode, dict, "Warnings may be given once more."
        )

    async def give(self, new: Sequence[Notice], standing: Collection[str], now: datetime) -> None:
        """Write it down. Blocks for some milliseconds where something has changed."""

        def after(old: dict[str, Notice]) -> dict[str, Notice]:
            return {
                **{key: notice for key, notice in old.items() if _stays(notice, standing, now)},
                **{notice.lease_id: notice for notice in new},
            }

        self._file.change(after)

    def given(self) -> Mapping[str, Notice]:
        """Lease id → its latest notice."""
        return self._file.read()


def read_notices(folder: Path) -> Mapping[str, Notice]:
    """Lease id → its latest notice, for the Hub's pages; {} where there is none. Never raises."""
    return FileNotices(folder).given()


def _stays(notice: Notice, standing: Collection[str], now: datetime) -> bool:
    if notice.kind == "warning":
        return notice.lease_id in standing
    return now - notice.given < KEEP_STOPPED


def _decode(value: Any) -> dict[str, Notice]:
    if value["format"] != _FORMAT:
        raise ValueError(f"format {value['format']!r} is not {_FORMAT}")
    return {str(key): _notice(str(key), entry) for key, entry in value["notices"].items()}


def _notice(lease_id: str, entry: Mapping[str, Any]) -> Notice:
    if entry["kind"] not in ("warning", "stopped"):
        raise ValueError(f"kind {entry['kind']!r} is not known")
    moments = {name: datetime.fromisoformat(entry[name]) for name in ("given", "ends", "stops")}
    if any(moment.tzinfo is None for moment in moments.values()):
        raise ValueError(f"a moment of {lease_id} has no time zone")
    return Notice(
        lease_id=lease_id,
        user=str(entry["user"]),
        server=str(entry["server"]),
        kind=entry["kind"],
        step_seconds=int(entry["step_seconds"]),
        text=Text(str(entry["text"]["en"]), str(entry["text"]["ko"])),
        **moments,
    )


def _encode(value: dict[str, Notice]) -> Any:
    return {"format": _FORMAT, "notices": {key: _entry(notice) for key, notice in value.items()}}


def _entry(notice: Notice) -> dict[str, Any]:
    return {
        "user": notice.user,
        "server": notice.server,
        "kind": notice.kind,
        "given": notice.given.astimezone(timezone.utc).isoformat(),
        "ends": notice.ends.astimezone(timezone.utc).isoformat(),
        "stops": notice.stops.astimezone(timezone.utc).isoformat(),
        "step_seconds": notice.step_seconds,
        "text": {"en": notice.text.en, "ko": notice.text.ko},
    }
