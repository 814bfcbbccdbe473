"""Law 2 under everything that can happen at once: no card is ever promised beyond what it has.

Twice. First a state machine whose engine is a model, so that each await of the ledger is a step of its own and every
interleaving can be reached and repeated: thousands of steps. Then the real launch, the real engine adapter and the
stand-in engine, with real time and threads: hundreds of steps, nothing modelled.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from gpuspawner import launch as launching
from gpuspawner.boots import Boots
from gpuspawner.container import ContainerSpec, Defaults, object_name
from gpuspawner.dockerd import HOLDING_STATES, Engine
from gpuspawner.errors import EngineDown, GpusUnknown, NoRoom, Refused
from gpuspawner.gpus import Inventory
from gpuspawner.launch import BOOTING, CREATING, READY, Launch, Order
from gpuspawner.leases import Owner, decode
from gpuspawner.ledger import Ledger, Standing
from gpuspawner.placement import availability
from gpuspawner.profiles import Choice, GpuRequest, Profile
from gpuspawner.terms import Claim
from tests.standins import engine as standins
from tests.standins.engine import EngineSlow, ExecAnswer, Fault, Http500, StandinEngine
from tests.strategies import assert_within_cards
from tests.unit.ledgerworld import (
    ALL,
    CARDS,
    LOST,
    POLICY,
    REQUESTS,
    UNKNOWN,
    Promises,
    Start,
    StartsMachine,
    cards_of,
    requests,
)


@dataclass(eq=False)
class Page:
    """Somebody's form that is being made, and what was promised all the time since it was begun."""

    standing: asyncio.Task[Standing]
    throughout: Promises


