"""The class days of `classday.py`, and three ways to give out the same cards on them.

A day is drawn from a seed and from nothing else, before anybody is served: who comes when, what they ask for, how long
they work, how long they forget to stop, how long they would wait. So all ways meet the same people. The clock is a
number of seconds after eight; nothing here reads a real one.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Protocol

from gpuspawner.errors import Refused
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.gpus import GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held
from gpuspawner.placement import Occupancy, Policy, place
from gpuspawner.profiles import GpuRequest
from gpuspawner.queueing import Scene, Waiter, decide, forecast

EIGHT = datetime(2026, 3, 2, 8, 0, tzinfo=timezone.utc)
MINUTE, HOUR = 60, 3600
LAST_ARRIVAL, CLOSES = 12 * HOUR, 14 * HOUR
CLASSES = (1 * HOUR, 5 * HOUR, 8 * HOUR)
IN_CLASS = 0.5
POLICY = Policy()
MAX_OVERTAKES = 3

Grants = Mapping[str, tuple[CardShare, ...]]


@dataclass(frozen=True)
class Offer:
    """What one may ask for: how many of a hundred do, for how long at most, and how long half of them work."""

    name: str
    request: GpuRequest
    percent: int
    limit_seconds: int
    works_seconds: int


def _request(**asked: object) -> GpuRequest:
    return GpuRequest.model_validate(asked)


OFFERS = (
    Offer("4 GiB", _request(memory="4G"), 30, 2 * HOUR, 35 * MINUTE),
    Offer("8 GiB", _request(memory="8G"), 25, 3 * HOUR, 50 * MINUTE),
    Offer("16 GiB", _request(memory="16G"), 10, 4 * HOUR, 70 * MINUTE),
    Offer("1 card", _request(count=1), 25, 4 * HOUR, 80 * MINUTE),
    Offer("2 cards", _request(count=2), 10, 4 * HOUR, 100 * MINUTE),
)


@dataclass(frozen=True)
class Mix:
    """What the people of a day ask for, and how many of them there are for each card."""

    name: str
    offers: tuple[Offer, ...]
    visits_per_card: float


# The second one leaves nothing to choose but the order and the moment: no small request can slip by a big one.
MIXES = (
    Mix("all kinds", OFFERS, 10),
    Mix("one card each", (Offer("1 card", _request(count=1), 100, 4 * HOUR, 80 * MINUTE),), 7),
)


@dataclass(frozen=True)
class Visit:
    """Somebody comes once. `number` counts the day's visits; times in seconds, `arrives` after eight."""

    number: int
    arrives: int
    offer: Offer
    works: int
    forgets: int
    patience: int
    retries_seed: str

    @property
    def id(self) -> str:
        """As the line knows it."""
        return str(self.number)

    @property
    def lasts(self) -> int:
        """How long the lease is held: the work, then an idle tail, and not beyond the time limit."""
        return min(self.works + self.forgets, self.offer.limit_seconds)


@dataclass(frozen=True)
class Spell:
    """How it went for one visit: `began` and `left` after eight. Without cards `began` is None and `left` is giving up.

    `estimate` is what the page said on arrival about when it would begin; None where it said nothing.
    """

    visit: Visit
    left: int
    began: int | None = None
    cards: tuple[CardShare, ...] = ()
    estimate: int | None = None

    @property
    def waited(self) -> int:
        """Until it had cards, or until it gave up."""
        return (self.left if self.began is None else self.began) - self.visit.arrives


# --- the day --------------------------------------------------------------------------------------------------------


def draw_day(seed: str, cards: int, mix: Mix) -> list[Visit]:
    """The visits of a day in the order in which they come; the same for the same arguments."""
    rng = random.Random(seed)  # noqa: S311 - a day that can be drawn again is what is wanted
    arrivals = sorted(_arrival(rng) for _ in range(round(cards * mix.visits_per_card)))
    return [_visit(rng, mix.offers, number, arrives, f"{seed}/{number}") for number, arrives in enumerate(arrivals)]


