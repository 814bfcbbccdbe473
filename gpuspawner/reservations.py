"""Rules: what a class reservation means for those who are not in the class. Pure: no await, no clock, no I/O.

1. During a window so many cards go only to members of its group. Members are placed as always.
2. Cards that members hold count toward it; then cards that nobody holds; then those that others hold, the ones that
   come back first before the rest. The rest of a kept card is kept, too: nobody else gets a share of it.
3. A lease that would still hold a card when a window begins is given one that the class can do without, if there is
   any: cards that cannot serve the request are kept for the class before those that can.
4. Otherwise it ends when the window begins, or is refused where the reservation says so or less than `LEAST` is left.
5. Windows that overlap keep different cards; the one with the fewest cards to choose from chooses first.
6. A lease without a time limit is held against the windows of the next `HORIZON`.

What is kept is computed anew for each decision, from who holds what: nothing is stored. What runs already is never
stopped by a reservation; who was started under these rules is gone by then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, partial

from gpuspawner.errors import NoRoom, Reason, Refused
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held
from gpuspawner.placement import Occupancy, Policy, place, wording
from gpuspawner.profiles import GpuRequest
from gpuspawner.texts import Text
from gpuspawner.timetable import Calendar, Window
from gpuspawner.units import format_moment

LEAST = timedelta(minutes=10)
HORIZON = timedelta(days=35)

__all__ = ["HORIZON", "LEAST", "Bound", "Calendar", "Situation", "Window", "around", "bound", "cards_kept_for_others"]


@dataclass(frozen=True)
class Situation:
    """What a decision stands on: the cards, who holds what until when, who is in which groups, the time.

    `held` is of labels and promises, without the lease that is asked about. `groups_of`: user → groups; a user who is
    not in it is in none. `now` is aware.
    """

    inventory: Inventory
    held: tuple[Held, ...]
    policy: Policy
    now: datetime
    groups_of: Mapping[str, Collection[str]] = field(default_factory=dict)

    @cached_property
    def occupancy(self) -> Occupancy:
        """What is taken now."""
        return Occupancy.of(*(held.cards for held in self.held))


@dataclass(frozen=True)
class Bound:
    """What reservations say about a lease that would begin now.

    It must be placed without the cards of `avoid` (`around`), and ends at `ends` at the latest, in UTC; None: no end.
    `refusal` says why it cannot begin at all. `window` is the one that shortens or refuses it.
    """

    ends: datetime | None
    refusal: NoRoom | None = None
    window: Window | None = None
    avoid: frozenset[GpuUuid] = frozenset()

    @property
    def notice(self) -> Text | None:
        """What a person should know before the start: that the time is shortened, and until when."""
        if self.window is None or self.refusal is not None:
            return None
        start = _moment(self.window, self.window.start)
        return Text(
            f"This server has to stop by {start.en}: a class has reserved the cards.",
            f"이 서버는 {start.ko}까지만 사용할 수 있습니다. 그 뒤에는 카드가 수업용으로 예약되어 있습니다.",
        )


def cards_kept_for_others(calendar: Calendar, groups: Collection[str], situation: Situation) -> frozenset[GpuUuid]:
    """The cards that a member of `groups` may not get now, since classes of other groups have them at this moment.

    For who looks, as the form does. Where there is a request, `bound` decides, and its `avoid` may be other cards: it
    keeps those that the request cannot use.
    """
    windows = calendar.active(situation.now)
    kept = _Keeper(situation, groups, ()).keep(windows)
    theirs = (uuids for window, uuids in zip(windows, kept, strict=True) if window.group not in groups)
    return frozenset().union(*theirs)


def bound(
    calendar: Calendar,
    groups: Collection[str],
    request: GpuRequest | None,
    situation: Situation,
    time_limit_seconds: int | None,
    *,
    cards: Collection[CardShare] | None = None,
) -> Bound:
    """How long `request` may run if it begins now, and without which cards. Never raises.

    Where it does not fit in any case, nothing is said about it: `placement` does. With `cards` the question is how
    long a lease that has these cards may go on, `time_limit_seconds` from now.
    """
    now = situation.now
    natural = None if time_limit_seconds is None else now + timedelta(seconds=time_limit_seconds)
    if request is None:
        return Bound(natural)
    serving = _serving(request, situation) if cards is None else {card.uuid for card in cards}
    windows = calendar.windows(now, now + HORIZON if natural is None else natural)
    kept = _Keeper(situation, groups, serving).keep(windows)
    theirs = [(window, uuids) for window, uuids in zip(windows, kept, strict=True) if window.group not in groups]

    def fits(without: frozenset[GpuUuid]) -> bool:
        if cards is not None:
            return without.isdisjoint(serving)
        return _fits(request, situation, without)

    avoid: frozenset[GpuUuid] = frozenset()
    if not fits(avoid):
        return Bound(natural, avoid=avoid.union(*(uuids for window, uuids in theirs if window.start <= now)))
    for window, uuids in theirs:
        more = avoid | uuids
        if not fits(more):
            return _bounded(request, window, avoid, now)
        avoid = more
    return Bound(natural, avoid=avoid)


def around(occupancy: Occupancy, avoid: Collection[GpuUuid]) -> Occupancy:
    """As if somebody held all of these cards: where a placement must not go."""
    return Occupancy.of(occupancy.cards, (CardShare(uuid) for uuid in sorted(avoid))) if avoid else occupancy


class _Keeper:
    """Chooses cards for windows, for somebody who could use those of `serving`: these last."""

    def __init__(self, situation: Situation, groups: Collection[str], serving: Collection[GpuUuid]) -> None:
        self._situation = situation
        self._groups = groups
        self._serving = serving
        self._holders: dict[str, list[Held]] = defaultdict(list)
        for held in situation.held:
            for card in held.cards:
                self._holders[card.uuid].append(held)

    def keep(self, windows: Sequence[Window]) -> list[frozenset[GpuUuid]]:
        """The cards of each window: as many as it has reserved, or fewer where there are no more."""
        able = [[gpu for gpu in self._situation.inventory.gpus if window.takes(gpu)] for window in windows]
        kept: list[frozenset[GpuUuid]] = [frozenset()] * len(windows)
        used: set[GpuUuid] = set()
        for index in sorted(range(len(windows)), key=lambda index: len(able[index])):
            window = windows[index]
            elsewhere = {uuid for uuids, w in zip(kept, windows, strict=True) if w.overlaps(window) for uuid in uuids}
            free = [gpu for gpu in able[index] if gpu.uuid not in elsewhere]
            free.sort(key=partial(self._rank, window, used))
            kept[index] = frozenset(gpu.uuid for gpu in free[: window.count])
            if window.group not in self._groups:
                used |= kept[index]
        return kept

    def _rank(self, window: Window, used: Collection[GpuUuid], gpu: Gpu) -> tuple[object, ...]:
        """The smallest goes to the class first."""
        now = self._situation.now
        active = window.start <= now
        # A lease whose time is over and that is still there holds its card now, and will not hold it then.
        there = [held for held in self._holders[gpu.uuid] if active or held.ends is None or held.ends > window.start]
        ours = self._serves(gpu) == (window.group not in self._groups)
        last = (ours, gpu.uuid not in used, gpu.index, gpu.uuid)
        if not there:
            return 1, 0.0, *last
        if all(self._member(held, window.group) for held in there):
            return 0, 0.0, *last
        ends = [(held.ends - now).total_seconds() if held.ends else float("inf") for held in there]
        return 2, max(ends), *last

    def _serves(self, gpu: Gpu) -> bool:
        return gpu.uuid in self._serving

    def _member(self, held: Held, group: str) -> bool:
        return held.owner is not None and group in self._situation.groups_of.get(held.owner.user, ())


def _serving(request: GpuRequest, situation: Situation) -> set[GpuUuid]:
    """The cards that could be part of the answer now."""
    one = request if request.count is None else request.model_copy(update={"count": 1})
    occupancy, policy, found = situation.occupancy, situation.policy, set()
    for gpu in situation.inventory.gpus:
        try:
            place(one, Inventory((gpu,)), occupancy, policy)
        except Refused:
            continue
        found.add(gpu.uuid)
    return found


def _fits(request: GpuRequest, situation: Situation, avoid: frozenset[GpuUuid]) -> bool:
    try:
        place(request, situation.inventory, around(situation.occupancy, avoid), situation.policy)
    except Refused:
        return False
    return True


def _bounded(request: GpuRequest, window: Window, avoid: frozenset[GpuUuid], now: datetime) -> Bound:
    if window.start <= now:
        return Bound(None, _kept(request, window), window, avoid)
    if window.before == "refuse":
        return Bound(None, _runs_into(request, window), window, avoid)
    if window.start - now < LEAST:
        return Bound(None, _too_late(request, window), window, avoid)
    return Bound(window.start, None, window, avoid)


def _moment(window: Window, moment: datetime) -> Text:
    """A moment on the clock of the class: "Mon 7 Dec 09:00 (Asia/Seoul)"."""
    words = format_moment(moment.astimezone(window.zone))
    return Text(f"{words.en} ({window.zone.key})", f"{words.ko}({window.zone.key})")


def _kept(request: GpuRequest, window: Window) -> NoRoom:
    asked, end = wording(request), _moment(window, window.end)
    return NoRoom(
        Text(
            f"You asked for {asked.en}, but the cards that are free are kept for a class until {end.en}. "
            "Choose another profile, or try again then.",
            f"{asked.ko}: 남은 카드는 {end.ko}까지 수업용으로 예약되어 있습니다. "
            "다른 프로필을 선택하거나 그 뒤에 다시 시도하세요.",
        ),
        reason=Reason.RESERVED,
    )


def _runs_into(request: GpuRequest, window: Window) -> NoRoom:
    asked, start, end = wording(request), _moment(window, window.start), _moment(window, window.end)
    return NoRoom(
        Text(
            f"You asked for {asked.en}, but a class has reserved the cards from {start.en}, and this server might "
            f"still run then. Choose a profile with a shorter time limit, or try again after {end.en}.",
            f"{asked.ko}: {start.ko}부터 카드가 수업용으로 예약되어 있고, 이 서버는 그때까지 끝나지 않을 수 있습니다. "
            f"시간 한도가 더 짧은 프로필을 선택하거나 {end.ko} 이후에 다시 시도하세요.",
        ),
        reason=Reason.RESERVED,
    )


def _too_late(request: GpuRequest, window: Window) -> NoRoom:
    asked, start, end = wording(request), _moment(window, window.start), _moment(window, window.end)
    return NoRoom(
        Text(
            f"You asked for {asked.en}, but a class has reserved the cards from {start.en}: less than 10 minutes are "
            f"left. Choose another profile, or try again after {end.en}.",
            f"{asked.ko}: {start.ko}부터 카드가 수업용으로 예약되어 있어 10분도 남지 않았습니다. "
            f"다른 프로필을 선택하거나 {end.ko} 이후에 다시 시도하세요.",
        ),
        reason=Reason.RESERVED,
    )
