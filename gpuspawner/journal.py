"""The history of leases, in files: one JSON line for each lease begun and each ended, and a sign of life in between.

GPU-hours are counted from it. It is history and never the truth about leases: who holds a card now is on the labels of
the containers (law 1), and `close_up` mends the journal after them. No Docker and no Hub here; the methods are
blocking, so call them in a thread. Several threads may do so at once; one process writes, others may read.

- A line is on the disk (fsync) when the method returns. Where it cannot be, `OSError` says so, and what was written
  before is still there.
- `journal.jsonl` grows to `rotate_bytes` and becomes `journal-<UTC>-<number>.jsonl`. What is open then is written
  once more at the top of the new file, so that each file tells the whole story of every lease that ended in it. Files
  go when they are older than `keep_seconds`; the youngest of them always stays, whatever the clock says.
- A line that was torn by a crash, or damaged later, is left out, with one line in the log.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import CardShare, Lease
from gpuspawner.units import MIB
from gpuspawner.usage import Spell, weight_of

ACTIVE = "journal.jsonl"
_ROTATED = re.compile(r"journal-(\d{8}T\d{6}Z)-(\d{6,})\.jsonl")
_STAMP = "%Y%m%dT%H%M%SZ"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """What the journal knows of one lease. `line` is the one that began it."""

    spell: Spell
    hub: str
    line: Mapping[str, Any]


class Journal:
    """The journal of one Hub.

    Args:
        folder: made where it is missing. It names users: only its owner may read it.
        hub: whose leases these are, as on their labels.
        keep_seconds: how long a rotated file stays; at least the longest window of the limits.
        rotate_bytes: from which size on a new file is begun.
        alive_seconds: how far apart the signs of life are.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hub: str = "jupyter",
        keep_seconds: int = 35 * 86400,
        rotate_bytes: int = 8 * MIB,
        alive_seconds: int = 300,
    ) -> None:
        self._folder = folder
        self._path = folder / ACTIVE
        self._hub = hub
        self._keep = timedelta(seconds=keep_seconds)
        self._rotate_bytes = rotate_bytes
        self._alive = timedelta(seconds=alive_seconds)
        self._alive_at: datetime | None = None
        self._told: set[int] = set()
        self._lock = threading.Lock()

    def began(self, lease: Lease, groups: Collection[str], memory_of: Mapping[GpuUuid, int]) -> None:
        """Write down that a lease began, at its `started`. `memory_of`: UUID → bytes of the card.

        Raises:
            OSError: the line is not on the disk.
        """
        self._append(_beginning(lease, groups, memory_of), lease.started)

    def ended(self, lease_id: str, at: datetime) -> None:
        """Write down that a lease ended. A second time, and for a lease that nobody knows, it changes nothing.

        Raises:
            OSError: the line is not on the disk.
        """
        self._append(self._ending(lease_id, at), at)

    def alive(self, at: datetime) -> None:
        """Leave a sign of life, unless the last one is young: a lease that ends unseen is charged no further than this.

        Raises:
            OSError: the line is not on the disk.
        """
        last = self._alive_at
        if last is not None and last <= at < last + self._alive:
            return
        self._append({"event": "alive", "at": _utc(at), "hub": self._hub}, at)
        self._alive_at = at

    def read(self, since: datetime) -> list[Spell]:
        """The spells that touch the time after `since`, open ones included, in the order in which they began.

        Raises:
            OSError: a file is there and cannot be read.
        """
        entries, _ = self._replay(since)
        spells = [e.spell for e in entries.values() if e.spell.ended is None or e.spell.ended > since]
        return sorted(spells, key=lambda spell: (spell.began, spell.lease_id))

    def close_up(
        self,
        leases: Iterable[Lease],
        now: datetime,
        *,
        groups_of: Callable[[str], Collection[str]],
        memory_of: Mapping[GpuUuid, int],
        leave: Collection[str] = (),
    ) -> None:
        """Make the journal agree with the labels of all containers. Doing it twice is doing it once.

        Leases that the labels show and the journal does not are begun (or go on, where they were ended by mistake).
        Those of this Hub that are open here and not on the labels have ended unseen: at the last moment at which the
        journal knows the Hub to have been alive, so that nobody pays for its downtime. `leave`: ids of leases that may
        not be on the labels yet.

        Raises:
            OSError: not everything is on the disk; do it again.
        """
        entries, last = self._replay(datetime.min.replace(tzinfo=timezone.utc))
        ours = {lease.id: lease for lease in leases if lease.owner.hub == self._hub}
        for lease in ours.values():
            entry = entries.get(lease.id)
            if entry is None:
                self.began(lease, groups_of(lease.owner.user), memory_of)
            elif entry.spell.ended is not None:
                self._append(entry.line, now)
        for lease_id, entry in entries.items():
            gone = entry.hub == self._hub and entry.spell.ended is None and lease_id not in ours
            if gone and lease_id not in leave:
                at = max(entry.spell.began, min(last.get(self._hub, now), now))
                self._append(self._ending(lease_id, at), now)

    def _ending(self, lease_id: str, at: datetime) -> dict[str, Any]:
        return {"event": "ended", "at": _utc(at), "hub": self._hub, "lease": lease_id}

    # Writing

    def _append(self, line: Mapping[str, Any], at: datetime) -> None:
        data = _encode(line)
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._rotate_if_large(at)
            new = not self._path.exists()
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                _write_whole(descriptor, data)
            finally:
                os.close(descriptor)
            if new:
                _sync_folder(self._folder)

    def _rotate_if_large(self, at: datetime) -> None:
        try:
            if not self._path.exists() or self._path.stat().st_size < self._rotate_bytes:
                return
            self._rotate(at)
        except (OSError, OverflowError) as error:
            # A file that is too long is better than a lease that is not written down.
            log.warning("The journal %s cannot be rotated and grows on: %s", self._path, error)

    def _rotate(self, at: datetime) -> None:
        """Each step leaves a journal that says the same: reading a copy beside the original changes nothing."""
        entries: dict[str, _Entry] = {}
        moments = []
        for event in self._events([self._path]):
            _apply(entries, event)
            moments.append(event.at)
        carried = b"".join(_encode(entry.line) for entry in entries.values() if entry.spell.ended is None)
        rotated = self._rotated()
        number = rotated[-1].number + 1 if rotated else 1
        # Rounded up: nothing in the file is younger than its name.
        stamp = (max(moments, default=at) + timedelta(seconds=1)).astimezone(timezone.utc).strftime(_STAMP)
        draft = self._folder / "journal.next"
        try:
            shutil.copyfile(self._path, draft)
            _move_safely(draft, self._folder / f"journal-{stamp}-{number:06}.jsonl")
            draft.write_bytes(carried)
            _move_safely(draft, self._path)
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(self._folder)
        # From the oldest on: a lease that is open in one file may have been ended in the next.
        for old in takewhile(lambda old: old.until < at - self._keep, rotated):
            old.path.unlink(missing_ok=True)

    # Reading

    def _rotated(self) -> list[_Rotated]:
        """The files that were rotated, in that order: not by their moments, for a clock may have jumped."""
        found = []
        for path in self._folder.glob("journal-*.jsonl"):
            if match := _ROTATED.fullmatch(path.name):
                until = datetime.strptime(match[1], _STAMP).replace(tzinfo=timezone.utc)
                found.append(_Rotated(int(match[2]), until, path))
        return sorted(found)

    def _replay(self, since: datetime) -> tuple[dict[str, _Entry], dict[str, datetime]]:
        """Lease id → entry, and hub → the last moment of which there is a line; files from before `since` are left out.

        Another process may rotate meanwhile. The active file is opened first: what has left it by then has its copy in
        the list, and what leaves it later is read twice, which changes nothing.
        """
        entries: dict[str, _Entry] = {}
        last: dict[str, datetime] = {}
        try:
            active = self._path.read_bytes()
        except FileNotFoundError:
            active = b""
        recent = dropwhile(lambda old: old.until < since, self._rotated())
        for event in self._events([*(old.path for old in recent), self._path], active):
            _apply(entries, event)
            last[event.hub] = max(event.at, last.get(event.hub, event.at))
        return entries, last

    def _events(self, paths: Iterable[Path], active: bytes | None = None) -> Iterator[_Event]:
        damaged: list[str] = []
        for path in paths:
            try:
                data = path.read_bytes() if active is None or path != self._path else active
            except FileNotFoundError:
                continue  # rotated away by the process that writes
            *lines, tail = data.split(b"\n")
            for number, raw in enumerate(lines, 1):
                event = _decode(raw)
                if event is not None:
                    yield event
                elif raw and hash(raw) not in self._told:
                    self._told.add(hash(raw))
                    damaged.append(f"{path.name} line {number}")
            # The end without a line end: torn, or being written at this moment.
            event = _decode(tail)
            if event is not None:
                yield event
        if damaged:
            log.warning("The journal has %d lines that cannot be read and do not count: %s", len(damaged), damaged[:5])


