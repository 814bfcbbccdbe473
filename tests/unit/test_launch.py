"""One start from the reservation to the first answer, and its undoing: the real engine adapter on the stand-in."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gpuspawner import launch as module
from gpuspawner.boots import Boots
from gpuspawner.container import ContainerSpec, Defaults, object_name
from gpuspawner.dockerd import Engine
from gpuspawner.errors import (
    DeviceFault,
    EngineError,
    EngineTimeout,
    GpuNotArrived,
    GpusUnknown,
    ImageMissing,
    ImageUnfit,
    NoRoom,
    Reason,
    Refused,
    ServerDied,
    StartTimedOut,
)
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.launch import BOOTING, CREATING, LEASING, NEXT, PREPARING, PULLING, READY, Launch, Order
from gpuspawner.leases import CardShare, Owner, decode
from gpuspawner.ledger import Ledger
from gpuspawner.placement import Policy
from gpuspawner.profiles import Choice, Profile
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests.standins.engine import (
    Container,
    DiesOnBoot,
    EngineDown,
    EngineSlow,
    ExecAnswer,
    Fault,
    HookFails,
    Http500,
    ImageHasNoHub,
    NeverAnswers,
    SlowBoot,
    StandinEngine,
)

A, B = GpuUuid("GPU-a"), GpuUuid("GPU-b")
ANN, BOB = Owner("ann"), Owner("bob")
NAME = object_name(ANN)
SOON = 10.0

# docker-py, and a notebook of the stand-in that is killed in mid-call, leave sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def profile(**more: Any) -> Profile:
    """A profile with one whole card unless something else is said."""
    return Profile.model_validate({"display_name": "One", "image": "nb", "gpu": {"count": 1}, **more})


ONE, CPU, BOTH = profile(), profile(gpu=None), profile(gpu={"count": 2})


class Rig:
    """A machine with two cards: an engine, a ledger, an inventory that the test may change."""

    def __init__(self, standin: StandinEngine, engine: Engine) -> None:
        self.standin, self.engine = standin, engine
        cards = (Gpu(A, 0, "NVIDIA GeForce RTX 4090", 24 * GIB, 3), Gpu(B, 1, "NVIDIA GeForce RTX 4090", 24 * GIB, 1))
        self.inventory = Inventory(cards)
        self.ledger = Ledger(engine.holdings, self.look, Policy())
        self.boots = Boots(4)
        self.told: Callable[[Container], str] = lambda container: whole_answer(*self.minors(container))
        standin.exec_handler = lambda container, words: ExecAnswer(0, self.told(container).encode())

    async def look(self) -> Inventory:
        """The cards of this moment."""
        return self.inventory

    def minors(self, container: Container) -> list[int]:
        """The cards that the engine let in."""
        return [self.standin.gpus[uuid] for uuid in container.gpus]

    def launch(
        self,
        wanted: Profile = ONE,
        owner: Owner = ANN,
        *,
        attach: str = "auto",
        limit: float = SOON,
        defaults: Defaults | None = None,
        boot: Any = None,
        may_pull: bool = True,
        predecessor: asyncio.Task[None] | None = None,
    ) -> Launch:
        """A launch that was not begun."""
        order = Order(
            owner=owner,
            choice=Choice(wanted),
            defaults=defaults or Defaults(),
            gpu_attach=attach,
            time_limit_seconds=limit,
            api_path=f"/user/{owner.user}/api",
            may_pull=may_pull,
        )
        return Launch(order, self.engine, self.ledger, self.look, boot or self.boot, self.boots, predecessor)

    async def boot(self, spec: ContainerSpec) -> tuple[str, int]:
        """What DockerSpawner does: create, start, ask for the address."""
        host_config = await self.engine.call(
            "create_host_config", binds=dict(spec.binds), mem_limit=spec.mem_limit_bytes, **spec.host_config
        )
        made = await self.engine.call(
            "create_container",
            spec.image,
            name=spec.name,
            labels=dict(spec.labels),
            environment={**spec.environment, "JUPYTERHUB_SERVICE_PREFIX": "/user/"},
            host_config=host_config,
        )
        await self.engine.call("start", made["Id"])
        inspected = await self.engine.call("inspect_container", made["Id"])
        return inspected["NetworkSettings"]["IPAddress"], 8888

    async def launch_that_hangs(self) -> Launch:
        """One of ann's whose server never answers; `give_up` ends it."""
        never = NeverAnswers()
        with self.standin.faults.during(never):
            launch = self.launch()
            self._hanging = asyncio.ensure_future(launch.run())
            await until(lambda: launch.stage is BOOTING)
        return launch

    async def give_up(self, launch: Launch) -> None:
        """As the Stop button does."""
        self._hanging.cancel()
        await asyncio.wait([self._hanging])
        assert launch.undoing is not None
        await asyncio.wait_for(asyncio.shield(launch.undoing), SOON)

    async def held(self) -> list[str]:
        """UUIDs that are held, with repetitions if there are any."""
        return sorted(card.uuid for card in (await self.ledger.standing()).occupancy.cards)

    async def assert_nothing_left_of(self, launch: Launch) -> None:
        """Law 4: no container, no reservation, and the card is free."""
        if launch.undoing is not None:
            await asyncio.wait_for(asyncio.shield(launch.undoing), SOON)
        ids = [container.labels.get("gpuspawner.id") for container in self.standin.containers]
        assert launch.lease_id not in ids
        assert launch.lease_id not in self.ledger.in_flight()
        assert await self.held() == []

    def count(self, operation: str) -> int:
        """How often the engine was asked for it."""
        return len([call for call, _ in self.standin.calls if call.operation == operation])


