"""Adapter: the cards as the Hub may lease them: what the driver lists, less what is drained, sick or not clean yet.

`Caretaker` stands between a `GpuSource` and the `Ledger` and gives it both of its looks, in their order: first the
cards with what runs on them, then the labels. So a server that starts in between is on the labels and nobody from
outside. The rules are in `quarantine`, the file in `cards`; this module looks, keeps what was seen, and tells the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Protocol

from gpuspawner import quarantine
from gpuspawner.cards import CardsFile, Stamp
from gpuspawner.errors import RecordError
from gpuspawner.gpus import DriverSource, GpuSource, GpuUuid, Inventory, Xid
from gpuspawner.leases import CardShare, Held, Holdings
from gpuspawner.quarantine import Cause, Fault, Record, State, Struck
from gpuspawner.texts import Text

LOG = logging.getLogger(__name__)

DRAIN_GRACE_SECONDS = 30.0
UNREADABLE = Text(
    "Which GPUs may be used cannot be known now. Choose a profile without a GPU, or ask the admin.",
    "지금은 사용할 수 있는 GPU를 확인할 수 없습니다. GPU가 없는 프로필을 선택하거나 관리자에게 문의하세요.",
)
NOBODY: frozenset[GpuUuid] = frozenset()


class Promises(Protocol):
    """What `ledger.Ledger` has promised to starts that are not on the labels yet."""

    def promised(self) -> frozenset[GpuUuid]:
        """The cards that are promised at this moment."""

    def take_given(self) -> frozenset[GpuUuid]:
        """The cards that were promised at any time since the last call."""


class Caretaker:
    """One for each Hub process; all of it is called on one event loop.

    Args:
        source: the cards. One without a driver behind it has nothing that could be sick or unclean.
        look_at_labels: a fresh list of every container that holds a lease. It may raise.
        folder: where the file of drained and struck cards is; None: they are remembered until the process ends.
        grace_seconds: how long what a lease has left behind on its card may take to go.
        clock, now: the time in UTC, and seconds of a clock that never jumps.
    """

    def __init__(
        self,
        source: GpuSource,
        look_at_labels: Callable[[], Awaitable[Holdings]],
        folder: Path | None = None,
        *,
        grace_seconds: float = DRAIN_GRACE_SECONDS,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.promises: Promises | None = None
        self._source = source
        self._look_at_labels = look_at_labels
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._now = now
        self._memory = _Memory(CardsFile(folder) if folder else None)
        self._seen = Inventory()
        self._state: State = {}
        self._looks = self._judged = 0
        self._told: dict[GpuUuid, Cause] = {}
        self._doubled: dict[GpuUuid, tuple[str, ...]] = {}

    async def inventory(self) -> Inventory:
        """The cards now, with a fault for each that must not be leased. Never raises."""
        return self._judge(await self._source.inventory())

    async def holdings(self) -> Holdings:
        """What the labels say, and besides it the cards that are not clean yet, as held by nobody that has a name.

        A card that somebody from outside has begun to use since the last look is among them as well: the next
        `inventory` shows its fault. Raises what `look_at_labels` raises.
        """
        seen = self._seen
        self._looks += 1
        look = self._looks
        # Before the labels: what becomes a container meanwhile is on one of the two.
        promised, given = NOBODY, NOBODY
        if self.promises is not None:
            promised, given = self.promises.promised(), self.promises.take_given()
        found = await self._look_at_labels()
        if look > self._judged:
            self._judged = look
            self._audit(seen, found)
            leased = promised.union(card.uuid for held in found.values() for card in held.cards)
            self._state = quarantine.watch(self._state, seen, leased=leased, given=given, now=self._now())
            if isinstance(self._source, DriverSource) and quarantine.stale(self._state, seen):
                self._judge(await self._source.look_anew())
        return {**found, **self._unclean(promised)}

    def _judge(self, seen: Inventory) -> Inventory:
        if isinstance(self._source, DriverSource):
            self._memory.strike(self._source.take_xids(), self._clock())
        try:
            record = self._memory.recall()
        except RecordError as error:
            return Inventory(simulated=seen.simulated, trouble=UNREADABLE, detail=str(error))
        self._seen = seen
        self._state = quarantine.look_again(self._state, seen)
        found = quarantine.faults(seen, record, self._state, now=self._now(), grace_seconds=self._grace_seconds)
        self._tell(seen, found)
        return quarantine.apply(seen, found)

    def _unclean(self, promised: frozenset[GpuUuid]) -> dict[str, Held]:
        """Under keys that no lease has."""
        left = quarantine.clearing(self._state, self._seen, now=self._now(), grace_seconds=self._grace_seconds)
        return {
            f"unclean {uuid}": Held(
                (CardShare(uuid),), ends=None if seconds is None else self._clock() + timedelta(seconds=seconds)
            )
            for uuid, seconds in left.items()
            if uuid not in promised
        }

    def _audit(self, seen: Inventory, found: Holdings) -> None:
        """The log hears once of each card that several have. None of them is stopped: any of them may be the right one.

        The ledger counts what all of them hold, so nobody else gets such a card.
        """
        doubled = quarantine.doubled(seen, found)
        for uuid, keys in doubled.items():
            if self._doubled.get(uuid) != keys:
                names = ", ".join(_holder(key, found[key]) for key in keys)
                LOG.error(
                    "%s is held by more than it has room for: %s. All run on; look which of them should not have it, "
                    "and stop that one.",
                    uuid,
                    names,
                )
        self._doubled = doubled

    def _tell(self, seen: Inventory, found: Mapping[GpuUuid, Fault]) -> None:
        """The log hears of each change once."""
        if seen.trouble is not None:
            return
        for uuid, fault in found.items():
            if self._told.get(uuid) is not fault.cause:
                LOG.warning("%s is left out (%s): %s", uuid, fault.cause.value, fault.text.en)
        for gpu in seen.gpus:
            if gpu.uuid in self._told and gpu.uuid not in found:
                LOG.warning("%s is in use again.", gpu.uuid)
        self._told = {uuid: fault.cause for uuid, fault in found.items()}


def _holder(key: str, held: Held) -> str:
    """Names are quoted, because they may hold anything."""
    if held.owner is None:
        return f"container {key}"
    return f"{held.owner.user!r} {held.owner.server!r} (hub {held.owner.hub!r}, {key})"


class _Memory:
    """The record: that of the file, and XIDs that are not in it yet."""

    def __init__(self, file: CardsFile | None) -> None:
        self._file = file
        self._record: Record | None = None if file else Record()
        self._stamp: Stamp | None = None
        self._new: dict[GpuUuid, Struck] = {}
        self._said = ""
        self._writing: asyncio.Task[None] | None = None

    def strike(self, xids: tuple[Xid, ...], at: datetime) -> None:
        """Remember those that tell of a sick card."""
        for xid in xids:
            if quarantine.is_critical(xid.number):
                self._new.setdefault(xid.uuid, Struck(at, xid.number))

    def recall(self) -> Record:
        """What is known now; what is new in it is being written down.

        Raises:
            RecordError: the file could not be read yet, not even once.
        """
        record = self._read()
        if self._new and (self._writing is None or self._writing.done()):
            self._writing = asyncio.ensure_future(self._write(dict(self._new)))
        for uuid, struck in self._new.items():
            record = record.strike(uuid, struck)
        return record

    def _read(self) -> Record:
        if self._file is not None:
            try:
                # The stamp from before, so that a change in between is read by the next look.
                stamp = self._file.stamp()
                if self._record is None or stamp != self._stamp:
                    self._record, self._stamp = self._file.read(), stamp
                self._said = ""
            except RecordError as error:
                if self._record is None:
                    raise
                self._complain(f"{error} Until then what it said before holds good.")
        return self._record or Record()

    async def _write(self, new: Mapping[GpuUuid, Struck]) -> None:
        def add(record: Record) -> Record:
            for uuid, struck in new.items():
                record = record.strike(uuid, struck)
            return record

        if self._file is None:
            self._record = add(self._read())
        else:
            try:
                # Not on the event loop: the lock may be another's for a moment.
                await asyncio.to_thread(self._file.change, add)
            except RecordError as error:
                self._complain(f"An XID could not be written down and is forgotten at the next restart: {error}")
                return
        for uuid, struck in new.items():
            if self._new.get(uuid) is struck:
                del self._new[uuid]

    def _complain(self, said: str) -> None:
        """Once, until something else is wrong."""
        if said != self._said:
            LOG.error("%s", said)
            self._said = said
