"""How long servers may still run, as the Hub's pages show it, and the way to more time.

Ends come from the labels and, where somebody was given more time, from the file of extensions. `guard` and
`reservations` hold the rules; the watch (`service.watch`) is who has servers stopped, in a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from gpuspawner.errors import Refused
from gpuspawner.extensions import Extensions
from gpuspawner.guard import Extending, may_extend
from gpuspawner.leases import Held, Lease, Owner
from gpuspawner.ledger import Ledger, Standing
from gpuspawner.notices import Notice, read_notices
from gpuspawner.outlook import TimeLeft
from gpuspawner.placement import able_cards
from gpuspawner.profiles import GpuRequest
from gpuspawner.queueing import GOING
from gpuspawner.reservations import Situation, bound
from gpuspawner.texts import Text

LOG = logging.getLogger(__name__)

NOT_RUNNING = Text(
    "You asked for more time, but this server does not run any more. Start it again.",
    "시간 연장을 요청했지만 서버가 실행 중이 아닙니다. 다시 시작하세요.",
)
NOT_NOW = Text(
    "You asked for more time, but that cannot be decided now. Try again in a minute; if it stays so, tell the admin.",
    "시간 연장을 요청했지만 지금은 처리할 수 없습니다. 잠시 후 다시 시도하고, 계속되면 관리자에게 알려 주세요.",
)


class Times:
    """One for each Hub process.

    Args:
        look: every lease of this Hub, from the labels. It may raise.
        folder: where extensions and notices are; None: nothing can be extended.
        groups_of: the groups that users are in now, by user.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[Sequence[Lease]]],
        ledger: Ledger,
        folder: Path | None,
        groups_of: Callable[[set[str]], Mapping[str, frozenset[str]]],
        rule: Extending,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._look = look
        self._ledger = ledger
        self._folder = folder
        self._extensions = Extensions(folder) if folder else None
        self._groups_of = groups_of
        self._rule = rule if folder else replace(rule, max_seconds=0)
        self._clock = clock

    def extended(self) -> Mapping[str, datetime]:
        """Lease id → its new end."""
        return self._extensions.read() if self._extensions else {}

    def notice(self, owner: Owner) -> Notice | None:
        """That a server of this owner was stopped because its time was over; None where it was not, or long ago."""
        if self._folder is None:
            return None
        found = [
            each
            for each in read_notices(self._folder).values()
            if each.kind == "stopped" and (each.user, each.server) == (owner.user, owner.server)
        ]
        return max(found, key=lambda each: each.given, default=None)

    async def of(self, user: str) -> list[TimeLeft]:
        """The servers of a user that have an end, by name. What cannot be known is none."""
        try:
            leases = sorted((each for each in await self._look() if each.owner.user == user), key=_server)
            if not any(lease.ends for lease in leases):
                return []
            standing = await self._ledger.standing()
        except Refused as error:
            LOG.info("How long servers run cannot be told now: %s", error.detail or error)
            return []
        extended = self.extended()
        notices = read_notices(self._folder) if self._folder else {}
        found = []
        for lease in leases:
            ends = lease.ends_with(extended)
            if ends is not None:
                warned = lease.id in notices and notices[lease.id].ends == ends
                found.append(TimeLeft(lease.owner, ends, self._more(lease, ends, standing), warned))
        return found

    async def extend(self, owner: Owner) -> datetime | Text:
        """Give a server more time, if the rules let it have some; the new end, or why not."""
        try:
            leases = await self._look()
            standing = await self._ledger.standing()
        except Refused as error:
            LOG.warning("%s cannot be given more time now: %s", owner, error.detail or error)
            return NOT_NOW
        lease = next((each for each in leases if each.owner == owner), None)
        if lease is None:
            return NOT_RUNNING
        ends = lease.ends_with(self.extended())
        more = self._more(lease, ends, standing)
        if isinstance(more, Text) or self._extensions is None:
            return more
        try:
            await asyncio.to_thread(self._extensions.extend, lease.id, more, {each.id for each in leases})
        except OSError as error:
            LOG.error("More time for %s could not be written down: %s", owner, error)
            return NOT_NOW
        LOG.info("%s/%s runs until %s.", owner.user, owner.server, more.isoformat())
        return more

    def _more(self, lease: Lease, ends: datetime | None, standing: Standing) -> datetime | Text:
        now = self._clock()
        more = may_extend(lease, ends, self._rule, someone_waits=self._wanted(lease, standing), now=now)
        if isinstance(more, Text) or ends is None or not self._ledger.rules.calendar.reservations or not lease.cards:
            return more
        others = tuple(held for held in standing.held if held != Held(lease.cards, lease.owner, ends))
        users = {held.owner.user for held in others if held.owner} | {lease.owner.user}
        groups = self._groups_of(users)
        situation = Situation(standing.inventory, others, self._ledger.policy, now, groups)
        mine = groups.get(lease.owner.user, frozenset())
        seconds = int((more - now).total_seconds())
        found = bound(self._ledger.rules.calendar, mine, _request(lease), situation, seconds, cards=lease.cards)
        if found.refusal is not None:
            return found.refusal.text
        if found.window is None or found.ends is None:
            return more
        until = found.ends - GOING
        return until if until > ends else found.notice or NOT_NOW

    def _wanted(self, lease: Lease, standing: Standing) -> bool:
        """Whether somebody in the line could have a card of this lease."""
        cards = {card.uuid for card in lease.cards}
        return any(
            cards & (able_cards(waiter.request, standing.inventory, self._ledger.policy).keys() - waiter.barred)
            for waiter in standing.line
        )


def _server(lease: Lease) -> str:
    return lease.owner.server


def _request(lease: Lease) -> GpuRequest:
    """What the lease was asked for with."""
    if lease.vram_bytes is not None:
        return GpuRequest.model_validate({"memory": lease.vram_bytes})
    return GpuRequest.model_validate({"count": len(lease.cards)})