def whole_answer(*minors: int) -> str:
    """What the arrival probe prints in a container with these nodes."""
    nodes = "".join(f"nvidia{minor}\n" for minor in minors)
    return f"--- nodes ---\n{nodes}--- nvidia-smi ---\n--- end ---\n"


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """The machine, with an image of the shelf on it."""
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "RETRY_REMOVAL_SECONDS", (0.02,))
    monkeypatch.setattr(module, "WAIT_FOR_UNDOING_SECONDS", 0.3)
    with StandinEngine(gpus={A: 3, B: 1}) as standin:
        standin.add_image("gpuspawner/nb")
        engine = Engine({"base_url": standin.url}, call_timeout_seconds=SOON)
        yield Rig(standin, engine)
        standin.faults.clear()
        engine.close()


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition, with a deadline."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


# It works


async def test_a_launch_ends_with_a_server_that_answers(rig: Rig) -> None:
    """Its container says what it holds, and from then on only the container says it (law 1)."""
    launch = rig.launch()
    url = await launch.run()
    async with aiohttp.ClientSession() as session, session.get(url + "/user/ann/api") as response:
        assert response.status == 200
    container = rig.standin.container(NAME)
    lease = decode(container.labels)
    assert lease is not None
    assert (lease.id, lease.owner, lease.cards) == (launch.lease_id, ANN, (CardShare(A),))
    assert lease.image == "gpuspawner/nb:latest"
    assert lease.image_id == container.image.id
    assert container.gpus == (A,)
    assert rig.ledger.in_flight() == frozenset()
    assert await rig.held() == [A]
    assert launch.stage is READY
    assert launch.undoing is None


async def test_each_gets_a_card_of_their_own(rig: Rig) -> None:
    """Two at once; the third reads why not, and nothing of that attempt is left."""
    await asyncio.gather(rig.launch(owner=ANN).run(), rig.launch(owner=BOB).run())
    assert await rig.held() == [A, B]
    third = rig.launch(owner=Owner("cho"))
    with pytest.raises(NoRoom) as refused:
        await third.run()
    assert refused.value.reason is Reason.BUSY
    assert len(rig.standin.containers) == 2
    assert rig.ledger.in_flight() == frozenset()


async def test_a_profile_without_a_card_needs_none(rig: Rig) -> None:
    """Also while the driver does not answer; nothing is checked in the container then."""
    rig.inventory = Inventory(trouble=Text("the driver does not answer"))
    await rig.launch(CPU).run()
    assert rig.standin.container(NAME).gpus == ()
    assert rig.standin.container(NAME).host_config["Runtime"] == "runc"
    assert rig.count("exec") == 0
    assert rig.ledger.in_flight() == frozenset()


async def test_the_stages_are_told_in_order(rig: Rig) -> None:
    """Whoever watches waits for the event that belongs to the stage it saw."""
    launch, seen = rig.launch(), []

    async def watch() -> None:
        while launch.stage is not READY:
            changed, stage = launch.stage_changed, launch.stage
            seen.append(stage)
            await changed.wait()

    watching = asyncio.ensure_future(watch())
    await launch.run()
    await asyncio.wait_for(watching, SOON)
    assert seen == [PREPARING, LEASING, CREATING, BOOTING]
    order = [stage.progress for stage in (PREPARING, PULLING, LEASING, NEXT, CREATING, BOOTING, READY)]
    assert order == sorted(order)


