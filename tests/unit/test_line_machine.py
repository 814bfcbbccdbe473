"""The waiting line under everything that can happen at once.

A state machine over the real ledger, the rules of the line, limits and reservations, the caretaker and its file; the
engine, the driver and time are models, so that each await is a step and every interleaving can be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from gpuspawner.cards import CardsFile
from gpuspawner.caretaker import DRAIN_GRACE_SECONDS, Caretaker
from gpuspawner.errors import EngineDown, GpusUnknown, NoRoom, OverLimit, QueueTimedOut, Reason
from gpuspawner.gpus import GpuUuid, Xid
from gpuspawner.leases import Held, Owner
from gpuspawner.ledger import TICK_SECONDS, Standing
from gpuspawner.limits import Limits
from gpuspawner.profiles import GpuRequest
from gpuspawner.quarantine import Drained, Record
from gpuspawner.queueing import GOING, Scene, Waiter
from gpuspawner.reservations import HORIZON, Calendar
from gpuspawner.terms import Claim, People, Rules
from gpuspawner.units import GIB
from tests.strategies import assert_within_cards
from tests.unit.ledgerworld import ALL, CARDS, POLICY, Start, StartsMachine, down, requests
from tests.unit.lineworld import (
    GROUPS,
    AtOnce,
    Driver,
    Given,
    StillLoop,
    WatchedLedger,
    able,
    fits,
    left_to,
    promise_of,
)

GPUS, GPUS_OF_STUDENTS, SHARE, WAITING = 2, 1, 12 * GIB, 2
LIMITS = Limits.parse(
    {
        "user": {"gpus": GPUS, "gpu_memory": SHARE, "waiting": WAITING},
        "groups_total": {"students": {"gpus": GPUS_OF_STUDENTS}},
    }
)
CALENDAR = Calendar.parse(
    [
        {"group": "class", "gpus": 2, "weekly": "Mon 10:00-12:00", "timezone": "UTC"},
        {"group": "class", "gpus": 1, "weekly": "Mon 13:00-14:00", "timezone": "UTC", "before": "refuse"},
        {"group": "students", "gpus": 1, "weekly": "Mon 15:00-16:00", "timezone": "UTC", "gpu_model": "3060"},
    ]
)
HOUSES = {
    "without rules": Rules(),
    "limits": Rules(limits=LIMITS),
    "reservations": Rules(calendar=CALENDAR),
    "both": Rules(LIMITS, CALENDAR),
}
ONE = GpuRequest.model_validate({"count": 1})
UUIDS = [gpu.uuid for gpu in CARDS]


class LineMachine(StartsMachine):
    """The real line on real rules; every await is a rule of its own."""

    loop: StillLoop

    steps: ClassVar[int] = 0
    waited: ClassVar[int] = 0
    errors: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.agreed, self.max_overtakes, self.ticking = Rules(), 0, False
        self.folder = TemporaryDirectory()
        self.file = CardsFile(Path(self.folder.name))
        self.order: list[str] = []
        self.passed: dict[str, int] = {}
        self.drained: set[GpuUuid] = set()
        self.struck: set[GpuUuid] = set()
        self.unclean: dict[GpuUuid, float] = {}
        super().__init__()
        self.world.quick = True

    @initialize(
        data=st.data(),
        house=st.sampled_from(list(HOUSES)),
        max_overtakes=st.integers(0, 2),
        ticking=st.booleans(),
        crowd=st.integers(0, 8),
    )
    def a_house(self, data: st.DataObject, house: str, max_overtakes: int, ticking: bool, crowd: int) -> None:
        """What rules it has, and who is there already; with `ticking` no two steps meet within a tick."""
        self.agreed, self.max_overtakes, self.ticking = HOUSES[house], max_overtakes, ticking
        self.ledger = self._ledger()
        self.some_begin(data, crowd, running=True)

    def _new_loop(self) -> StillLoop:
        loop = StillLoop()
        loop.set_default_executor(AtOnce())
        loop.set_exception_handler(lambda _, context: self.errors.append(str(context)))
        return loop

    @cached_property
    def driver(self) -> Driver:
        """It outlives a Hub that is killed."""
        return Driver(self.world, self.loop.time)

    def _ledger(self) -> WatchedLedger:
        """That of a Hub which comes up, with a caretaker of its own."""
        self.caretaker = Caretaker(
            self.driver,
            self.world.look_at_labels,
            Path(self.folder.name),
            clock=lambda: self.world.now,
            now=self.loop.time,
        )
        ledger = WatchedLedger(
            self.caretaker.holdings,
            self.caretaker.inventory,
            POLICY,
            max_overtakes=self.max_overtakes,
            rules=self.agreed,
            look_at_people=lambda users: People(groups_of={user: GROUPS[user] for user in users}),
            clock=lambda: self.world.now,
        )
        self.caretaker.promises = ledger
        self.given = ledger.given = []
        self.order, self.passed = [], {}
        return ledger

    def _waits(self, start: Start) -> None:
        if start.place is not None:
            type(self).waited += 1
            self.order.append(start.lease_id)

    def _refused(self, start: Start, error: BaseException | None) -> None:
        if error is None:
            assert start.doomed
            return
        assert isinstance(error, (NoRoom, GpusUnknown, OverLimit, EngineDown, QueueTimedOut))
        if start.waits:
            assert error.reason not in (Reason.BUSY, Reason.RESERVED), f"it would have waited: {error}"
        else:
            assert not isinstance(error, QueueTimedOut)

    def _go_on(self) -> None:
        super()._go_on()
        while self.given:
            self._judge(self.given.pop(0))

    # What a Hub does

    @rule(data=st.data(), number=st.integers(1, 4), running=st.booleans())
    def some_begin(self, data: st.DataObject, number: int, running: bool) -> None:
        """Whether they wait, and for how long, is their own affair; those that are served may be `running` at once."""
        for _ in range(number if len(self.starts) < 12 else 0):
            self._one_begins(data)
            self._go_on()
        for start in self._reserved_starts() if running else []:
            self._get_on(start, 3)

    def _one_begins(self, data: st.DataObject) -> Start:
        request = data.draw(requests())
        patience = data.draw(st.sampled_from((*[1e6] * 6, 5 * TICK_SECONDS, None)))
        return self._ask(data, data.draw(st.sampled_from(list(GROUPS))), request, patience)

    def _ask(self, data: st.DataObject, user: str, request: GpuRequest | None, patience: float | None) -> Start:
        self.made += 1
        name = f"lease-{self.made}"
        minutes = data.draw(st.sampled_from((5, 30, 60, 240, None)))
        limit = None if minutes is None else minutes * 60
        return self._begin(Claim(name, request, Owner(user, name), limit, GROUPS[user]), patience)

    @precondition(lambda self: self.world.quick and len(self.starts) < 6)
    @rule(data=st.data(), users=st.lists(st.sampled_from(("ann", "bob", "dan", "eva")), min_size=2, max_size=4))
    def a_rush(self, data: st.DataObject, users: list[str]) -> None:
        """All is taken, these wait, and several cards come back at once: chance finds that too rarely."""
        for user in ("cho", "eva", "cho"):
            self._ask(data, user, ONE, None)
            self._go_on()
        for start in self._reserved_starts():
            self._get_on(start, 3)
        for user in users:
            self._ask(data, user, data.draw(requests()), 1e6)
            self._go_on()
        if self.world.boxes:
            self.containers_end(data, number=3, removed=True, told=True, leaves=False)

    @rule(data=st.data(), steps=st.integers(0, 12))
    def one_begins_and_is_cancelled_on_the_way(self, data: st.DataObject, steps: int) -> None:
        """After so many turns of the event loop."""
        start = self._one_begins(data)
        for _ in range(steps):
            self.loop.run_until_complete(asyncio.sleep(0))
        start.doomed = True
        start.reserving.cancel()
        self._go_on()
        # A grant that was already in its hands is undone by the launch.
        start.undoing = True

    @precondition(lambda self: self._waiting())
    @rule(data=st.data())
    def one_will_be_cancelled_in_the_moment_of_the_grant(self, data: st.DataObject) -> None:
        """The grant is there, and whoever it is for has not been woken yet."""
        start = self._of(data, self._waiting())
        start.doomed = True
        start.place.granted.add_done_callback(lambda _: start.reserving.cancel())

    @rule(sure=st.integers(0, 3))
    def the_hub_is_killed(self, sure: int) -> None:
        """And comes up again: the line is empty, the containers are there, and so is the file."""
        if sure == 0:
            self._kill_the_hub()

    def _waiting(self) -> list[Start]:
        return [start for start in self.starts if start.place is not None and start.held is None]

    # What the world does

    @rule(how=st.sampled_from(("answers", "answers", "answers", "hangs", "500", "restarts", "restarts hard")))
    def the_engine_changes(self, how: str) -> None:
        """A restart ends what it was asked, and without live restore every container with it."""
        self.world.quick = how != "hangs"
        self.world.broken = how == "500"
        for look in self.world.looks if self.world.quick else []:
            if how == "answers":
                look.answer.set_result(self.world.holdings() if look.read is None else look.read)
            else:
                look.answer.set_exception(down())
        for lease_id in list(self.world.boxes) if how == "restarts hard" else []:
            if self.world.boxes[lease_id].state == "running":
                self._end(lease_id)
        self._go_on()

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data(), number=st.integers(1, 3), removed=st.booleans(), told=st.booleans(), leaves=st.booleans())
    def containers_end(self, data: st.DataObject, number: int, removed: bool, told: bool, leaves: bool) -> None:
        """They die, are stopped, or removed from outside; the Hub may hear of it; something may stay on the card."""
        for lease_id in data.draw(st.permutations(list(self.world.boxes)))[:number]:
            box = self.world.boxes[lease_id]
            if leaves and box.state == "running":
                self.driver.left_behind.update(card.uuid for card in box.held.cards)
            self._end(lease_id)
            if removed:
                del self.world.boxes[lease_id]
        if told:
            self.ledger.nudge()
        self._go_on()

    def _end(self, lease_id: str) -> None:
        self.world.boxes[lease_id].state = "exited"

    @rule(
        how=st.sampled_from(("clean", "well", "well", "well", "drained", "xid", "lost", "gone", "foreign", "unknown")),
        index=st.integers(0, len(CARDS) - 1),
    )
    def a_card_changes(self, how: str, index: int) -> None:
        """An admin, the driver or somebody from outside; "well" is all of that over, for every card."""
        uuid, driver = UUIDS[index], self.driver
        driver.unknown = how == "unknown"
        if how in ("clean", "well"):
            driver.left_behind.clear()
        if how == "well":
            for each in UUIDS:
                self.file.change(partial(Record.undrain, uuid=each))
            driver.xids = []
            for cards in (driver.lost, driver.gone, driver.foreign):
                cards.clear()
            self.struck.clear()
            self.drained.clear()
        elif how == "drained":
            self.drained.add(uuid)
            self.file.change(lambda record: record.drain(uuid, Drained(self.world.now)))
        elif how == "xid":
            self.struck.add(uuid)
            driver.xids.append(Xid(uuid, 79))
        elif how not in ("clean", "unknown"):
            {"lost": driver.lost, "gone": driver.gone, "foreign": driver.foreign}[how].add(uuid)

    @rule(hours=st.sampled_from((-3, -1, 0.5, 1, 3, 24)))
    def the_clock_jumps(self, hours: float) -> None:
        """Of the wall; the other one never does."""
        self.world.now += timedelta(hours=hours)

    @rule(minutes=st.sampled_from((1, 10, 30, 60)), punctual=st.booleans())
    def time_passes(self, minutes: int, punctual: bool) -> None:
        """Leases come to their end, and somebody who is `punctual` stops them then."""
        if self.world.looks:
            # No look takes so long, because calls to the engine have a limit: what it says counts from then on.
            self.unclean = {}
        self._pass(60 * minutes)
        for lease_id, box in list(self.world.boxes.items()) if punctual else []:
            if box.held.ends is not None and box.held.ends <= self.world.now:
                self._end(lease_id)
        # The Hub clears away what was created and is never started.
        for lease_id, box in list(self.world.boxes.items()):
            if box.state == "exited" or (box.state == "created" and lease_id not in self.ledger.in_flight()):
                del self.world.boxes[lease_id]

    @rule()
    def a_tick(self) -> None:
        """Where the engine answers, and did before, nobody waits beside a card that they could have."""
        settled = self.world.quick and not self.world.broken and not self.world.looks
        self._pass(TICK_SECONDS)
        if settled:
            self._the_truth_is_seen()
            still = self._left_waiting()
            if still:
                self._pass(TICK_SECONDS)
                assert not still & self._left_waiting(), f"{still} could be served, and have waited for two ticks"

    @invariant()
    def a_tick_goes_by(self) -> None:
        """After every step, in half of the houses."""
        if self.ticking:
            self.a_tick()

    def _pass(self, seconds: float) -> None:
        self.loop.seconds += seconds + 0.001
        self.world.now += timedelta(seconds=seconds)
        self._go_on()

    # What always holds

    @invariant()
    def nothing_is_promised_beyond_cards_and_limits(self) -> None:
        """By containers that may run and starts that were told "yes", whatever became of them since."""
        type(self).steps += 1
        held = list(self.held().values())
        assert_within_cards([card for each in held for card in each.cards], ALL, POLICY)
        if self.agreed.limits == LIMITS:
            for user in GROUPS:
                cards = [card for each in held if each.owner and each.owner.user == user for card in each.cards]
                assert sum(card.whole for card in cards) <= GPUS
                assert sum(card.memory_bytes or 0 for card in cards) <= SHARE
                line = [place.claim.owner for place in self.ledger._line.values()]
                assert sum(owner is not None and owner.user == user for owner in line) <= WAITING
            students = [each for each in held if each.owner and "students" in GROUPS[each.owner.user]]
            assert sum(card.whole for each in students for card in each.cards) <= GPUS_OF_STUDENTS

    @invariant()
    def the_line_is_in_order_and_nothing_is_left_of_what_is_over(self) -> None:
        """Of a start that failed neither a card nor a place."""
        waiting = {start.lease_id for start in self._waiting()}
        assert list(self.ledger._line) == [name for name in self.order if name in waiting]
        assert self.ledger.in_flight() == {start.lease_id for start in self.starts if start.held is not None}
        if not self.world.looks:
            assert not self.ledger._settled
        assert not self.errors
        for uuid in {card.uuid for held in self.held().values() for card in held.cards}:
            self.unclean.pop(uuid, None)

    def _judge(self, given: Given) -> None:
        """Whether this grant was right, by what it was decided on."""
        scene, now = given.scene, given.scene.now
        for card in given.cards:
            gpu = scene.inventory.get(card.uuid)
            assert gpu is not None
            assert gpu.fault is None
        ends = given.waiter.ends(now)
        lease = Held(given.cards, given.claim.owner, ends)
        rivals = [waiter for waiter in given.ahead if able(waiter, scene) & able(given.waiter, scene)]
        for waiter in rivals:
            self.passed[waiter.id] = self.passed.get(waiter.id, 0) + 1
            assert self.passed[waiter.id] <= self.max_overtakes
        if rivals:
            promised = promise_of(rivals[0], scene, scene.held)
            later = replace(lease, ends=ends + GOING if ends else None)
            then = promise_of(rivals[0], scene, (*scene.held, later))
            assert promised is not None, f"{given} has passed somebody to whom nothing is promised"
            assert then is not None
            assert then <= promised, f"{given} delays {rivals[0]}"
        for window in self.agreed.calendar.windows(now, now + HORIZON if ends is None else ends):
            if window.group not in given.claim.groups:
                before, after = (left_to(window, scene, held) for held in (scene.held, (*scene.held, lease)))
                assert after == before or after >= window.count, f"{given.cards} were the class's, {window}"

    def _look(self) -> Standing:
        return self.loop.run_until_complete(self.ledger.standing())

    def _the_truth_is_seen(self) -> None:
        """What is lost, drained or struck is out; what is well is in; only what is not clean is held by nobody."""
        standing, driver = self._look(), self.driver
        if driver.unknown:
            assert standing.inventory.trouble is not None
            return
        dirty = driver.left_behind | driver.foreign
        for uuid in UUIDS:
            seen = standing.inventory.get(uuid)
            assert (seen is None) == (uuid in driver.gone)
            if seen is not None and uuid in driver.lost | self.drained | self.struck:
                assert seen.fault is not None
            elif seen is not None and uuid not in dirty:
                assert seen.fault is None
        of_somebody = [held for held in standing.held if held.owner is not None and held.cards]
        assert Counter(of_somebody) == Counter(held for held in self.held().values() if held.cards)
        leased = {card.uuid for held in of_somebody for card in held.cards}
        unclean = {card.uuid: held.ends for held in standing.held if held.owner is None for card in held.cards}
        well = {gpu.uuid for gpu in standing.inventory.gpus if gpu.fault is None}
        assert well & dirty - leased <= unclean.keys() <= dirty - leased
        self.unclean = {uuid: self.unclean.get(uuid, self.loop.time()) for uuid, ends in unclean.items() if ends}
        for since in self.unclean.values():
            assert self.loop.time() - since < DRAIN_GRACE_SECONDS

    def _left_waiting(self) -> set[str]:
        """Those who could be served now without harm to anybody ahead."""
        standing = self._look()
        scene = Scene(standing.inventory, standing.held, POLICY, self.world.now)
        ahead: list[Waiter] = []
        found = set()
        for each in self.ledger._line.values() if standing.inventory.trouble is None else []:
            terms = self.agreed.terms(each.claim, scene, People(groups_of=GROUPS))
            if terms.refusal is not None:
                continue
            waiter = replace(each.waiter, barred=terms.barred, time_limit_seconds=terms.time_limit_seconds)
            rivals = [other for other in ahead if able(other, scene) & able(waiter, scene)]
            ahead.append(waiter)
            if fits(waiter, scene, scene.held):
                if not rivals:
                    # By the next tick: a card that is used from outside counts as held at the first look, so that
                    # somebody ahead may seem to want it together with this one, and is out of order afterwards.
                    found.add(waiter.id)
                    continue
                ends, promise = waiter.ends(scene.now), promise_of(rivals[0], scene, scene.held)
                tired = any(self.passed.get(other.id, 0) >= self.max_overtakes for other in rivals)
                if not tired and ends is not None and promise is not None and ends + GOING <= promise:
                    found.add(waiter.id)
        return found

    def teardown(self) -> None:
        """With its folder."""
        super().teardown()
        self.folder.cleanup()


class Complaints(logging.Handler):
    """What the Hub's log would call an error: a look at the line that broke is caught there, and must not happen."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            LineMachine.errors.append(record.getMessage())


def test_no_interleaving_breaks_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least two thousand steps, each followed by all invariants."""
    LineMachine.steps = LineMachine.waited = 0
    LineMachine.errors.clear()
    log, complaints = logging.getLogger("gpuspawner"), Complaints()
    monkeypatch.setattr(log, "propagate", False)
    log.addHandler(complaints)
    machine: Any = LineMachine
    hunting = bool(os.environ.get("LINE_MACHINE_HUNT"))
    machine.TestCase.settings = settings(
        max_examples=150,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # The same steps each time: whoever changes something else is not stopped by a new find. A hunt is
        # LINE_MACHINE_HUNT=1 with as many examples as there is time for.
        derandomize=not hunting,
        database=None,
    )
    try:
        machine.TestCase().runTest()
    finally:
        log.removeHandler(complaints)
    assert LineMachine.steps >= 2000
    assert LineMachine.waited >= 100
