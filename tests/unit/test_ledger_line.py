"""The line in the ledger: who waits, moves up, is served, and leaves. The rules themselves are `test_queueing`'s."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone

import pytest
import pytest_asyncio

from gpuspawner import ledger as module
from gpuspawner.errors import EngineDown, NoRoom, OverLimit, QueueTimedOut, Reason
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held, Owner
from gpuspawner.ledger import Grant, Ledger, Place
from gpuspawner.limits import Limits
from gpuspawner.placement import Policy
from gpuspawner.profiles import GpuRequest
from gpuspawner.queueing import Forecast
from gpuspawner.reservations import Calendar
from gpuspawner.terms import Claim, People, Rules
from gpuspawner.texts import Text
from gpuspawner.units import GIB

A, B = GpuUuid("GPU-a"), GpuUuid("GPU-b")
NOW = datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc)
ONE = GpuRequest.model_validate({"count": 1})
BOTH = GpuRequest.model_validate({"count": 2})
HUGE = GpuRequest.model_validate({"count": 3})
HOUR = 3600


class Machine:
    """Two cards, the labels of containers that a test writes down, and a clock that it moves."""

    def __init__(self) -> None:
        self.inventory = Inventory(
            tuple(Gpu(uuid, n, "NVIDIA GeForce RTX 4090", 24 * GIB) for n, uuid in enumerate((A, B)))
        )
        self.labels: dict[str, Held] = {}
        self.down = False
        self.looks = 0
        self.now = NOW
        self.places: dict[str, Place | None] = {}
        self.tasks: dict[str, asyncio.Task[Grant]] = {}
        self.people = People()
        self.ledger = Ledger(
            self.look_at_labels,
            self.look_at_gpus,
            Policy(0),
            look_at_people=lambda users: self.people,
            clock=lambda: self.now,
        )

    async def look_at_labels(self) -> dict[str, Held]:
        """What the engine shows."""
        self.looks += 1
        await asyncio.sleep(0)
        if self.down:
            raise EngineDown(Text("The Docker engine does not answer.", "Docker 엔진이 응답하지 않습니다."))
        return dict(self.labels)

    async def look_at_gpus(self) -> Inventory:
        """The cards of this moment."""
        return self.inventory

    async def run(self, name: str, request: GpuRequest = ONE, seconds: int | None = HOUR) -> tuple[CardShare, ...]:
        """A start that does not wait, up to its running container."""
        claim = Claim(name, request, Owner(name), seconds, frozenset(self.people.groups_of.get(name, ())))
        cards = (await self.ledger.reserve(claim)).cards
        self.labels[name] = Held(cards, claim.owner, None if seconds is None else self.now + timedelta(seconds=seconds))
        self.ledger.settle(name)
        return cards

    def end(self, name: str) -> None:
        """Its container is gone, and the engine says so."""
        del self.labels[name]
        self.ledger.nudge()

    async def join(
        self, name: str, request: GpuRequest = ONE, seconds: int | None = HOUR, wait: float = 60, user: str = ""
    ) -> Place:
        """Somebody gets in line; returns once there."""
        user = user or name
        claim = Claim(name, request, Owner(user), seconds, frozenset(self.people.groups_of.get(user, ())))
        coming: asyncio.Future[Place] = asyncio.get_running_loop().create_future()

        def on_wait(place: Place | None) -> None:
            self.places[name] = place
            if place is not None:
                coming.set_result(place)

        task = asyncio.ensure_future(self.ledger.reserve(claim, wait_seconds=wait, on_wait=on_wait))
        self.tasks[name] = task
        await asyncio.wait([task, coming], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            pytest.fail("it did not have to wait")
        return await coming

    async def line(self) -> list[str]:
        """Those that wait, in their order."""
        return [waiter.id for waiter in (await self.ledger.standing()).line]


@pytest_asyncio.fixture
async def full() -> AsyncIterator[Machine]:
    """Ann holds a card until ten, bob the other one until eleven."""
    machine = Machine()
    await machine.run("ann")
    await machine.run("bob", seconds=2 * HOUR)
    yield machine
    for task in machine.tasks.values():
        task.cancel()
    await asyncio.gather(*machine.tasks.values(), return_exceptions=True)
    machine.ledger.nudge()


async def shown(place: Place, forecast: Forecast) -> None:
    """Wait until the page of this place says that."""

    async def watch() -> None:
        while place.forecast != forecast:
            await place.moved.wait()

    await asyncio.wait_for(watch(), 5)


async def test_the_next_free_card_goes_to_the_first_in_line(full: Machine) -> None:
    """Places and estimates are shown, and move up."""
    cai = await full.join("cai")
    dan = await full.join("dan")
    await shown(cai, Forecast(1, NOW + timedelta(hours=1)))
    await shown(dan, Forecast(2, NOW + timedelta(hours=2)))
    full.end("ann")
    assert (await full.tasks["cai"]).cards == (CardShare(A),)
    assert full.places["cai"] is None
    await shown(dan, Forecast(1, NOW + timedelta(hours=1)))
    assert await full.line() == ["dan"]


async def test_who_does_not_wait_is_refused_and_who_waits_is_not(full: Machine) -> None:
    """A script without the wish to wait reads the sentence of before."""
    with pytest.raises(NoRoom, match="all 2 are in use"):
        await full.run("cai")
    await full.join("cai")


async def test_a_newcomer_does_not_jump_the_line(full: Machine) -> None:
    """The head wants both cards and one is free: somebody who comes now and stays for long has to get in line."""
    await full.join("both", BOTH)
    full.end("ann")
    with pytest.raises(NoRoom, match="others were here first"):
        await full.run("long", seconds=3 * HOUR)
    assert await full.run("short", seconds=1800) == (CardShare(A),)


@pytest.mark.fault(48)
async def test_what_can_never_be_served_does_not_wait(full: Machine) -> None:
    """Three cards on a machine of two."""
    with pytest.raises(NoRoom) as refused:
        await full.join("huge", HUGE)
    assert refused.value.reason is Reason.TOO_BIG
    assert await full.line() == []


@pytest.mark.fault(42)
async def test_who_is_cancelled_leaves_the_line(full: Machine) -> None:
    """The next one moves up; nothing is held."""
    await full.join("cai")
    dan = await full.join("dan")
    full.tasks["cai"].cancel()
    await asyncio.wait([full.tasks["cai"]])
    await shown(dan, Forecast(1, NOW + timedelta(hours=1)))
    assert await full.line() == ["dan"]
    assert full.ledger.in_flight() == frozenset()


async def test_who_is_cancelled_in_the_moment_of_the_grant_gives_the_card_back(full: Machine) -> None:
    """It goes to the next in line."""
    await full.join("cai")
    await full.join("dan")
    full.ledger._line["cai"].granted.add_done_callback(lambda _: full.tasks["cai"].cancel())
    full.end("ann")
    await asyncio.wait([full.tasks["cai"]])
    assert full.tasks["cai"].cancelled()
    assert (await full.tasks["dan"]).cards == (CardShare(A),)
    assert full.ledger.in_flight() == {"dan"}


async def test_waiting_has_an_end(full: Machine) -> None:
    """With a sentence; the place is gone."""
    with pytest.raises(QueueTimedOut, match="No GPU became free for you within 0 s"):
        await full.ledger.reserve(Claim("cai", ONE), wait_seconds=0.05)
    assert await full.line() == []
    assert full.ledger.in_flight() == frozenset()


async def stands_still(full: Machine, cai: Place) -> None:
    """Its page says why, and a card that comes back meanwhile is given to nobody, look after look."""
    while cai.trouble is None:
        await cai.moved.wait()
    full.end("ann")
    looks = full.looks
    while full.looks < looks + 2:
        await asyncio.sleep(0.01)
    assert not full.tasks["cai"].done()


@pytest.mark.fault(34)
async def test_the_line_stands_still_on_an_engine_that_does_not_answer(
    full: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is leased on unknown, the page says so, and it goes on by itself."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    cai = await full.join("cai")
    full.down = True
    await stands_still(full, cai)
    full.down = False
    assert (await full.tasks["cai"]).cards == (CardShare(A),)


async def test_the_line_stands_still_on_unknown_cards(full: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the engine."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    cai = await full.join("cai")
    well, full.inventory = full.inventory, Inventory(trouble=Text("the driver does not answer"))
    await stands_still(full, cai)
    full.inventory = well
    assert (await full.tasks["cai"]).cards == (CardShare(A),)


@pytest.mark.fault(17)
async def test_a_card_that_is_freed_without_a_word_is_found_by_the_timer(
    full: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that died, or was removed by hand."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    await full.join("cai")
    del full.labels["ann"]
    assert (await full.tasks["cai"]).cards == (CardShare(A),)


async def test_nobody_looks_while_nobody_waits(full: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer ends with the line, and begins again with the next one."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    for name in ("cai", "dan"):
        await full.join(name)
        full.end("ann")
        await full.tasks[name]
        assert full.ledger._moving is not None
        await asyncio.wait([full.ledger._moving], timeout=5)
        assert full.ledger._moving.done()
        full.labels["ann"] = Held((CardShare(A),), ends=NOW + timedelta(hours=1))
        full.ledger.release(name)


@pytest.mark.fault(49)
async def test_a_burst_is_served_in_the_order_of_arrival(full: Machine) -> None:
    """Twenty wait for two cards, and nobody is told to try again."""
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        await full.join(name)
    served: list[str] = []
    for name in names:
        full.tasks[name].add_done_callback(lambda _, name=name: served.append(name))
    leaving = ["ann", "bob", *names]
    for number, name in enumerate(names):
        full.end(leaving[number])
        cards = (await full.tasks[name]).cards
        full.labels[name] = Held(cards, Owner(name))
        full.ledger.settle(name)
    assert served == names


# Limits and reservations


async def test_a_limit_is_counted_again_when_the_turn_comes(full: Machine) -> None:
    """Two requests of one person, one card allowed: when both cards are free, the second goes to the next in line."""
    full.ledger.rules = Rules(Limits.parse({"user": {"gpus": 1}}))
    await full.join("cai-1", user="cai")
    await full.join("cai-2", user="cai")
    await full.join("dan")
    full.end("ann")
    full.end("bob")
    assert (await full.tasks["cai-1"]).cards == (CardShare(A),)
    assert (await full.tasks["dan"]).cards == (CardShare(B),)
    assert await full.line() == ["cai-2"]


async def test_who_has_enough_is_refused_and_does_not_wait(full: Machine) -> None:
    """With the limit's own sentence."""
    full.ledger.rules = Rules(Limits.parse({"user": {"gpus": 1, "waiting": 1}}))
    with pytest.raises(OverLimit, match="you may hold one whole GPU at once, and hold 1 now"):
        await full.join("ann-2", user="ann")
    await full.join("cai")
    with pytest.raises(OverLimit, match="you may have one request in line"):
        await full.join("cai-2", user="cai")
    assert await full.line() == ["cai"]