async def test_only_so_many_boot_at_once(rig: Rig) -> None:
    """Whoever is next holds a card, reads why nothing happens yet, and boots as soon as the turn comes."""
    rig.boots = Boots(1)
    first, second = await rig.launch_that_hangs(), rig.launch(owner=BOB)
    coming = asyncio.ensure_future(second.run())
    await until(lambda: second.stage is NEXT)
    assert await rig.held() == [A, B]
    assert len(rig.standin.containers) == 1
    waited_until = datetime.now(timezone.utc)
    await rig.give_up(first)
    await asyncio.wait_for(coming, SOON)
    lease = decode(rig.standin.container(object_name(BOB)).labels)
    assert lease is not None
    assert lease.started >= waited_until.replace(microsecond=0), "time is counted from the start"


async def test_who_leaves_before_the_turn_leaves_nothing(rig: Rig) -> None:
    """The Stop button, while others boot; and the turn is not lost with them."""
    rig.boots = Boots(1)
    first, second = await rig.launch_that_hangs(), rig.launch(owner=BOB)
    coming = asyncio.ensure_future(second.run())
    await until(lambda: second.stage is NEXT)
    coming.cancel()
    await asyncio.wait([coming])
    await rig.give_up(first)
    await rig.assert_nothing_left_of(second)
    await asyncio.wait_for(rig.launch(owner=BOB).run(), SOON)


async def test_one_that_hangs_holds_up_nobody_for_long(rig: Rig) -> None:
    """Law 9: its turn is over after a while, though it is not."""
    rig.boots = Boots(1, hold_seconds=0.3)
    hanging = await rig.launch_that_hangs()
    await asyncio.wait_for(rig.launch(owner=BOB).run(), SOON)
    assert hanging.stage is BOOTING
    await rig.give_up(hanging)


async def test_the_home_volume_is_made_with_its_owner_on_it(rig: Rig) -> None:
    """One for all servers of a user."""
    await rig.launch(CPU).run()
    await rig.launch(CPU, Owner("ann", "second")).run()
    assert rig.standin.volumes["jupyter-home-ann"].labels == {"gpuspawner.home": "ann", "gpuspawner.hub": "jupyter"}
    assert list(rig.standin.volumes) == ["jupyter-home-ann"]


async def test_a_home_that_belongs_to_somebody_else_is_not_mounted(rig: Rig) -> None:
    """Two names whose hashes meet: the second account does not get the first one's files."""
    await rig.engine.ensure_volume("jupyter-home-ann", {"gpuspawner.home": "Ann!"})
    launch = rig.launch()
    with pytest.raises(EngineError, match="belongs to another account"):
        await launch.run()
    assert rig.standin.containers == []
    await rig.assert_nothing_left_of(launch)