def _arrival(rng: random.Random) -> int:
    """Half of them trickle in all day; half come to a class, most within ten minutes of its beginning."""
    if rng.random() >= IN_CLASS:
        return rng.randrange(LAST_ARRIVAL)
    return max(0, round(rng.gauss(rng.choice(CLASSES), 5 * MINUTE)))


def _visit(rng: random.Random, offers: Sequence[Offer], number: int, arrives: int, retries_seed: str) -> Visit:
    offer = rng.choices(offers, [each.percent for each in offers])[0]
    works = max(5 * MINUTE, round(offer.works_seconds * rng.lognormvariate(0, 0.6)))
    # Half stop at once, a third leave the tab open for a while, the others until the time limit ends it.
    habit = rng.random()
    forgets = rng.randrange(2 * MINUTE)
    if habit >= 0.5:
        forgets = round(rng.expovariate(1 / (25 * MINUTE))) if habit < 0.85 else offer.limit_seconds
    return Visit(number, arrives, offer, works, forgets, rng.randrange(30 * MINUTE, 180 * MINUTE), retries_seed)


def inventory_of(cards: int) -> Inventory:
    """So many cards of 24 GiB."""
    return asyncio.run(FakeGPUs(f"{cards}x24GiB").inventory())


# --- the ways -------------------------------------------------------------------------------------------------------


class Way(Protocol):
    """One way to decide who gets cards. `reloads`: whoever got none has to ask again."""

    name: str
    reloads: bool

    def serve(self, waiting: Sequence[Visit], asks: Visit | None, scene: Scene) -> Grants:
        """Cards for those who get some now, by id; `waiting` in order of arrival, `asks` is who presses the button."""

    def estimate(self, waiting: Sequence[Visit], visit: Visit, scene: Scene) -> datetime | None:
        """What somebody who waits now is told."""


class TheLine:
    """What this project does: the real `queueing`, which asks the real `placement`."""

    name = "the line"
    reloads = False

    def __init__(self) -> None:
        self._overtaken: dict[str, int] = {}

    def serve(self, waiting: Sequence[Visit], asks: Visit | None, scene: Scene) -> Grants:
        """Everybody who waits is looked at, whatever happened."""
        decision = decide(self._line(waiting), scene, max_overtakes=MAX_OVERTAKES)
        self._overtaken.update(decision.overtaken)
        return decision.grants

    def estimate(self, waiting: Sequence[Visit], visit: Visit, scene: Scene) -> datetime | None:
        """As the pending page shows it first."""
        return forecast(self._line(waiting), scene)[visit.id].at

    def _line(self, waiting: Sequence[Visit]) -> list[Waiter]:
        return [
            Waiter(each.id, each.offer.request, each.offer.limit_seconds, overtaken=self._overtaken.get(each.id, 0))
            for each in waiting
        ]


class FixedCards:
    """Everybody has a card, dealt out in turn (two neighbours for two cards), and waits for that one in order."""

    name = "fixed cards"
    reloads = False

    def serve(self, waiting: Sequence[Visit], asks: Visit | None, scene: Scene) -> Grants:
        """Whoever fits on the own card, and has nobody before in the line for it."""
        taken = [held.cards for held in scene.held]
        occupancy = Occupancy.of(*taken)
        wanted: set[GpuUuid] = set()
        found = {}
        for visit in waiting:
            own = self._own(visit, scene.inventory)
            uuids = {gpu.uuid for gpu in own.gpus}
            cards = None if uuids & wanted else _placed(visit, own, occupancy)
            if cards is None:
                wanted |= uuids
            else:
                found[visit.id] = cards
                taken.append(cards)
                occupancy = Occupancy.of(*taken)
            if len(wanted) == len(scene.inventory.gpus):
                break
        return found

    def estimate(self, waiting: Sequence[Visit], visit: Visit, scene: Scene) -> datetime | None:
        """Nobody says."""
        return None

    def _own(self, visit: Visit, inventory: Inventory) -> Inventory:
        cards = inventory.gpus
        return Inventory(tuple(cards[(visit.number + n) % len(cards)] for n in range(visit.offer.request.count or 1)))