class _Rotated(NamedTuple):
    number: int
    until: datetime
    path: Path


@dataclass(frozen=True)
class _Event:
    kind: str
    at: datetime
    hub: str
    lease: str = ""
    spell: Spell | None = None
    line: Mapping[str, Any] | None = None


def _apply(entries: dict[str, _Entry], event: _Event) -> None:
    """What follows from one more line. The same lines read twice in order say what they say once."""
    known = entries.get(event.lease)
    if event.kind == "began" and event.spell is not None and event.line is not None:
        if known is None:
            entries[event.lease] = _Entry(event.spell, event.hub, event.line)
        elif known.spell.ended is not None:
            entries[event.lease] = replace(known, spell=replace(known.spell, ended=None))
    elif event.kind == "ended" and known is not None and known.spell.ended is None:
        ended = max(event.at, known.spell.began)
        entries[event.lease] = replace(known, spell=replace(known.spell, ended=ended))


def _beginning(lease: Lease, groups: Collection[str], memory_of: Mapping[GpuUuid, int]) -> dict[str, Any]:
    return {
        "event": "began",
        "at": _utc(lease.started),
        "hub": lease.owner.hub,
        "lease": lease.id,
        "user": lease.owner.user,
        "server": lease.owner.server,
        "groups": sorted(groups),
        "profile": lease.profile,
        "cards": [
            {"uuid": card.uuid, "memory_bytes": card.memory_bytes, "card_bytes": memory_of.get(card.uuid)}
            for card in lease.cards
        ],
    }