async def test_the_home_folder_is_made_before_docker_would(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker makes a missing bind source as root."""
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: None)
    await rig.launch(CPU, defaults=Defaults(home_path_template=f"{tmp_path}/{{username}}")).run()
    assert (tmp_path / "ann").is_dir()
    assert not rig.standin.volumes


@pytest.mark.fault(20)
@pytest.mark.parametrize("state", ["created", "running", "exited"])
async def test_what_an_earlier_start_left_is_never_resumed(rig: Rig, state: str) -> None:
    """Law 6: a new container of today's profile; the old one's card is free for it."""
    host_config = await rig.engine.call("create_host_config")
    first = rig.launch(BOTH)
    await first.run()
    if state == "exited":
        rig.standin.die(NAME)
    if state == "created":
        rig.standin.remove(NAME)
        labels = {"gpuspawner.lease": "1", "gpuspawner.gpus": f"{A},{B}"}
        await rig.engine.call("create_container", "gpuspawner/nb", name=NAME, labels=labels, host_config=host_config)
    second = rig.launch(BOTH)
    await second.run()
    (container,) = rig.standin.containers
    assert container.labels["gpuspawner.id"] == second.lease_id != first.lease_id
    assert await rig.held() == [A, B]


@pytest.mark.parametrize(("attach", "driver"), [("auto", "cdi"), ("nvidia", "nvidia"), ("cdi", "cdi")])
async def test_an_engine_that_lists_the_cards_attaches_them_by_cdi(attach: str, driver: str) -> None:
    """`auto` takes what the engine offers."""
    with StandinEngine(gpus={A: 3, B: 1}, cdi=True, version="28.5.2", api_version="1.51") as standin:
        standin.add_image("gpuspawner/nb")
        rig = Rig(standin, Engine({"base_url": standin.url}, call_timeout_seconds=SOON))
        await rig.launch(attach=attach).run()
        container = standin.container(NAME)
        assert [each["Driver"] for each in container.host_config["DeviceRequests"]] == [driver]
        assert container.gpus == (A,)
        rig.engine.close()


async def test_simulated_cards_are_held_and_not_attached(rig: Rig) -> None:
    """The labels hold the card; the engine is asked for none and nothing is checked."""
    rig.inventory = Inventory(rig.inventory.gpus, simulated=True)
    await rig.launch().run()
    assert not rig.standin.container(NAME).host_config["DeviceRequests"]
    assert await rig.held() == [A]
    assert rig.count("exec") == 0


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="a real nvidia-smi would answer for the stand-in")
async def test_the_check_really_runs_in_the_container(rig: Rig) -> None:
    """The probe's own words, carried out by a shell that sees the container's nodes."""
    rig.standin.exec_handler = None
    await rig.launch(BOTH).run()
    assert rig.count("exec_start") == 1


async def test_a_launch_waits_for_the_undoing_of_the_one_before(rig: Rig) -> None:
    """Two at one container would remove each other's."""
    gate = asyncio.Event()

    async def undoing() -> None:
        await gate.wait()

    predecessor = asyncio.ensure_future(undoing())
    running = asyncio.ensure_future(rig.launch(predecessor=predecessor).run())
    await asyncio.wait([running], timeout=0.2)
    assert rig.standin.calls == []
    gate.set()
    await running


async def test_the_undoing_before_may_have_failed(rig: Rig) -> None:
    """It is waited for, whatever came of it."""

    async def undoing() -> None:
        raise RuntimeError("boom")

    predecessor = asyncio.ensure_future(undoing())
    await rig.launch(predecessor=predecessor).run()
    assert str(predecessor.exception()) == "boom"


# Images


async def test_a_foreign_image_is_pulled(rig: Rig) -> None:
    """Once, and the student reads that it takes time."""
    rig.standin.add_image("quay.io/x/nb:1", remote=True)
    launch, stages = rig.launch(profile(image="quay.io/x/nb:1", gpu=None)), set()
    with rig.standin.faults.during(EngineSlow(SOON, on="pull")) as slow:
        running = asyncio.ensure_future(launch.run())
        await until(lambda: slow.struck)
        stages.add(launch.stage)
    await running
    assert stages == {PULLING}
    assert rig.standin.container(NAME).image.ref == "quay.io/x/nb:1"


@pytest.mark.parametrize(
    ("image", "may_pull"),
    [
        pytest.param("other", True, id="of the shelf: never pulled"),
        pytest.param("quay.io/x/nb:1", False, id="the admin does not want it"),
        pytest.param("quay.io/x/nowhere:1", True, id="no registry has it"),
        pytest.param("quay.io/x/nb@sha256:" + "0" * 64, True, id="nor this digest"),
    ],
)
async def test_an_image_that_cannot_be_had(rig: Rig, image: str, may_pull: bool) -> None:
    """Said before anything is leased."""
    rig.standin.add_image("quay.io/x/nb:1", remote=True)
    launch = rig.launch(profile(image=image), may_pull=may_pull)
    with pytest.raises(ImageMissing):
        await launch.run()
    assert rig.count("pull") == (1 if may_pull and "/" in image else 0)
    assert rig.count("create") == 0
    await rig.assert_nothing_left_of(launch)


# Law 4: at every step, whatever goes wrong

# All who ask at once share a look at the leases, so no undoing waits for one.
CHANGES_NOTHING = ("list",)

STEPS = [
    pytest.param("remove", False, id="remove the old container"),
    pytest.param("inspect_image", False, id="inspect the image"),
    pytest.param("list", False, id="list the leases"),
    pytest.param("info", True, id="ask for CDI"),
    pytest.param("create_volume", True, id="make the home"),
    pytest.param("create", True, id="create"),
    pytest.param("start", True, id="start"),
    pytest.param("inspect", True, id="ask for the address"),
    pytest.param("exec", True, id="begin the check"),
    pytest.param("exec_start", True, id="read the check"),
]


async def prepare(rig: Rig, step: str) -> str:
    """Make sure that the step is reached, and that it is the one that is struck; a pattern of containers."""
    if step == "remove":
        await rig.engine.call("create_container", "gpuspawner/nb", name=NAME)
    return NAME if step == "inspect" else "*"


@pytest.mark.fault(14)
@pytest.mark.parametrize(("step", "leased"), STEPS)
async def test_a_failure_at_any_step_leaves_nothing(rig: Rig, step: str, leased: bool) -> None:
    """One 500 of the engine; the launch ends with a sentence, and the next one works."""
    pattern = await prepare(rig, step)
    fault = rig.standin.faults.add(Http500(on=step, message="boom", times=1, container=pattern))
    launch = rig.launch()
    with pytest.raises(EngineError) as refused:
        await launch.run()
    assert fault.struck == 1
    assert "boom" in refused.value.detail
    assert refused.value.text.ko
    await rig.assert_nothing_left_of(launch)
    await rig.launch().run()
    assert await rig.held() == [A]


@pytest.mark.fault(14)
@pytest.mark.parametrize(("step", "leased"), STEPS)
async def test_a_cancellation_at_any_step_leaves_nothing(rig: Rig, step: str, leased: bool) -> None:
    """The Stop button: over within a second; the card is held until the call under way has ended and is undone."""
    pattern = await prepare(rig, step)
    launch = rig.launch()
    with rig.standin.faults.during(EngineSlow(SOON, on=step, container=pattern, times=1)) as slow:
        running = asyncio.ensure_future(launch.run())
        await until(lambda: slow.struck)
        running.cancel()
        began = time.monotonic()
        await asyncio.wait([running], timeout=SOON)
        assert running.cancelled()
        assert time.monotonic() - began < 1
        assert launch.undoing is not None
        await asyncio.wait([launch.undoing], timeout=0.2)
        assert launch.undoing.done() == (step in CHANGES_NOTHING)
        assert (launch.lease_id in rig.ledger.in_flight()) == leased
    await rig.assert_nothing_left_of(launch)
    await rig.launch(predecessor=launch.undoing).run()
    assert await rig.held() == [A]


# Reading the check has a longer limit of its own: see the check that hangs.
@pytest.mark.fault(14, 37)
@pytest.mark.parametrize(("step", "leased"), STEPS[:-1])
async def test_a_call_that_is_overdue_at_any_step_leaves_nothing(rig: Rig, step: str, leased: bool) -> None:
    """It is given up with a sentence; what it does later is undone as well, and the card is held until then."""
    pattern = await prepare(rig, step)
    await rig.engine.ask("version")
    rig.engine.call_timeout_seconds = 0.4
    launch = rig.launch()
    with rig.standin.faults.during(EngineSlow(SOON, on=step, container=pattern, times=1)) as slow:
        with pytest.raises(EngineTimeout):
            await launch.run()
        assert slow.struck == 1
        assert launch.undoing is not None
        await asyncio.wait([launch.undoing], timeout=0.2)
        assert launch.undoing.done() == (step in CHANGES_NOTHING)
        assert (launch.lease_id in rig.ledger.in_flight()) == leased
    rig.engine.call_timeout_seconds = SOON
    await rig.assert_nothing_left_of(launch)


@pytest.mark.fault(40)
async def test_a_container_that_is_created_late_is_removed(rig: Rig) -> None:
    """The engine carries the create out after the launch was cancelled: it was there, and it is gone."""
    launch = rig.launch()
    with rig.standin.faults.during(EngineSlow(SOON, on="create")) as slow:
        running = asyncio.ensure_future(launch.run())
        await until(lambda: slow.struck)
        running.cancel()
        await asyncio.wait([running])
        assert await rig.held() == [A]
    await rig.assert_nothing_left_of(launch)
    statuses = [
        (call.operation, status) for call, status in rig.standin.calls if call.operation in ("create", "remove")
    ]
    assert statuses == [("create", 201), ("remove", 204)]


async def test_a_container_that_is_created_during_the_last_look_is_removed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list was read before the create, and the create has ended before the list is answered."""
    launch, slow, look = rig.launch(), EngineSlow(SOON, on="create"), rig.engine.remove_lease
    rig.standin.faults.add(slow)

    async def overtaken(lease_id: str) -> None:
        await look(lease_id)
        rig.standin.faults.remove(slow)
        await until(lambda: rig.count("create"))
        # Its thread is done a moment after the engine is.
        await asyncio.sleep(0.1)

    running = asyncio.ensure_future(launch.run())
    await until(lambda: slow.struck)
    monkeypatch.setattr(rig.engine, "remove_lease", overtaken)
    running.cancel()
    await asyncio.wait([running])
    await rig.assert_nothing_left_of(launch)


@pytest.mark.parametrize("how", ["refuse", "close"])
async def test_an_engine_that_is_down_during_the_undoing(rig: Rig, how: Any) -> None:
    """It is tried again until it works; until then the card belongs to the container that may still run."""
    launch = rig.launch()
    rig.standin.faults.add(NeverAnswers())
    running = asyncio.ensure_future(launch.run())
    await until(lambda: launch.stage is BOOTING)
    with rig.standin.faults.during(EngineDown(how)):
        running.cancel()
        await asyncio.wait([running])
        assert launch.undoing is not None
        await asyncio.wait([launch.undoing], timeout=0.3)
        assert not launch.undoing.done()
        assert rig.ledger.in_flight() == {launch.lease_id}
    assert rig.standin.container(NAME).running or launch.undoing.done()
    await rig.assert_nothing_left_of(launch)


async def test_an_engine_that_dies_during_a_start_is_a_sentence(rig: Rig) -> None:
    """The student is not kept waiting for an engine that may never come back."""
    launch = rig.launch()
    rig.standin.faults.add(NeverAnswers())
    running = asyncio.ensure_future(launch.run())
    await until(lambda: launch.stage is BOOTING)
    with rig.standin.faults.during(EngineDown()):
        with pytest.raises(EngineError):
            await asyncio.wait_for(running, module.WAIT_FOR_UNDOING_SECONDS + 2)
        assert rig.ledger.in_flight() == {launch.lease_id}
    await rig.assert_nothing_left_of(launch)


async def test_an_engine_that_is_down_from_the_start_is_said_at_once(rig: Rig) -> None:
    """Nothing is made yet, so nothing has to wait for the engine; the next start works as soon as it is back."""
    launch = rig.launch()
    with rig.standin.faults.during(EngineDown()):
        with pytest.raises(EngineError):
            await launch.run()
        assert launch.undoing is not None
        assert launch.undoing.done()
    await rig.assert_nothing_left_of(launch)
    await rig.launch(predecessor=launch.undoing).run()


async def test_a_launch_that_is_stopped_in_the_moment_it_ends_stays_stopped(rig: Rig) -> None:
    """The lease is settled and the caller is gone: nobody would ever stop that server."""
    launch = rig.launch()
    running = asyncio.ensure_future(launch.run())
    while launch.stage is not READY:
        await launch.stage_changed.wait()
    assert rig.ledger.in_flight() == frozenset()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    await rig.assert_nothing_left_of(launch)


async def test_a_removal_that_fails_is_tried_again(rig: Rig) -> None:
    """As long as it takes: the card is not given to anybody before."""
    rig.standin.faults.add(DiesOnBoot(1))
    busy = rig.standin.faults.add(Http500("remove", message="device or resource busy", times=4))
    launch = rig.launch()
    with pytest.raises(ServerDied):
        await launch.run()
    await rig.assert_nothing_left_of(launch)
    assert busy.struck == 4


async def test_a_cancelled_wait_for_the_undoing_does_not_cancel_the_undoing(rig: Rig) -> None:
    """The Hub's own time limit may strike while a failed launch clears up."""
    rig.standin.faults.add(DiesOnBoot(1))
    launch = rig.launch()
    with rig.standin.faults.during(EngineSlow(SOON, on="remove")) as slow:
        running = asyncio.ensure_future(launch.run())
        await until(lambda: slow.struck)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
    await rig.assert_nothing_left_of(launch)


async def test_a_mistake_of_ours_is_cleared_up_as_well(rig: Rig) -> None:
    """An exception that nobody thought of, after the container was started."""

    async def look() -> Inventory:
        if rig.standin.containers:
            raise ZeroDivisionError
        return rig.inventory

    launch = rig.launch()
    launch._look_at_gpus = look
    with pytest.raises(ZeroDivisionError):
        await launch.run()
    await rig.assert_nothing_left_of(launch)


async def test_nobody_elses_container_is_touched(rig: Rig) -> None:
    """Clearing up goes by the lease's id."""
    await rig.launch(owner=BOB).run()
    rig.standin.faults.add(DiesOnBoot(container=NAME))
    with pytest.raises(ServerDied):
        await rig.launch().run()
    assert [container.name for container in rig.standin.containers] == [object_name(BOB)]
    assert await rig.held() == [A]


# In time


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        pytest.param(NeverAnswers(), BOOTING, id="the server never answers"),
        pytest.param(SlowBoot(60), BOOTING, id="the server is slow"),
        pytest.param(EngineSlow(60, on="create"), CREATING, id="the engine is slow"),
        pytest.param(EngineSlow(60, on="list", times=1), LEASING, id="the labels are slow"),
    ],
)
async def test_a_launch_has_a_time_limit(rig: Rig, fault: Fault, stage: module.Stage) -> None:
    """And the student reads how far it came."""
    launch = rig.launch(limit=1.0)
    began = time.monotonic()
    with rig.standin.faults.during(fault), pytest.raises(StartTimedOut) as late:
        await launch.run()
    assert 0.9 < time.monotonic() - began < 1 + module.WAIT_FOR_UNDOING_SECONDS + 1
    assert f"last step: {stage.text.en}" in late.value.text.en
    assert stage.text.ko in late.value.text.ko
    assert "within 1 seconds" in late.value.text.en
    await rig.assert_nothing_left_of(launch)


