"""Law 2 under everything that can happen at once: no card is ever promised beyond what it has.

Twice. First a state machine whose engine is a model, so that each await of the ledger is a step of its own and every
interleaving can be reached and repeated: thousands of steps. Then the real launch, the real engine adapter and the
stand-in engine, with real time and threads: hundreds of steps, nothing modelled.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuspawner import launch as launching
from gpuspawner.container import ContainerSpec, Defaults, object_name
from gpuspawner.dockerd import HOLDING_STATES, Engine
from gpuspawner.errors import EngineDown, GpusUnknown, NoRoom, Refused
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.launch import BOOTING, CREATING, READY, Launch, Order
from gpuspawner.leases import CardShare, Held, Owner, decode
from gpuspawner.ledger import Grant, Ledger, Standing
from gpuspawner.placement import Policy, availability
from gpuspawner.profiles import Choice, GpuRequest, Profile
from gpuspawner.terms import Claim
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests.standins import engine as standins
from tests.standins.engine import EngineSlow, ExecAnswer, Fault, Http500, StandinEngine
from tests.strategies import assert_within_cards

POLICY = Policy(reserve_bytes=GIB)
CARDS = (
    Gpu(GpuUuid("GPU-a"), 0, "NVIDIA GeForce RTX 4090", 24 * GIB, 0),
    Gpu(GpuUuid("GPU-b"), 1, "NVIDIA GeForce RTX 4090", 24 * GIB, 1),
    Gpu(GpuUuid("GPU-c"), 2, "NVIDIA GeForce RTX 3060", 12 * GIB, 2),
)
ALL = Inventory(CARDS)
LOST = Text("the card is lost", "카드가 응답하지 않습니다")
UNKNOWN = Inventory(trouble=Text("the driver does not answer", "드라이버가 응답하지 않습니다"))
REQUESTS: tuple[dict[str, Any], ...] = (
    {"count": 1},
    {"count": 2},
    {"memory": "4G"},
    {"memory": "8G"},
    {"memory": "20G"},
)

Promises = dict[str, tuple[CardShare, ...]]


def cards_of(promises: Promises) -> list[tuple[str, int]]:
    """All promised cards, sorted; 0 is the whole card."""
    return sorted((card.uuid, card.memory_bytes or 0) for cards in promises.values() for card in cards)


def requests() -> st.SearchStrategy[GpuRequest | None]:
    """Whole cards and shares that fit together in some ways and not in others; sometimes no card."""
    return st.sampled_from([*(GpuRequest.model_validate(wanted) for wanted in REQUESTS), None])


# The engine as a model


@dataclass(eq=False)
class Look:
    """A list of the labels that is under way: begun, perhaps read by the engine already, not yet answered."""

    answer: asyncio.Future[Promises]
    read: Promises | None = None


@dataclass(eq=False)
class Start:
    """A start by the protocol of `launch`: reserve, create, run, settle; or undo, and release only then."""

    lease_id: str
    reserving: asyncio.Task[Grant]
    cards: tuple[CardShare, ...] | None = None
    created: bool = False
    undoing: bool = False


@dataclass(eq=False)
class Page:
    """Somebody's form that is being made, and what was promised all the time since it was begun."""

    standing: asyncio.Task[Standing]
    throughout: Promises


@dataclass
class Box:
    """A container of the model."""

    cards: tuple[CardShare, ...]
    state: str = "created"


@dataclass
class World:
    """The engine and the cards: what a Hub that is killed leaves behind."""

    boxes: dict[str, Box] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    inventory: Inventory = ALL
    quick: bool = False

    def holdings(self) -> Promises:
        """What a list of the labels shows at this moment."""
        return {key: box.cards for key, box in self.boxes.items() if box.state in HOLDING_STATES}

    async def look_at_labels(self) -> dict[str, Held]:
        """Answered by a rule, or at once for the invariants."""
        if self.quick:
            return {key: Held(cards) for key, cards in self.holdings().items()}
        look = Look(asyncio.get_running_loop().create_future())
        self.looks.append(look)
        try:
            return {key: Held(cards) for key, cards in (await look.answer).items()}
        finally:
            self.looks.remove(look)

    async def look_at_gpus(self) -> Inventory:
        """The cards of this moment."""
        return self.inventory