def _encode(line: Mapping[str, Any]) -> bytes:
    # In ASCII: whatever a name holds, a line feed or half a character, it stays within its line.
    return json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"


def _decode(raw: bytes) -> _Event | None:
    """What a line says, or None where it cannot be read."""
    try:
        line = json.loads(raw)
        kind, at, hub = line["event"], datetime.fromisoformat(line["at"]), line["hub"]
        if at.tzinfo is None or not isinstance(hub, str):
            return None
        if kind == "alive":
            return _Event(kind, at, hub)
        if not isinstance(line["lease"], str) or kind not in ("began", "ended"):
            return None
        if kind == "ended":
            return _Event(kind, at, hub, line["lease"])
        return _Event(kind, at, hub, line["lease"], _spell(line, at), line)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _spell(line: Mapping[str, Any], at: datetime) -> Spell:
    user, groups, cards = line["user"], line["groups"], line["cards"]
    shares = [CardShare(card["uuid"], _bytes(card["memory_bytes"])) for card in cards]
    memory = {card["uuid"]: size for card in cards if (size := _bytes(card["card_bytes"])) is not None}
    if not isinstance(user, str) or not all(isinstance(group, str) for group in groups):
        raise TypeError("names must be texts")
    return Spell(line["lease"], user, frozenset(groups), at, None, weight_of(shares, memory))


def _bytes(value: object) -> int | None:
    if value is None or (isinstance(value, int) and value >= 0):
        return value
    raise ValueError("must be a number of bytes")


def _write_whole(descriptor: int, data: bytes) -> None:
    """Append a line and bring it to the disk; where that fails, what was there before is what is there."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data  # after what a crash has torn
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _move_safely(draft: Path, path: Path) -> None:
    """Give a file its name when all of it is on the disk."""
    draft.chmod(0o600)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat()