def test_the_undoing_is_waited_for_no_longer_than_the_hub_waits() -> None:
    """The Hub's limit is 3 seconds behind ours, and its failure has no words."""
    assert module.WAIT_FOR_UNDOING_SECONDS < 3


# Why it failed


@pytest.mark.parametrize(
    ("fault", "kind", "reason", "words"),
    [
        pytest.param(
            DiesOnBoot(1, logs=["Traceback", "ModuleNotFoundError: jupyterhub"]), ServerDied, Reason.DIED,
            "ModuleNotFoundError: jupyterhub", id="it crashes",
        ),
        pytest.param(
            DiesOnBoot(oom=True, after_seconds=0.3), ServerDied, Reason.OUT_OF_MEMORY, "memory (1 GiB)",
            id="out of memory",
        ),
        pytest.param(DiesOnBoot(127), ImageUnfit, Reason.IMAGE_UNFIT, "singleuser is missing", id="no such command"),
        pytest.param(ImageHasNoHub(), ImageUnfit, Reason.IMAGE_UNFIT, "singleuser is missing", id="cannot start"),
        pytest.param(HookFails(), DeviceFault, Reason.GPU_FAULT, "could not be attached", id="no GPU driver"),
    ],
)  # fmt: skip
async def test_why_a_server_did_not_come_up(
    rig: Rig, fault: Fault, kind: type[Refused], reason: Reason, words: str
) -> None:
    """A dead container is read before it is removed."""
    rig.standin.faults.add(fault)
    launch = rig.launch(profile(mem_limit="1G"))
    with pytest.raises(kind) as refused:
        await launch.run()
    assert refused.value.reason is reason
    assert words in refused.value.text.en
    await rig.assert_nothing_left_of(launch)


