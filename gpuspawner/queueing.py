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

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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

# Further back an estimate would be a guess upon guesses.
ESTIMATED = 20

Kind = tuple[GpuRequest, "int | None", frozenset[GpuUuid]]


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
    def kind(self) -> Kind:
        """What decides whether it can be served: two of one kind get the same answer."""
        return self.request, self.time_limit_seconds, self.barred

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
    desk = _Desk(scene)
    ahead: dict[int, int] = defaultdict(int)
    open_ended: set[int] = set()
    found = {}
    for index, waiter in enumerate(line):
        kind = desk.kind(waiter)
        rivals = {other for other in ahead if desk.compete(other, kind)}
        promise = None
        if index < ESTIMATED and not rivals & open_ended:
            promise = desk.promise(waiter)
        if promise is None:
            open_ended.add(kind)
        else:
            desk.take(promise.cards, waiter.ends(promise.at))
        found[waiter.id] = Forecast(1 + sum(ahead[other] for other in rivals), promise.at if promise else None)
        ahead[kind] += 1
    return found


class _Round:
    """One walk along the line."""

    def __init__(self, scene: Scene, max_overtakes: int) -> None:
        self._now = scene.now
        self._desk = _Desk(scene)
        self._most = max_overtakes
        self._blocked: list[tuple[int, Waiter]] = []
        self._counts: dict[str, int] = {}
        # Kinds that got no card in this round, with the first of them; those of whom one may not be passed any more.
        self._first: dict[int, tuple[int, Waiter]] = {}
        self._tired: set[int] = set()

    def run(self, line: Sequence[Waiter], most: int | None) -> Decision:
        grants: dict[str, tuple[CardShare, ...]] = {}
        for waiter in line:
            if most is not None and len(grants) >= most:
                break
            kind = self._desk.kind(waiter)
            # What was refused to one is refused to the next of its kind: room only shrinks in a round.
            cards = None if kind in self._first else self._serve(waiter, kind)
            if cards is None:
                self._first.setdefault(kind, (len(self._blocked), waiter))
                self._blocked.append((kind, waiter))
                if waiter.overtaken >= self._most:
                    self._tired.add(kind)
            else:
                grants[waiter.id] = cards
        passed = {waiter.id: waiter.overtaken for _, waiter in self._blocked if waiter.id in self._counts}
        return Decision(grants, {key: before + self._counts[key] for key, before in passed.items()})

    def _serve(self, waiter: Waiter, kind: int) -> tuple[CardShare, ...] | None:
        """Its cards, if it may have any now; they are taken then."""
        rivals = {other for other in self._first if self._desk.compete(other, kind)}
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
        if self._keeps(promise, head, waiter, cards):
            return cards
        other = self._desk.place(waiter, avoid=frozenset(card.uuid for card in promise.cards))
        return other if other is not None and self._keeps(promise, head, waiter, other) else None

    def _keeps(self, promise: Promise, head: Waiter, waiter: Waiter, cards: tuple[CardShare, ...]) -> bool:
        ends = waiter.ends(self._now)
        after = self._desk.promise(head, Held(cards, ends=ends + GOING if ends else None))
        return after is not None and after.at <= promise.at

    def _count(self, rivals: set[int]) -> None:
        for kind, passed in self._blocked:
            if kind in rivals:
                count = self._counts[passed.id] = self._counts.get(passed.id, 0) + 1
                if passed.overtaken + count >= self._most:
                    self._tired.add(kind)


@dataclass(frozen=True)
class _Sums:
    whole: frozenset[GpuUuid]
    shared_bytes: Mapping[GpuUuid, int]