async def test_cards_of_a_class_are_waited_for_by_others(full: Machine) -> None:
    """Ann's card goes to the student of the class that came later; the one before reads why, and stays first."""
    class_now = {"group": "ai", "gpus": 2, "weekly": "Mon 08:00-12:00", "timezone": "UTC"}
    full.ledger.rules = Rules(calendar=Calendar.parse([class_now]))
    full.people = People(groups_of={"eve": {"ai"}, "fay": {"ai"}})
    cai = await full.join("cai")
    await full.join("eve")
    full.end("ann")
    assert (await full.tasks["eve"]).cards == (CardShare(A),)
    full.end("bob")
    while cai.trouble is None:
        await cai.moved.wait()
    assert "kept for a class until Mon 2 Mar 12:00 (UTC)" in cai.trouble.en
    full.now = NOW + timedelta(hours=4)
    full.ledger.nudge()
    assert (await full.tasks["cai"]).cards == (CardShare(B),)


async def test_a_lease_before_a_class_is_shorter(full: Machine) -> None:
    """The grant says until when, and why."""
    later = {"group": "ai", "gpus": 2, "weekly": "Mon 09:30-12:00", "timezone": "UTC"}
    full.ledger.rules = Rules(calendar=Calendar.parse([later]))
    full.end("ann")
    grant = await full.ledger.reserve(Claim("cai", ONE, Owner("cai"), HOUR))
    assert grant.time_limit_seconds == 29 * 60
    assert grant.notice is not None
    assert "has to stop by Mon 2 Mar 09:30 (UTC)" in grant.notice.en
