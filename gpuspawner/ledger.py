"""Reservations in flight, and the line of those that wait.

The truth about leases is on the containers' labels (law 1). Between the decision and the moment when the container is
listed there is a gap: cards are promised to a start that nobody can see yet. This module covers it: `reserve` looks at
the labels, adds what is in flight, decides by the rules of `queueing` and writes down what it has given away in one
step under one lock. Nothing here outlives the process, and nothing has to.

A look at the labels takes time, and a start may finish meanwhile. So a reservation that has become a container stays
counted for every look that began before that: no moment exists in which neither of the two shows it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextvars import Context
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property

from gpuspawner.errors import NoRoom, QueueTimedOut, Refused
from gpuspawner.gpus import GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held, Holdings
from gpuspawner.placement import Occupancy, Policy, others_wait, place
from gpuspawner.queueing import Forecast, Scene, Waiter, decide, forecast
from gpuspawner.terms import Claim, People, Rules, Terms, may_wait
from gpuspawner.texts import Text
from gpuspawner.units import format_duration

LOG = logging.getLogger(__name__)

# The line moves when somebody lets go of a card, and is looked at this often besides.
TICK_SECONDS = 1.5


@dataclass(frozen=True)
class Grant:
    """What somebody got. `time_limit_seconds` may be less than was asked for; `notice` says why then."""

    cards: tuple[CardShare, ...] = ()
    time_limit_seconds: int | None = None
    notice: Text | None = None


@dataclass(frozen=True)
class Standing:
    """The cards and who holds how much of them until when, at one moment; and those that wait, in their order.

    `claims` are what those in the line ask for.
    """

    inventory: Inventory
    held: tuple[Held, ...]
    line: tuple[Waiter, ...] = ()
    claims: tuple[Claim, ...] = ()

    @cached_property
    def occupancy(self) -> Occupancy:
        """What is held, whoever holds it."""
        return Occupancy.of(*(held.cards for held in self.held))


@dataclass(eq=False)
class Place:
    """A place in the line. `forecast` is None until the line was first looked at; `trouble` says why it stands still.

    `terms` are those of the last look. `moved` is set, and replaced, whenever one of the two has changed.
    """

    waiter: Waiter
    claim: Claim
    terms: Terms = field(default_factory=Terms)
    forecast: Forecast | None = None
    trouble: Text | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    granted: asyncio.Future[Grant] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def show(self, forecast: Forecast | None, trouble: Text | None) -> None:
        """Tell whoever watches, if there is anything new."""
        if (forecast, trouble) != (self.forecast, self.trouble):
            self.forecast, self.trouble = forecast, trouble
            self.moved.set()
            self.moved = asyncio.Event()


class Ledger:
    """One for each Hub process. All but `in_flight` is called on the Hub's event loop.

    Args:
        look_at_labels: a fresh list of every container that holds a lease. It may raise: then nothing is leased.
        look_at_gpus: the cards of this machine now. It never raises.
        policy: how shares are counted.
        max_overtakes: how often somebody who waits may be passed by those behind.
        rules: limits and reservations.
        look_at_people: what those rules have to know of these users; its `waiting` is filled in here.
        clock: the time in UTC, which the ends of leases are compared with.
    """

    def __init__(
        self,
        look_at_labels: Callable[[], Awaitable[Holdings]],
        look_at_gpus: Callable[[], Awaitable[Inventory]],
        policy: Policy,
        *,
        max_overtakes: int = 3,
        rules: Rules | None = None,
        look_at_people: Callable[[Collection[str]], People] = lambda users: People(),
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._look_at_labels = look_at_labels
        self._look_at_gpus = look_at_gpus
        self.policy = policy
        self._max_overtakes = max_overtakes
        self.rules = rules or Rules()
        self._look_at_people = look_at_people
        self._clock = clock
        self._lock = threading.Lock()
        self._now = 0
        self._looks: set[int] = set()
        self._in_flight: dict[str, Held] = {}
        self._settled: dict[str, tuple[int, Held]] = {}
        self._given: set[GpuUuid] = set()
        self._line: dict[str, Place] = {}
        self._moving: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()

    async def standing(self) -> Standing:
        """What is free right now, for the form. Raises what `look_at_labels` raises."""
        inventory = await self._look_at_gpus()
        began = self._begin_look()
        try:
            seen = await self._look_at_labels()
            with self._lock:
                claims = tuple(each.claim for each in self._line.values())
                return Standing(inventory, self._held(began, seen), self._waiters(), claims)
        finally:
            self._end_look(began)

    async def reserve(
        self,
        claim: Claim,
        *,
        wait_seconds: float | None = None,
        on_wait: Callable[[Place | None], None] = lambda place: None,
    ) -> Grant:
        """Find cards and hold them until `settle` or `release`; however this ends, no place in the line is left.

        Args:
            wait_seconds: how long to wait in the line where nothing fits now; None: not at all.
            on_wait: called with the place when the waiting begins, and with None when it has ended well.

        Raises:
            NoRoom, GpusUnknown: nothing fits, or nothing can be known; nothing is held.
            OverLimit: the person has had enough for now; nothing is held.
            QueueTimedOut: nothing became free in time.
            EngineError: the labels could not be read; nothing is held.
        """
        if claim.request is None:
            with self._lock:
                self._in_flight[claim.lease_id] = Held((), claim.owner)
            return Grant((), claim.time_limit_seconds)
        newcomer = Place(Waiter(claim.lease_id, claim.request, claim.time_limit_seconds), claim)
        try:
            await self._look(newcomer, joins=wait_seconds is not None)
            if newcomer.granted.done():
                return newcomer.granted.result()
            return await self._wait(newcomer, wait_seconds or 0.0, on_wait)
        except BaseException:
            self.release(claim.lease_id)
            raise
        finally:
            self._leave(claim.lease_id)

    def settle(self, lease_id: str) -> None:
        """The container of this lease exists and carries its labels: from now on they speak for it."""
        with self._lock:
            held = self._in_flight.pop(lease_id, None)
            if held and held.cards:
                self._now += 1
                self._settled[lease_id] = (self._now, held)
                self._forget()

    def release(self, lease_id: str) -> None:
        """There is no container of this lease (any more). Calling it twice, or without a reservation, is harmless."""
        with self._lock:
            self._in_flight.pop(lease_id, None)
            self._settled.pop(lease_id, None)
        self.nudge()

    def nudge(self) -> None:
        """Something may have become free: look at once whether the line moves."""
        self._nudged.set()

    def in_flight(self) -> frozenset[str]:
        """The leases, those without a card too, whose containers may still be made at this moment."""
        with self._lock:
            return frozenset(self._in_flight)

    def promised(self) -> frozenset[GpuUuid]:
        """The cards of which something is promised to a start whose container may not be seen yet."""
        with self._lock:
            return frozenset(card.uuid for held in self._in_flight.values() for card in held.cards)

    def take_given(self) -> frozenset[GpuUuid]:
        """The cards of which something was promised since the last call, whatever has become of it."""
        with self._lock:
            given, self._given = frozenset(self._given), set()
            return given

    # --- the line -----------------------------------------------------------------------------------------------------

    async def _wait(self, newcomer: Place, seconds: float, on_wait: Callable[[Place | None], None]) -> Grant:
        on_wait(newcomer)
        # In a context of its own: the calls that it makes belong to nobody's start.
        if self._moving is None or self._moving.done():
            self._moving = Context().run(asyncio.ensure_future, self._move())
        done, _ = await asyncio.wait([newcomer.granted], timeout=seconds)
        if not done:
            raise _waited_in_vain(seconds)
        on_wait(None)
        return newcomer.granted.result()

    def _leave(self, lease_id: str) -> None:
        if self._line.pop(lease_id, None):
            self.nudge()

    async def _move(self) -> None:
        """Give away what becomes free, as long as anybody waits."""
        while self._line:
            self._nudged.clear()
            try:
                await self._look()
            except Refused as error:
                LOG.warning("The line cannot move now: %s %s", error, error.detail)
                self._show({}, error.text)
            except Exception:
                LOG.exception("The line could not be looked at")
            if self._line:
                await asyncio.wait([wake := asyncio.ensure_future(self._nudged.wait())], timeout=TICK_SECONDS)
                wake.cancel()

    async def _look(self, newcomer: Place | None = None, *, joins: bool = False) -> None:
        """One look, and one decision for all that wait; `newcomer` comes last, and may stay if it `joins`."""
        inventory = await self._look_at_gpus()
        began = self._begin_look()
        try:
            seen = await self._look_at_labels()
            with self._lock:
                scene = Scene(inventory, self._held(began, seen), self.policy, self._clock())
                scene = self._decide(scene, newcomer, joins=joins)
        finally:
            self._end_look(began)
        if newcomer is None or (joins and newcomer.waiter.id in self._line):
            self._show(forecast(self._waiters(), scene), inventory.trouble)

    def _decide(self, scene: Scene, newcomer: Place | None, *, joins: bool) -> Scene:
        """The scene afterwards. Raises the refusal of the newcomer, where it gets nothing and does not join."""
        places = dict(self._line)
        if newcomer is not None:
            places[newcomer.waiter.id] = newcomer
        # Where rules count what people have, each grant changes what the next one may have.
        most = None if self.rules.trivial else 1
        people = self._people(places.values(), scene)
        while True:
            able = self._able(places.values(), scene, people)
            decision = decide(able, scene, max_overtakes=self._max_overtakes, most=most)
            for lease_id, count in decision.overtaken.items():
                places[lease_id].waiter = replace(places[lease_id].waiter, overtaken=count)
            served = [self._serve(places.pop(lease_id), cards, scene) for lease_id, cards in decision.grants.items()]
            scene = replace(scene, held=(*scene.held, *served))
            if most is None or not served:
                break
        if newcomer is not None and not newcomer.granted.done():
            refusal = self._refusal(newcomer, scene)
            if not joins or not may_wait(refusal):
                raise refusal
            # Whoever may not have more now may not wait for it either; and the line has limits of its own.
            terms = self.rules.terms(newcomer.claim, scene, people, waits=True)
            if terms.refusal is not None and not may_wait(terms.refusal):
                raise terms.refusal
            self._line[newcomer.waiter.id] = newcomer
        return scene

    def _people(self, places: Iterable[Place], scene: Scene) -> People:
        if self.rules.trivial:
            return People()
        owners = [held.owner for held in scene.held] + [place.claim.owner for place in places]
        people = self._look_at_people({owner.user for owner in owners if owner is not None})
        return replace(people, waiting=[place.claim for place in self._line.values()])

    def _able(self, places: Iterable[Place], scene: Scene, people: People) -> list[Waiter]:
        """Those whom the rules let have something now, on their terms."""
        able = []
        for each in places:
            terms = each.terms = self.rules.terms(each.claim, scene, people)
            if (terms.barred, terms.time_limit_seconds) != (each.waiter.barred, each.waiter.time_limit_seconds):
                each.waiter = replace(each.waiter, barred=terms.barred, time_limit_seconds=terms.time_limit_seconds)
            if terms.refusal is None:
                able.append(each.waiter)
        return able

    def _serve(self, served: Place, cards: tuple[CardShare, ...], scene: Scene) -> Held:
        waiter = served.waiter
        held = self._in_flight[waiter.id] = Held(cards, served.claim.owner, waiter.ends(scene.now))
        self._given.update(card.uuid for card in cards)
        self._line.pop(waiter.id, None)
        served.granted.set_result(Grant(cards, waiter.time_limit_seconds, served.terms.notice))
        return held

    def _refusal(self, newcomer: Place, scene: Scene) -> Refused:
        if newcomer.terms.refusal is not None:
            return newcomer.terms.refusal
        waiter = newcomer.waiter
        barred = (CardShare(uuid) for uuid in waiter.barred)
        try:
            place(waiter.request, scene.inventory, Occupancy.of(*(h.cards for h in scene.held), barred), scene.policy)
        except Refused as refusal:
            return refusal
        return others_wait(waiter.request)

    def _show(self, forecasts: dict[str, Forecast], trouble: Text | None) -> None:
        for lease_id, waiting in self._line.items():
            refusal = waiting.terms.refusal
            why = (refusal.why if isinstance(refusal, NoRoom) else refusal.text) if refusal else None
            waiting.show(forecasts.get(lease_id, waiting.forecast), trouble or why)

    def _waiters(self) -> tuple[Waiter, ...]:
        return tuple(each.waiter for each in self._line.values())

    # --- what is held -------------------------------------------------------------------------------------------------

    def _begin_look(self) -> int:
        with self._lock:
            self._now += 1
            self._looks.add(self._now)
            return self._now

    def _end_look(self, began: int) -> None:
        with self._lock:
            self._looks.discard(began)
            self._forget()

    def _forget(self) -> None:
        """Drop settled reservations that every look under way is young enough to see on the labels."""
        oldest = min(self._looks, default=self._now + 1)
        self._settled = {key: entry for key, entry in self._settled.items() if entry[0] > oldest}

    def _held(self, began: int, seen: Holdings) -> tuple[Held, ...]:
        hidden = {key: held for key, (settled, held) in self._settled.items() if settled > began}
        return tuple({**hidden, **self._in_flight, **seen}.values())


def _waited_in_vain(seconds: float) -> QueueTimedOut:
    waited = format_duration(int(seconds))
    return QueueTimedOut(
        Text(
            f"No GPU became free for you within {waited.en}. Join the line again, or choose another profile.",
            f"{waited.ko} 동안 사용 가능한 GPU가 없었습니다. 다시 대기하거나 다른 프로필을 선택하세요.",
        )
    )