class LedgerMachine(StartsMachine):
    """The real ledger and the real rules of placement; every await is a rule of its own."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[Page] = []

    def _go_on(self) -> None:
        super()._go_on()
        for page in list(self.pages):
            if page.standing.done():
                self._shown(page)

    def _refused(self, start: Start, error: BaseException | None) -> None:
        assert isinstance(error, (NoRoom, GpusUnknown, EngineDown))

    def _shown(self, page: Page) -> None:
        self.pages.remove(page)
        if page.standing.exception() is None:
            shown = list(page.standing.result().occupancy.cards)
            for lease_id, cards in page.throughout.items():
                for card in cards:
                    assert card in shown, f"{lease_id} was held all the time, and the form called it free"
                    shown.remove(card)

    # What a Hub does

    @precondition(lambda self: len(self.starts) < 6)
    @rule(data=st.data(), at_once=st.booleans())
    def begin_a_start(self, data: st.DataObject, at_once: bool) -> None:
        """Its look is answered at once, or by later steps."""
        self.world.quick = at_once
        self._one_begins(data)
        self._go_on()
        self.world.quick = False

    @precondition(lambda self: len(self.pages) < 2)
    @rule()
    def begin_a_page(self) -> None:
        self.pages.append(Page(self.loop.create_task(self.ledger.standing()), self.promises()))
        self._go_on()

    def _one_begins(self, data: st.DataObject) -> None:
        self.made += 1
        self._begin(Claim(f"lease-{self.made}", data.draw(requests())))

    @precondition(lambda self: self.made % 5 == 4)
    @rule()
    def the_hub_is_killed(self) -> None:
        """The next one knows nothing but the labels."""
        self.made += 1
        self._kill_the_hub()
        self.pages = []

    # What the world does

    @precondition(lambda self: self.world.boxes)
    @rule(data=st.data(), removed=st.booleans())
    def a_container_ends(self, data: st.DataObject, removed: bool) -> None:
        """It dies, is stopped, or is removed from outside."""
        lease_id = self._of(data, list(self.world.boxes))
        if removed:
            del self.world.boxes[lease_id]
        else:
            self.world.boxes[lease_id].state = "exited"

    @precondition(lambda self: self.made % 4 == 3)
    @rule(index=st.integers(0, len(CARDS) - 1), how=st.sampled_from(("well", "well", "lost", "gone", "unknown")))
    def the_cards_change(self, index: int, how: str) -> None:
        """One is out of order or off the bus, the driver does not answer, or all is well again."""
        self.made += 1
        card = CARDS[index]
        others = tuple(gpu for gpu in CARDS if gpu is not card)
        self.world.inventory = {
            "well": ALL,
            "lost": Inventory((*others, replace(card, fault=LOST))),
            "gone": Inventory(others),
            "unknown": UNKNOWN,
        }[how]

    # What always holds

    @invariant()
    def no_card_is_promised_twice(self) -> None:
        type(self).steps += 1
        promises = self.promises()
        assert_within_cards([card for cards in promises.values() for card in cards], ALL, POLICY)
        for page in self.pages:
            page.throughout = {key: cards for key, cards in page.throughout.items() if promises.get(key) == cards}

    @invariant()
    def who_looks_now_sees_the_truth(self) -> None:
        """Neither a card that nobody holds and nobody can have, nor one that is held and called free."""
        self.world.quick = True
        standing = self.loop.run_until_complete(self.ledger.standing())
        self.world.quick = False
        assert sorted((card.uuid, card.memory_bytes or 0) for card in standing.occupancy.cards) == cards_of(
            self.promises()
        )
        held = {card.uuid for card in standing.occupancy.cards}
        well = {gpu.uuid for gpu in self.world.inventory.gpus if gpu.fault is None}
        seen = availability(GpuRequest(count=1), standing.inventory, standing.occupancy, POLICY)
        assert seen.free == len(well - held)
        assert seen.fits == bool(well - held)

    @invariant()
    def nothing_is_remembered_that_is_over(self) -> None:
        assert self.ledger.in_flight() == {start.lease_id for start in self.starts if start.held is not None}
        if not self.world.looks:
            assert not self.ledger._settled


@pytest.mark.fault(1, 6)
def test_no_interleaving_promises_a_card_twice() -> None:
    """At least a thousand steps, each followed by all invariants."""
    LedgerMachine.steps = 0
    machine: Any = LedgerMachine
    machine.TestCase.settings = settings(
        max_examples=250, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine.TestCase().runTest()
    assert LedgerMachine.steps >= 1000


# The real engine adapter, the real launch


USERS = tuple(Owner(name) for name in ("ann", "bob", "cho", "dan"))
SLOW_OR_BROKEN = (
    "list",
    "inspect_image",
    "create_volume",
    "create",
    "start",
    "inspect",
    "exec",
    "exec_start",
    "remove",
)


def told(container: standins.Container) -> ExecAnswer:
    """What the arrival probe prints in a container of the stand-in."""
    minors = [gpu.minor for gpu in CARDS if gpu.uuid in container.gpus]
    nodes = "".join(f"nvidia{minor}\n" for minor in minors)
    return ExecAnswer(0, f"--- nodes ---\n{nodes}--- nvidia-smi ---\n--- end ---\n".encode())


class Playground:
    """Launches, cancellations, faults and restarts as they come. Not Hypothesis': real time does not repeat itself."""

    def __init__(self, standin: StandinEngine, chance: Random) -> None:
        self.standin, self.chance = standin, chance
        self.inventory = ALL
        self.running: dict[Owner, asyncio.Task[str]] = {}
        self.launches: dict[Owner, Launch] = {}
        self.a_hub_comes_up()

    def a_hub_comes_up(self) -> None:
        """It knows nothing but the labels."""
        self.engine = Engine({"base_url": self.standin.url}, call_timeout_seconds=5)
        self.ledger = Ledger(self.engine.holdings, self.look, POLICY)
        self.boots = Boots(2)
        self.running, self.launches = {}, {}

    async def look(self) -> Inventory:
        """The cards of this moment."""
        return self.inventory

    async def boot(self, spec: ContainerSpec) -> tuple[str, int]:
        """What DockerSpawner does."""
        call = self.engine.call
        host_config = await call("create_host_config", binds=dict(spec.binds), **spec.host_config)
        made = await call(
            "create_container",
            spec.image,
            name=spec.name,
            labels=dict(spec.labels),
            environment=dict(spec.environment),
            host_config=host_config,
        )
        await call("start", made["Id"])
        inspected = await call("inspect_container", made["Id"])
        return inspected["NetworkSettings"]["IPAddress"], 8888

    # What happens

    async def a_start(self) -> None:
        """As the Hub does: not while one is pending; the undoing of the last one is waited for."""
        if owner := self._idle_owner():
            stage = self.chance.choice((None, CREATING, BOOTING, READY))
            self._begin(owner)
            while stage and self.launches[owner].stage.progress < stage.progress and not self.running[owner].done():
                await asyncio.sleep(0.002)

    async def a_start_that_is_cancelled_in_a_call(self) -> None:
        """The call goes on without it and has its effect later, while other things happen."""
        if owner := self._idle_owner():
            on = self.chance.choice(SLOW_OR_BROKEN)
            slow = self.standin.faults.add(EngineSlow(0.05, on=on, container=object_name(owner), times=1))
            self._begin(owner)
            while not slow.struck and not self.running[owner].done():
                await asyncio.sleep(0.002)
            await self._cancel(owner)

    async def a_cancellation(self) -> None:
        """At any moment."""
        if pending := [owner for owner, task in self.running.items() if not task.done()]:
            await self._cancel(self.chance.choice(pending))

    async def a_container_ends(self) -> None:
        """It dies, or is removed from outside; at any moment of its start too."""
        if names := [container.name for container in self.standin.containers if container.status == "running"]:
            with suppress(KeyError):
                end = self.chance.choice((self.standin.die, self.standin.remove))
                await asyncio.to_thread(end, self.chance.choice(names))

    async def a_call_goes_wrong(self) -> None:
        """The next of its kind is slow, or fails."""
        on = self.chance.choice(SLOW_OR_BROKEN)
        fault: Fault = self.chance.choice((EngineSlow(0.1, on=on, times=1), Http500(on=on, times=1)))
        self.standin.faults.add(fault)

    async def a_container_goes_wrong(self) -> None:
        """The next one does not come up."""
        kind = self.chance.choice((standins.DiesOnBoot, standins.CreateConflict, standins.HookFails))
        self.standin.faults.add(kind(times=1))

    async def all_is_well_again(self) -> None:
        """No fault, no card out of order."""
        self.standin.faults.clear()
        self.inventory = ALL

    async def the_engine_is_down_for_a_moment(self) -> None:
        """It hangs up on everybody."""
        with self.standin.faults.during(standins.EngineDown("close")):
            await asyncio.sleep(0.03)

    async def a_card_is_lost(self) -> None:
        """Whoever holds it."""
        lost = self.chance.choice(CARDS)
        self.inventory = Inventory(tuple(replace(gpu, fault=LOST if gpu is lost else None) for gpu in CARDS))

    async def the_hub_is_killed(self) -> None:
        """Nothing is undone; what the engine was asked for it still does; the next Hub starts from the labels."""
        self.standin.faults.clear()
        # Twice: cancelled, a launch begins its undoing, which a killed process does not.
        for _ in range(2):
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self.engine.close)
        self.a_hub_comes_up()

    async def play(self, steps: int) -> list[str]:
        """That many things happen, and after each the invariants hold; gives what happened."""
        happenings = {
            self.a_start: 6,
            self.a_start_that_is_cancelled_in_a_call: 5,
            self.a_cancellation: 2,
            self.a_container_ends: 3,
            self.a_call_goes_wrong: 2,
            self.a_container_goes_wrong: 1,
            self.all_is_well_again: 1,
            self.the_engine_is_down_for_a_moment: 1,
            self.a_card_is_lost: 1,
            self.the_hub_is_killed: 1,
        }
        story: list[str] = []
        for happening in self.chance.choices(list(happenings), list(happenings.values()), k=steps):
            story.append(happening.__name__)
            await happening()
            self.assert_no_card_is_promised_twice()
            await asyncio.sleep(self.chance.choice((0, 0, 0.005, 0.05)))
            self.assert_no_card_is_promised_twice()
        return story

    def _idle_owner(self) -> Owner | None:
        idle = [owner for owner in USERS if owner not in self.running or self.running[owner].done()]
        return self.chance.choice(idle) if idle else None

    def _begin(self, owner: Owner) -> None:
        wanted = {"display_name": "x", "image": "nb", "gpu": self.chance.choice((*REQUESTS, None))}
        order = Order(owner, Choice(Profile.model_validate(wanted)), Defaults(), "auto", 20.0, "/api")
        last = self.launches.get(owner)
        undoing = last.undoing if last else None
        launch = Launch(order, self.engine, self.ledger, self.look, self.boot, self.boots, undoing)
        self.launches[owner] = launch
        self.running[owner] = asyncio.ensure_future(launch.run())
        self.running[owner].add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _cancel(self, owner: Owner) -> None:
        self.running[owner].cancel()
        await asyncio.wait([self.running[owner]])

    # What always holds

    def promises(self) -> Promises:
        """By the engine's own records, and by the reservations of this Hub."""
        held: Promises = {key: held.cards for key, held in self.ledger._in_flight.items()}
        for container in self.standin.containers:
            lease = decode(container.labels)
            if lease is not None and container.status in HOLDING_STATES:
                held[lease.id] = lease.cards
        return held

    def assert_no_card_is_promised_twice(self) -> None:
        """And what the engine has really attached is no more than what the labels say."""
        assert_within_cards([card for cards in self.promises().values() for card in cards], ALL, POLICY)
        for container in self.standin.containers:
            lease = decode(container.labels)
            assert lease is not None
            assert set(container.gpus) <= {card.uuid for card in lease.cards}

    async def assert_at_rest(self) -> None:
        """When all is over, what is held is what the containers hold, and nothing of an undone launch is left."""
        self.standin.faults.clear()
        await asyncio.gather(*self.running.values(), return_exceptions=True)
        for task in self.running.values():
            assert task.cancelled() or isinstance(task.exception(), (Refused, type(None))), task.exception()
        undone = [launch for launch in self.launches.values() if launch.undoing is not None]
        await asyncio.wait_for(asyncio.gather(*(launch.undoing for launch in undone if launch.undoing)), 10)
        assert self.ledger.in_flight() == frozenset()
        left = {container.labels["gpuspawner.id"] for container in self.standin.containers}
        assert left.isdisjoint(launch.lease_id for launch in undone)
        standing = await self.ledger.standing()
        seen = sorted((card.uuid, card.memory_bytes or 0) for card in standing.occupancy.cards)
        assert seen == cards_of(self.promises())


@pytest.mark.fault(6)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_the_real_launch_promises_no_card_twice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through HTTP, threads and real time; the seed gives the story, not the moments at which its parts meet."""
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launching, "RETRY_REMOVAL_SECONDS", (0.02,))
    monkeypatch.setattr(launching, "CHECK_ALIVE_SECONDS", 0.05)
    with StandinEngine(gpus={gpu.uuid: gpu.index for gpu in CARDS}) as standin:
        standin.add_image("gpuspawner/nb")
        standin.exec_handler = lambda container, words: told(container)
        playground = Playground(standin, Random(seed))
        story = await playground.play(80)
        await playground.assert_at_rest()
        await asyncio.to_thread(playground.engine.close)
        assert {"a_start", "a_start_that_is_cancelled_in_a_call", "a_container_ends"} <= set(story)
    # docker-py, and a stand-in that is torn down in mid-call, leave sockets to the garbage collector: here.
    gc.collect()
