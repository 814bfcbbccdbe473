"""Rules: who of those that wait is next, and when. Pure: no await, no clock, no I/O; `ledger` holds the line itself.

1. A line has one order: that of arrival. Nobody who may still be served loses the place.
2. Two requests compete when one well card could serve both. Others never hold each other up.
3. Whoever fits, and competes with nobody ahead, is served at once.
4. The head of a request is the first one ahead that competes with it and does not fit yet.
5. The promise to the head is the first moment at which it fits if every lease ends on time.
6. Somebody behind the head is served before it only if the promise is known and stays what it was.
7. The one who passes is counted a minute longer than its time limit: a server takes a moment to go.
8. Where the best card for it would delay the head, it may have one that the head does not need.
9. Nobody is passed more than `max_overtakes` times by those with whom it competes.
10. Cards that are kept from somebody (a class has reserved them) count for that person as taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from operator import itemgetter

from gpuspawner.errors import Refused
from gpuspawner.gpus import GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held
from gpuspawner.placement import Policy, Taken, able_cards, place
from gpuspawner.profiles import GpuRequest

GOING = timedelta(seconds=60)
NEVER = datetime.max.replace(tzinfo=timezone.utc)
ALREADY = datetime.min.replace(tzinfo=timezone.utc)

# Further back an estimate would be a guess upon guesses.
ESTIMATED = 20

Want = tuple[GpuRequest, frozenset[GpuUuid]]


@dataclass(frozen=True)
class Waiter:
    """One request in the line. `barred`: UUIDs of cards that it may not get now. `overtaken`: how often it was passed.

    `time_limit_seconds` is how long the lease would last; None: without end.
    """

    id: str
    request: GpuRequest
    time_limit_seconds: int | None = None
    barred: frozenset[GpuUuid] = frozenset()
    overtaken: int = 0

    @property
    def want(self) -> Want:
        """What decides which cards could serve it: how long it would have them does not."""
        return self.request, self.barred

    def ends(self, begins: datetime) -> datetime | None:
        """When its lease would end."""
        limit = self.time_limit_seconds
        return None if limit is None else begins + timedelta(seconds=limit)


@dataclass(frozen=True)
class Decision:
    """Who is served now with which cards, by id in the order of the line, and who was passed how often in all."""

    grants: Mapping[str, tuple[CardShare, ...]] = field(default_factory=dict)
    overtaken: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """`position` counts from 1 among those with whom it competes; `at` is None where nobody can say."""

    position: int
    at: datetime | None = None


@dataclass(frozen=True)
class Promise:
    """The first moment at which a request fits if every lease ends on time, and the cards that it would get."""

    at: datetime
    cards: tuple[CardShare, ...]


@dataclass(frozen=True)
class Scene:
    """What a decision stands on: the cards, who holds how much of them until when, how shares are counted, the time."""

    inventory: Inventory
    held: tuple[Held, ...]
    policy: Policy
    now: datetime


def decide(line: Sequence[Waiter], scene: Scene, *, max_overtakes: int, most: int | None = None) -> Decision:
    """Who of the line is served now, `most` of them at most. Nobody is, where the cards cannot be known."""
    if scene.inventory.trouble is not None:
        return Decision()
    return _Round(scene, max_overtakes).run(line, most)


def forecast(line: Sequence[Waiter], scene: Scene) -> dict[str, Forecast]:
    """Position and estimate of everybody in the line, by id: estimates for the first `ESTIMATED` of them."""
    outlook = _Outlook(scene)
    return {waiter.id: outlook.join(waiter) for waiter in line}


def forecast_newcomers(line: Sequence[Waiter], newcomers: Sequence[Waiter], scene: Scene) -> list[Forecast]:
    """What `forecast` would say of each of the newcomers, if that one alone came last."""
    outlook = _Outlook(scene)
    for waiter in line:
        outlook.join(waiter)
    return [outlook.of(newcomer) for newcomer in newcomers]


class _Outlook:
    """What those in a line are to expect, one after the other."""

    def __init__(self, scene: Scene) -> None:
        self._desk = _Desk(scene)
        self._length = 0
        self._ahead: dict[int, int] = defaultdict(int)
        self._open_ended: set[int] = set()

    def of(self, waiter: Waiter) -> Forecast:
        """What this one is to expect behind all that have joined."""
        position, promise = self._look_ahead(waiter)
        return Forecast(position, promise.at if promise else None)

    def join(self, waiter: Waiter) -> Forecast:
        """The same, and those after this one are behind it."""
        position, promise = self._look_ahead(waiter)
        want = self._desk.want(waiter)
        if promise is None:
            self._open_ended.add(want)
        else:
            self._desk.take(promise.cards, waiter.ends(promise.at))
        self._ahead[want] += 1
        self._length += 1
        return Forecast(position, promise.at if promise else None)

    def _look_ahead(self, waiter: Waiter) -> tuple[int, Promise | None]:
        rivals = self._desk.rivals(self._desk.want(waiter), self._ahead)
        promise = None
        if self._length < ESTIMATED and not rivals & self._open_ended:
            promise = self._desk.promise(waiter)
        return 1 + sum(map(self._ahead.__getitem__, rivals)), promise


class _Round:
    """One walk along the line."""

    def __init__(self, scene: Scene, max_overtakes: int) -> None:
        self._now = scene.now
        self._desk = _Desk(scene)
        self._most = max_overtakes
        self._blocked: list[tuple[int, Waiter]] = []
        self._counts: dict[str, int] = {}
        self._refused: set[tuple[int, int | None]] = set()
        # Wants that got no card in this round, with the first of them; those of whom one may not be passed any more.
        self._first: dict[int, tuple[int, Waiter]] = {}
        self._tired: set[int] = set()

    def run(self, line: Sequence[Waiter], most: int | None) -> Decision:
        grants: dict[str, tuple[CardShare, ...]] = {}
        for waiter in line:
            if most is not None and len(grants) >= most:
                break
            want = self._desk.want(waiter)
            kind = want, waiter.time_limit_seconds
            # What was refused to one is refused to the next of its kind: room only shrinks in a round.
            cards = None if kind in self._refused else self._serve(waiter, want)
            if cards is None:
                self._refused.add(kind)
                self._first.setdefault(want, (len(self._blocked), waiter))
                self._blocked.append((want, waiter))
                if waiter.overtaken >= self._most:
                    self._tired.add(want)
            else:
                grants[waiter.id] = cards
        passed = {waiter.id: waiter.overtaken for _, waiter in self._blocked if waiter.id in self._counts}
        return Decision(grants, {key: before + self._counts[key] for key, before in passed.items()})

    def _serve(self, waiter: Waiter, want: int) -> tuple[CardShare, ...] | None:
        """Its cards, if it may have any now; they are taken then."""
        rivals = self._desk.rivals(want, self._first)
        if rivals & self._tired:
            return None
        cards = self._desk.place(waiter)
        if cards is not None and rivals:
            _, head = min((self._first[other] for other in rivals), key=itemgetter(0))
            cards = self._harmless(waiter, cards, head)
            if cards is not None:
                self._count(rivals)
        if cards is not None:
            self._desk.take(cards, waiter.ends(self._now))
        return cards

    def _harmless(self, waiter: Waiter, cards: tuple[CardShare, ...], head: Waiter) -> tuple[CardShare, ...] | None:
        """These cards or others, if the promise to the head stays what it is."""
        promise = self._desk.promise(head)
        if promise is None:
            return None
        ends = waiter.ends(self._now)
        gone = ends + GOING if ends else NEVER
        if gone <= promise.at or self._desk.spares(head, promise, cards):
            return cards
        other = self._desk.place(waiter, avoid=frozenset(card.uuid for card in promise.cards))
        return other if other is not None and self._desk.spares(head, promise, other) else None

    def _count(self, rivals: set[int]) -> None:
        for want, passed in self._blocked:
            if want in rivals:
                count = self._counts[passed.id] = self._counts.get(passed.id, 0) + 1
                if passed.overtaken + count >= self._most:
                    self._tired.add(want)


@dataclass(frozen=True)
class _Sums:
    whole: frozenset[GpuUuid]
    shared_bytes: Mapping[GpuUuid, int]


class _Card:
    """What is held of one card: how often the whole of it, how much in shares, and when each ends."""

    def __init__(self) -> None:
        self.whole = 0
        self.shared_bytes = 0
        self._ends: list[tuple[datetime, int | None]] = []
        self._sorted = True
        self._fits_from: dict[int | None, datetime] = {}

    def add(self, memory_bytes: int | None, ends: datetime | None) -> None:
        """Somebody holds this much of it until then."""
        if memory_bytes is None:
            self.whole += 1
        else:
            self.shared_bytes += memory_bytes
        self._ends.append((ends or NEVER, memory_bytes))
        self._sorted = False
        self._fits_from.clear()

    def fits_from(self, size: int | None, budget: int) -> datetime:
        """When so much of it is free if every lease ends on time; the whole for None. `ALREADY` or `NEVER` may be."""
        if size not in self._fits_from:
            self._fits_from[size] = self._look_ahead(size or budget, budget)
        return self._fits_from[size]

    def shared_at(self, at: datetime) -> int:
        """What is still held in shares once everything has ended that ends by then."""
        return sum(memory_bytes or 0 for ends, memory_bytes in self._ends if ends > at)

    def _look_ahead(self, size: int, budget: int) -> datetime:
        whole, shared_bytes = self.whole, self.shared_bytes
        if not whole and budget - shared_bytes >= size:
            return ALREADY
        for ends, memory_bytes in self._in_order():
            if memory_bytes is None:
                whole -= 1
            else:
                shared_bytes -= memory_bytes
            if not whole and budget - shared_bytes >= size:
                return ends
        return NEVER

    def _in_order(self) -> list[tuple[datetime, int | None]]:
        if not self._sorted:
            self._ends.sort(key=itemgetter(0))
            self._sorted = True
        return self._ends


class _Desk:
    """The cards with everything that is held of them.

    Nothing is ever given back at a desk: so what it has found out about a card holds until somebody takes of that card.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._cards: dict[GpuUuid, _Card] = defaultdict(_Card)
        for held in scene.held:
            for card in held.cards:
                self._cards[card.uuid].add(card.memory_bytes, held.ends)
        self._wants: dict[Want, int] = {}
        self._able: list[Mapping[GpuUuid, int]] = []
        self._rivals: list[set[int]] = []
        # These are about this very moment: forgotten when somebody takes anything.
        self._sums: _Sums | None = None
        self._placed: dict[tuple[int, frozenset[GpuUuid]], tuple[CardShare, ...] | None] = {}
        self._promises: dict[int, Promise | None] = {}
        self._spared: dict[tuple[int, tuple[CardShare, ...]], bool] = {}

    def want(self, waiter: Waiter) -> int:
        """A number for what decides which cards could serve it."""
        number = self._wants.setdefault(waiter.want, len(self._wants))
        if number == len(self._able):
            budgets = able_cards(waiter.request, self._scene.inventory, self._scene.policy)
            mine = {uuid: budget for uuid, budget in budgets.items() if uuid not in waiter.barred}
            self._able.append(mine if len(mine) >= (waiter.request.count or 1) else {})
            self._rivals.append(set())
            for other, theirs in enumerate(self._able):
                if not theirs.keys().isdisjoint(self._able[number]):
                    self._rivals[number].add(other)
                    self._rivals[other].add(number)
        return number

    def rivals(self, want: int, others: Mapping[int, object]) -> set[int]:
        """Those of them that one card could serve as well as this one."""
        return self._rivals[want] & others.keys()

    def take(self, cards: tuple[CardShare, ...], ends: datetime | None) -> None:
        """From now on, or from when those before it have ended, somebody holds them."""
        for card in cards:
            self._cards[card.uuid].add(card.memory_bytes, ends)
        self._sums = None
        self._placed.clear()
        self._promises.clear()
        self._spared.clear()

    def place(self, waiter: Waiter, avoid: frozenset[GpuUuid] = frozenset()) -> tuple[CardShare, ...] | None:
        """Cards for it now, whatever others want; None where there are none."""
        key = (self.want(waiter), avoid)
        if key not in self._placed:
            if self._sums is None:
                whole = frozenset(uuid for uuid, card in self._cards.items() if card.whole)
                shared = {uuid: card.shared_bytes for uuid, card in self._cards.items() if card.shared_bytes}
                self._sums = _Sums(whole, shared)
            taken = _Sums(self._sums.whole | waiter.barred | avoid, self._sums.shared_bytes)
            self._placed[key] = self._place(waiter, taken)
        return self._placed[key]

    def promise(self, waiter: Waiter) -> Promise | None:
        """When it fits at the earliest if nobody else gets anything before."""
        want = self.want(waiter)
        if want not in self._promises:
            self._promises[want] = self._look_ahead(waiter, want)
        return self._promises[want]

    def spares(self, head: Waiter, promise: Promise, cards: tuple[CardShare, ...]) -> bool:
        """Whether the promise to the head stays what it is with these cards held until after it."""
        key = (self.want(head), cards)
        if key not in self._spared:
            self._spared[key] = self._can_spare(head, promise, cards)
        return self._spared[key]

    def _can_spare(self, head: Waiter, promise: Promise, cards: tuple[CardShare, ...]) -> bool:
        size, able = head.request.memory_bytes, self._able[self.want(head)]
        room = sum(self._fits_from(uuid, size, budget) <= promise.at for uuid, budget in able.items())
        for card in cards:
            budget = able.get(card.uuid)
            if budget is not None and self._fits_from(card.uuid, size, budget) <= promise.at:
                left = budget - self._cards[card.uuid].shared_at(promise.at)
                if card.memory_bytes is None or left - card.memory_bytes < (size or budget):
                    room -= 1
        return room >= (head.request.count or 1)

    def _fits_from(self, uuid: GpuUuid, size: int | None, budget: int) -> datetime:
        return self._cards[uuid].fits_from(size, budget)

    def _look_ahead(self, waiter: Waiter, want: int) -> Promise | None:
        size, need = waiter.request.memory_bytes, waiter.request.count or 1
        moments = {uuid: self._fits_from(uuid, size, budget) for uuid, budget in self._able[want].items()}
        # A card that fits goes on fitting, so enough of them fit when the last of the first ones does.
        first = sorted(moments.values())[need - 1 : need]
        if not first or first[0] == NEVER:
            return None
        at = first[0]
        free = {uuid: self._cards[uuid].shared_at(at) for uuid, moment in moments.items() if moment <= at}
        others = frozenset(gpu.uuid for gpu in self._scene.inventory.gpus if gpu.uuid not in free)
        cards = self._place(waiter, _Sums(others, {uuid: held for uuid, held in free.items() if held}))
        return Promise(max(at, self._scene.now), cards) if cards is not None else None

    def _place(self, waiter: Waiter, taken: Taken) -> tuple[CardShare, ...] | None:
        try:
            return place(waiter.request, self._scene.inventory, taken, self._scene.policy)
        except Refused:
            return None