async def test_a_death_explains_the_address_that_is_missing(rig: Rig) -> None:
    """A container that ends at once has no published port any more: that it ended is the cause."""

    async def boot(spec: ContainerSpec) -> tuple[str, int]:
        await rig.boot(spec)
        await until(lambda: not rig.standin.container(NAME).running)
        raise RuntimeError("Failed to get port info")

    rig.standin.faults.add(DiesOnBoot(1, logs=["the real cause"]))
    launch = rig.launch(boot=boot)
    with pytest.raises(ServerDied, match="the real cause"):
        await launch.run()
    await rig.assert_nothing_left_of(launch)


async def test_a_boot_that_fails_while_the_container_runs_is_what_it_says(rig: Rig) -> None:
    """There is no death to explain then."""

    async def boot(spec: ContainerSpec) -> tuple[str, int]:
        await rig.boot(spec)
        raise RuntimeError("Unknown docker network")

    launch = rig.launch(boot=boot)
    with pytest.raises(EngineError) as refused:
        await launch.run()
    assert refused.value.detail == "Unknown docker network"
    await rig.assert_nothing_left_of(launch)


async def test_a_container_removed_from_outside(rig: Rig) -> None:
    """An admin with `docker rm -f` in the middle of a start."""
    rig.standin.faults.add(NeverAnswers())
    launch = rig.launch()
    running = asyncio.ensure_future(launch.run())
    await until(lambda: launch.stage is BOOTING)
    rig.standin.remove(NAME)
    with pytest.raises(ServerDied) as refused:
        await running
    assert refused.value.reason is Reason.REMOVED
    await rig.assert_nothing_left_of(launch)