class LedgerMachine(RuleBasedStateMachine):
    """The real ledger and the real rules of placement; every await is a rule of its own."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.starts: list[Start] = []
        self.pages: list[Page] = []
        self.ledger = self._ledger()
        self.made = 0

    def _ledger(self) -> Ledger:
        return Ledger(self.world.look_at_labels, self.world.look_at_gpus, POLICY)

    def _go_on(self) -> None:
        """Let everything run that can run, then take note of what has come of it."""
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))
        for start in list(self.starts):
            if start.cards is None and start.reserving.done():
                self._reserved(start)
        for page in list(self.pages):
            if page.standing.done():
                self._shown(page)

    def _reserved(self, start: Start) -> None:
        error = start.reserving.exception()
        if error is None:
            start.cards = start.reserving.result().cards
        else:
            assert isinstance(error, (NoRoom, GpusUnknown, EngineDown))
            self.ledger.release(start.lease_id)
            self.starts.remove(start)

    def _shown(self, page: Page) -> None:
        self.pages.remove(page)
        if page.standing.exception() is None:
            shown = list(page.standing.result().occupancy.cards)
            for lease_id, cards in page.throughout.items():
                for card in cards:
                    assert card in shown, f"{lease_id} was held all the time, and the form called it free"
                    shown.remove(card)

    def promises(self) -> Promises:
        """The truth: by containers that may run, and by starts that were told "yes"."""
        started = {start.lease_id: start.cards for start in self.starts if start.cards is not None}
        return {**started, **self.world.holdings()}

    def _of(self, data: st.DataObject, items: list[Any]) -> Any:
        return data.draw(st.sampled_from(items))

    def _reserved_starts(self) -> list[Start]:
        return [start for start in self.starts if start.cards is not None]

    # What a Hub does

    @precondition(lambda self: len(self.starts) < 6)
    @rule(request=requests(), at_once=st.booleans())
    def begin_a_start(self, request: GpuRequest | None, at_once: bool) -> None:
        """Its look is answered at once, or by later steps."""
        self.made += 1
        lease_id = f"lease-{self.made}"
        self.world.quick = at_once
        self.starts.append(Start(lease_id, self.loop.create_task(self.ledger.reserve(Claim(lease_id, request)))))
        self._go_on()
        self.world.quick = False

    @precondition(lambda self: len(self.pages) < 2)
    @rule()
    def begin_a_page(self) -> None:
        self.pages.append(Page(self.loop.create_task(self.ledger.standing()), self.promises()))
        self._go_on()

    @precondition(lambda self: self._reserved_starts())
    @rule(data=st.data(), far=st.integers(1, 3))
    def a_start_gets_on(self, data: st.DataObject, far: int) -> None:
        """Created → running → settled; dead or gone on the way means that it is undone.

        Of a start that is being undone a container may still appear: the call was under way.
        """
        start = self._of(data, self._reserved_starts())
        assert start.cards is not None
        for _ in range(far):
            box = self.world.boxes.get(start.lease_id)
            if box is None and not start.created:
                start.created = True
                self.world.boxes[start.lease_id] = Box(start.cards)
            elif start.undoing:
                return
            elif box is not None and box.state == "created":
                box.state = "running"
            elif box is not None and box.state == "running":
                self.ledger.settle(start.lease_id)
                self.starts.remove(start)
                return
            else:
                start.undoing = True

    @precondition(lambda self: self._reserved_starts())
    @rule(data=st.data(), request=requests(), times=st.integers(1, 3))
    def a_look_is_overtaken(self, data: st.DataObject, request: GpuRequest | None, times: int) -> None:
        """The classic, which chance finds too rarely: a start ends between the list and its arrival."""
        self.begin_a_start(request, at_once=False)
        self.the_engine_reads_the_labels()
        for _ in range(times):
            if self._reserved_starts():
                self.a_start_gets_on(data, 3)
        if self.world.looks:
            self.the_engine_answers(data, 3)

    @precondition(lambda self: self.starts)
    @rule(data=st.data())
    def a_start_fails_or_is_cancelled(self, data: st.DataObject) -> None:
        """At any await: in the middle of a look, with a container or before there is one."""
        start = self._of(data, self.starts)
        if start.cards is None:
            start.reserving.cancel()
            self.loop.run_until_complete(asyncio.wait([start.reserving]))
            self.ledger.release(start.lease_id)
            self.starts.remove(start)
        start.undoing = True

    @precondition(lambda self: any(start.undoing for start in self.starts))
    @rule(data=st.data(), twice=st.booleans())
    def an_undoing_ends(self, data: st.DataObject, twice: bool) -> None:
        start = self._of(data, [start for start in self.starts if start.undoing])
        self.world.boxes.pop(start.lease_id, None)
        for _ in range(1 + twice):
            self.ledger.release(start.lease_id)
        self.starts.remove(start)

    @precondition(lambda self: self.made % 5 == 4)
    @rule()
    def the_hub_is_killed(self) -> None:
        """The next one knows nothing but the labels."""
        self.made += 1
        tasks = [start.reserving for start in self.starts] + [page.standing for page in self.pages]
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.starts, self.pages = [], []
        self.ledger = self._ledger()

    # What the world does

    @precondition(lambda self: self.world.looks)
    @rule()
    def the_engine_reads_the_labels(self) -> None:
        """From now on the answers to these looks get older."""
        for look in self.world.looks:
            look.read = self.world.holdings() if look.read is None else look.read

    @precondition(lambda self: self.world.looks)
    @rule(data=st.data(), number=st.integers(1, 3))
    def the_engine_answers(self, data: st.DataObject, number: int) -> None:
        """One look, or several in the same moment."""
        for look in data.draw(st.permutations(self.world.looks))[:number]:
            look.answer.set_result(self.world.holdings() if look.read is None else look.read)
        self._go_on()

    @precondition(lambda self: self.world.looks)
    @rule(data=st.data())
    def the_engine_fails(self, data: st.DataObject) -> None:
        look = self._of(data, self.world.looks)
        look.answer.set_exception(EngineDown(Text("the engine does not answer")))
        self._go_on()

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
        assert self.ledger.in_flight() == {start.lease_id for start in self.starts if start.cards is not None}
        if not self.world.looks:
            assert not self.ledger._settled

    def teardown(self) -> None:
        self.the_hub_is_killed()
        self.loop.close()


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
        launch = Launch(order, self.engine, self.ledger, self.look, self.boot, undoing)
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