class _Tally:
    """How often each card is held whole, and how much of it in shares."""

    def __init__(self, held: Iterable[tuple[CardShare, ...]] = ()) -> None:
        self.whole: dict[GpuUuid, int] = {}
        self.shared: dict[GpuUuid, int] = {}
        for cards in held:
            self.add(cards)

    def add(self, cards: tuple[CardShare, ...], sign: int = 1) -> None:
        """Count these, or with -1 count them no longer."""
        for card in cards:
            if card.memory_bytes is None:
                self.whole[card.uuid] = self.whole.get(card.uuid, 0) + sign
            else:
                self.shared[card.uuid] = self.shared.get(card.uuid, 0) + sign * card.memory_bytes

    def copy(self) -> _Tally:
        """One that can be changed."""
        tally = _Tally()
        tally.whole, tally.shared = dict(self.whole), dict(self.shared)
        return tally

    def room(self, uuid: GpuUuid, budget: int) -> int:
        """What is left of a card in bytes; all of `budget` where nobody has any of it, less than 0 where it is out."""
        return -1 if self.whole.get(uuid) else budget - self.shared.get(uuid, 0)

    def sums(self, closed: frozenset[GpuUuid]) -> _Sums:
        """For `place`; the closed cards count as if somebody had them alone."""
        whole = closed.union(uuid for uuid, times in self.whole.items() if times)
        return _Sums(whole, {uuid: size for uuid, size in self.shared.items() if size})


class _Desk:
    """The cards with everything that is held of them, in the order in which it ends."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._ends: list[tuple[datetime, int, tuple[CardShare, ...]]] = sorted(
            (held.ends or NEVER, number, held.cards) for number, held in enumerate(scene.held)
        )
        self._number = len(self._ends)
        self._tally = _Tally(held.cards for held in scene.held)
        self._kinds: dict[Kind, int] = {}
        self._able: list[Mapping[GpuUuid, int]] = []
        self._rivals: dict[tuple[int, int], bool] = {}

    def kind(self, waiter: Waiter) -> int:
        """A number for what decides whether it can be served."""
        number = self._kinds.setdefault(waiter.kind, len(self._kinds))
        if number == len(self._able):
            budgets = able_cards(waiter.request, self._scene.inventory, self._scene.policy)
            mine = {uuid: budget for uuid, budget in budgets.items() if uuid not in waiter.barred}
            self._able.append(mine if len(mine) >= (waiter.request.count or 1) else {})
        return number

    def compete(self, one: int, other: int) -> bool:
        """Whether one card could serve both kinds."""
        key = (one, other)
        if key not in self._rivals:
            self._rivals[key] = not self._able[one].keys().isdisjoint(self._able[other])
        return self._rivals[key]

    def take(self, cards: tuple[CardShare, ...], ends: datetime | None) -> None:
        """From now on, or from when those before it have ended, somebody holds them."""
        insort(self._ends, (ends or NEVER, self._number, cards))
        self._number += 1
        self._tally.add(cards)

    def place(self, waiter: Waiter, avoid: frozenset[GpuUuid] = frozenset()) -> tuple[CardShare, ...] | None:
        """Cards for it now, whatever others want; None where there are none."""
        return self._place(waiter, self._tally.sums(waiter.barred | avoid))

    def promise(self, waiter: Waiter, extra: Held | None = None) -> Promise | None:
        """When it fits at the earliest if nobody else gets anything before, `extra` also being held."""
        ends, tally = self._ends, self._tally.copy()
        if extra is not None:
            ends = list(ends)
            insort(ends, (extra.ends or NEVER, self._number, extra.cards))
            tally.add(extra.cards)
        at = self._first_fit(waiter, ends, tally)
        cards = self._place(waiter, tally.sums(waiter.barred)) if at is not None else None
        return Promise(at, cards) if at is not None and cards is not None else None

    def _first_fit(
        self, waiter: Waiter, ends: Sequence[tuple[datetime, int, tuple[CardShare, ...]]], tally: _Tally
    ) -> datetime | None:
        """The moment; `tally` is then what is still held at it."""
        able, now = self._able[self.kind(waiter)], self._scene.now
        size, need = waiter.request.memory_bytes, waiter.request.count or 1
        # For a whole card nothing of it may be taken.
        fit = {uuid for uuid, budget in able.items() if tally.room(uuid, budget) >= (size or budget)}
        if not able or len(fit) >= need:
            return now if able else None
        for end, _, cards in ends:
            if end == NEVER:
                return None
            tally.add(cards, -1)
            for card in cards:
                budget = able.get(card.uuid)
                if budget is not None and tally.room(card.uuid, budget) >= (size or budget):
                    fit.add(card.uuid)
            if len(fit) >= need:
                return max(end, now)
        return None

    def _place(self, waiter: Waiter, taken: Taken) -> tuple[CardShare, ...] | None:
        try:
            return place(waiter.request, self._scene.inventory, taken, self._scene.policy)
        except Refused:
            return None