class NoLine:
    """Whoever asks gets what is free at that moment; the others press reload every few minutes."""

    name = "no line"
    reloads = True

    def serve(self, waiting: Sequence[Visit], asks: Visit | None, scene: Scene) -> Grants:
        """Only the one who asks."""
        cards = _placed(asks, scene.inventory, Occupancy.of(*(held.cards for held in scene.held))) if asks else None
        return {asks.id: cards} if asks and cards else {}

    def estimate(self, waiting: Sequence[Visit], visit: Visit, scene: Scene) -> datetime | None:
        """Nobody says."""
        return None


WAYS: tuple[type[TheLine] | type[FixedCards] | type[NoLine], ...] = (TheLine, FixedCards, NoLine)


def _placed(visit: Visit, inventory: Inventory, occupancy: Occupancy) -> tuple[CardShare, ...] | None:
    try:
        return place(visit.offer.request, inventory, occupancy, POLICY)
    except Refused:
        return None


# --- how it goes ----------------------------------------------------------------------------------------------------

# At one moment cards come back first, and nobody gives up who could be served then.
ENDS, ASKS, GIVES_UP = range(3)


@dataclass
class _Lab:
    """The state of a day under way."""

    inventory: Inventory
    way: Way
    events: list[tuple[int, int, int]]
    visits: Sequence[Visit]
    held: dict[int, Held] = field(default_factory=dict)
    waiting: dict[int, Visit] = field(default_factory=dict)
    estimates: dict[int, int] = field(default_factory=dict)
    spells: dict[int, Spell] = field(default_factory=dict)
    presses: dict[int, random.Random] = field(default_factory=dict)

    def scene(self, at: int) -> Scene:
        return Scene(self.inventory, tuple(self.held.values()), POLICY, EIGHT + timedelta(seconds=at))

    def happen(self, at: int, what: int, number: int) -> None:
        visit = self.visits[number]
        if what == ENDS:
            del self.held[number]
        elif what == GIVES_UP:
            if self.waiting.pop(number, None) is None:
                return
            self.spells[number] = Spell(visit, at, estimate=self.estimates.get(number))
        elif at > visit.arrives and number not in self.waiting:
            return
        else:
            self.waiting[number] = visit
        grants = self.way.serve(tuple(self.waiting.values()), visit if what == ASKS else None, self.scene(at))
        for key, cards in grants.items():
            self._begin(at, self.visits[int(key)], cards)
        if what == ASKS and number in self.waiting:
            self._refuse(at, visit)

    def _begin(self, at: int, visit: Visit, cards: tuple[CardShare, ...]) -> None:
        ends = EIGHT + timedelta(seconds=at + visit.offer.limit_seconds)
        self.held[visit.number] = Held(cards, ends=ends)
        del self.waiting[visit.number]
        estimate = self.estimates.get(visit.number)
        self.spells[visit.number] = Spell(visit, at + visit.lasts, at, cards, estimate)
        heapq.heappush(self.events, (at + visit.lasts, ENDS, visit.number))

    def _refuse(self, at: int, visit: Visit) -> None:
        if at == visit.arrives:
            heapq.heappush(self.events, (at + visit.patience, GIVES_UP, visit.number))
            said = self.way.estimate(tuple(self.waiting.values()), visit, self.scene(at))
            if said is not None:
                self.estimates[visit.number] = round((said - EIGHT).total_seconds())
        if self.way.reloads:
            rng = self.presses.setdefault(visit.number, random.Random(visit.retries_seed))  # noqa: S311 - as above
            heapq.heappush(self.events, (at + rng.randrange(2 * MINUTE, 10 * MINUTE), ASKS, visit.number))


def run_day(visits: Sequence[Visit], inventory: Inventory, way: Way) -> list[Spell]:
    """How the day goes for each visit, in order of arrival, until the last one has left."""
    events = [(visit.arrives, ASKS, visit.number) for visit in visits]
    heapq.heapify(events)
    lab = _Lab(inventory, way, events, visits)
    while events:
        lab.happen(*heapq.heappop(events))
    return [lab.spells[visit.number] for visit in visits]