async def test_a_server_that_answers_and_dies_in_that_moment_is_dead(rig: Rig) -> None:
    """An answer counts only of a container that runs."""
    rig.standin.faults.add(SlowBoot(0.3))
    launch = rig.launch(CPU)
    running = asyncio.ensure_future(launch.run())
    await until(lambda: launch.stage is BOOTING)
    rig.standin.die(NAME, 3, logs=["bye"])
    with pytest.raises(ServerDied, match="exit code 3"):
        await running
    await rig.assert_nothing_left_of(launch)


async def test_no_task_is_left_behind(rig: Rig) -> None:
    """Neither by a success nor by a death whose check failed as well; asyncio would complain about its error."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    await rig.launch(owner=BOB).run()
    rig.standin.faults.add(DiesOnBoot(1))
    with pytest.raises(ServerDied):
        await rig.launch().run()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    gc.collect()
    assert complaints == []


# The cards


@pytest.mark.fault(10)
async def test_a_card_that_does_not_arrive(rig: Rig) -> None:
    """The server may answer: without its card it is stopped, and the student reads which part failed."""
    rig.told = lambda container: whole_answer()
    launch = rig.launch()
    with pytest.raises(GpuNotArrived, match="/dev/nvidia3 is missing"):
        await launch.run()
    await rig.assert_nothing_left_of(launch)


@pytest.mark.fault(10)
async def test_a_card_too_many(rig: Rig) -> None:
    """Somebody else's card in the container is worse than none."""
    rig.told = lambda container: whole_answer(3, 1)
    launch = rig.launch()
    with pytest.raises(GpuNotArrived, match="nvidia1, which is not leased"):
        await launch.run()
    await rig.assert_nothing_left_of(launch)


