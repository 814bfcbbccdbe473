"""Adapter: keeps the journal of leases in step with the labels, and what limits count of it in memory.

The labels are looked at when the engine tells of a change and now and then besides; what has begun and ended since the
last look is written down. Nothing waits for it: a lease that is in the ledger is not yet in the history, and hours are
asked about when a server starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone

from gpuspawner.errors import Refused
from gpuspawner.gpus import GpuUuid
from gpuspawner.journal import Journal
from gpuspawner.leases import Lease
from gpuspawner.terms import History
from gpuspawner.texts import Text

LOG = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
UNKNOWN = Text(
    "How much GPU time you have used cannot be known now. Choose a profile without a GPU, or ask the admin.",
    "지금은 사용한 GPU 시간을 확인할 수 없습니다. GPU가 없는 프로필을 선택하거나 관리자에게 문의하세요.",
)


class Accounting:
    """One for each Hub process; all of it is called on one event loop.

    Args:
        look: every lease of this Hub, from the labels. It may raise: then nothing is written.
        groups_of: the groups that users are in now, by user.
        memory_of: UUID → bytes of each card.
        starting: ids of leases whose containers may not be made yet.
        window_seconds: how far back limits count; 0: nobody asks.
    """

    def __init__(
        self,
        journal: Journal,
        look: Callable[[], Awaitable[Sequence[Lease]]],
        groups_of: Callable[[Collection[str]], Mapping[str, Collection[str]]],
        memory_of: Callable[[], Awaitable[Mapping[GpuUuid, int]]],
        starting: Callable[[], Collection[str]],
        *,
        window_seconds: int = 0,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._journal = journal
        self._look = look
        self._groups_of = groups_of
        self._memory_of = memory_of
        self._starting = starting
        self._window = timedelta(seconds=window_seconds)
        self._clock = clock
        self._open: frozenset[str] | None = None
        self._changed = asyncio.Event()
        self._looked = asyncio.Event()
        self.history = History(trouble=UNKNOWN)

    def nudge(self) -> None:
        """A lease may have begun or ended."""
        self._changed.set()

    async def looked(self, seconds: float) -> None:
        """Return once the first look is over, whatever came of it, or when the time is."""
        await _set_within(self._looked, seconds)

    async def run(self) -> None:
        """Keep the journal, until cancelled."""
        while True:
            self._changed.clear()
            await self.update()
            await _set_within(self._changed, LOOK_SECONDS)

    async def update(self) -> None:
        """Write down what has begun and ended since the last look. What goes wrong is logged, and tried again."""
        try:
            starting = frozenset(self._starting())
            leases = [lease for lease in await self._look() if lease.cards]
            if self._open is None or self._open != {lease.id for lease in leases}:
                await self._write(leases, starting)
            await asyncio.to_thread(self._journal.alive, self._clock())
        except Refused as error:
            LOG.info("The journal waits for the engine: %s", error.detail or error)
        except OSError as error:
            # It is looked at anew from the files: nobody knows how much of it was written.
            self._open = None
            self.history = History(self.history.spells, UNKNOWN)
            LOG.error("The journal of leases cannot be kept: %s", error)
        finally:
            self._looked.set()

    async def _write(self, leases: Sequence[Lease], starting: frozenset[str]) -> None:
        now = self._clock()
        groups = self._groups_of({lease.owner.user for lease in leases})
        memory = await self._memory_of()

        def write() -> History:
            if self._open is None:
                self._journal.close_up(
                    leases, now, groups_of=lambda user: groups.get(user, ()), memory_of=memory, leave=starting
                )
            else:
                for lease in leases:
                    if lease.id not in self._open:
                        self._journal.began(lease, groups.get(lease.owner.user, ()), memory)
                for lease_id in self._open - {lease.id for lease in leases}:
                    self._journal.ended(lease_id, now)
            return History(tuple(self._journal.read(now - self._window)) if self._window else ())

        self.history = await asyncio.to_thread(write)
        self._open = frozenset(lease.id for lease in leases)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    # Not wait_for: before Python 3.12 it swallows a cancellation that comes in the moment when the event is set.
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()