@pytest.mark.parametrize("lost", [1, 2])
async def test_an_answer_whose_beginning_is_lost_is_asked_for_again(rig: Rig, lost: int) -> None:
    """docker-py loses what comes in one packet with the header of the answer."""
    asked: list[int] = []

    def told(container: Container) -> str:
        asked.append(1)
        answer = whole_answer(*rig.minors(container))
        return answer[20:] if len(asked) <= lost else answer

    rig.told = told
    await rig.launch().run()
    assert len(asked) == lost + 1


@pytest.mark.parametrize("answer", ["", "--- end ---\n", "sh: not found\n"])
async def test_a_container_that_never_answers_the_check(rig: Rig, answer: str) -> None:
    """Nothing is concluded from half an answer; asked three times, it is the answer that is missing."""
    rig.told = lambda container: answer
    launch = rig.launch()
    with pytest.raises(GpuNotArrived, match="did not answer the check"):
        await launch.run()
    assert rig.count("exec_start") <= module.ARRIVAL_TRIES
    await rig.assert_nothing_left_of(launch)


async def test_a_check_that_hangs_is_within_the_time_of_the_launch(rig: Rig) -> None:
    """`nvidia-smi` does that when a card has fallen off the bus."""
    launch = rig.launch(limit=1.0)
    with rig.standin.faults.during(EngineSlow(60, on="exec_start")), pytest.raises(StartTimedOut):
        await launch.run()
    await rig.assert_nothing_left_of(launch)


async def test_a_card_that_drops_off_before_the_container_starts(rig: Rig) -> None:
    """The driver does not know it any more: the engine refuses."""
    rig.standin.gpus = {B: 1}
    launch = rig.launch()
    with pytest.raises(DeviceFault):
        await launch.run()
    await rig.assert_nothing_left_of(launch)


async def test_a_card_that_drops_off_while_the_server_boots(rig: Rig) -> None:
    """Nothing may be said about a card that is not there."""

    async def boot(spec: ContainerSpec) -> tuple[str, int]:
        place = await rig.boot(spec)
        rig.inventory = Inventory(rig.inventory.gpus[1:])
        return place

    launch = rig.launch(boot=boot)
    with pytest.raises(GpuNotArrived, match="dropped off") as refused:
        await launch.run()
    assert A in refused.value.detail
    await rig.assert_nothing_left_of(launch)


@pytest.mark.fault(9)
async def test_cards_that_change_their_numbers_stay_who_they_are(rig: Rig) -> None:
    """The machine comes up again and counts its cards the other way round: holder and newcomer keep apart by UUID."""
    await rig.launch(owner=ANN).run()
    first, second = rig.inventory.gpus
    rig.inventory = Inventory((replace(second, index=0, minor=3), replace(first, index=1, minor=1)))
    rig.standin.gpus = {B: 3, A: 1}
    rig.ledger = Ledger(rig.engine.holdings, rig.look, Policy())
    assert await rig.held() == [A]
    await rig.launch(owner=BOB).run()
    container = rig.standin.container(object_name(BOB))
    assert (container.gpus, rig.minors(container)) == ((B,), [3])
    assert container.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert await rig.held() == [A, B]


@pytest.mark.fault(32)
async def test_a_hook_that_takes_too_long_is_named(rig: Rig) -> None:
    """A driver without persistence mode wakes up too slowly: the log has the hook's words, the student a sentence."""
    words = "nvidia-container-cli: initialization error: driver rpc error: timed out"
    launch = rig.launch()
    with rig.standin.faults.during(HookFails(words)), pytest.raises(DeviceFault) as refused:
        await launch.run()
    assert words in refused.value.detail
    assert "could not be attached" in refused.value.text.en
    await rig.assert_nothing_left_of(launch)


async def test_a_driver_that_fails_while_the_server_boots(rig: Rig) -> None:
    """Law 10: that is not a card that dropped off; it is not known."""

    async def boot(spec: ContainerSpec) -> tuple[str, int]:
        place = await rig.boot(spec)
        rig.inventory = Inventory(trouble=Text("The driver does not answer.", "응답 없음"), detail="NVML: 999")
        return place

    launch = rig.launch(boot=boot)
    with pytest.raises(GpusUnknown, match="does not answer"):
        await launch.run()
    rig.inventory = Inventory()
    await rig.assert_nothing_left_of(launch)


async def test_a_cancelled_launch_was_not_begun(rig: Rig) -> None:
    """Cancelled before its first step."""
    launch = rig.launch()
    running = asyncio.ensure_future(launch.run())
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert rig.standin.calls == []
    assert rig.ledger.in_flight() == frozenset()
