"""The adapter to the Docker engine, with the real docker-py on the stand-in engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
import requests
from docker.errors import APIError, DockerException, ImageNotFound

from gpuspawner.container import last_words
from gpuspawner.dockerd import Engine, collecting, ended, image_missing, is_name_conflict, translate
from gpuspawner.dockerd import engine as dockerd
from gpuspawner.errors import (
    DeviceFault,
    DiskFull,
    EngineDown,
    EngineError,
    EngineTimeout,
    ImageMissing,
    ImageUnfit,
    NoRoom,
    Reason,
    Refused,
)
from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import LEASE, PREFIX, CardShare, Held, Lease, Owner, encode
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests.standins import engine as standins
from tests.standins.engine import EngineSlow, Fault, Http500, RemovalInProgress, StandinEngine
from tests.unit.sockets import BROKEN_SOCKETS

A, B = GpuUuid("GPU-a"), GpuUuid("GPU-b")
SOON = 10.0


pytestmark = BROKEN_SOCKETS


@pytest.fixture(autouse=True)
def no_docker_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell says about Docker is not for these tests."""
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def standin() -> Iterator[StandinEngine]:
    """An engine with two cards and a notebook image."""
    with StandinEngine(gpus={A: 0, B: 1}) as engine:
        engine.add_image("nb")
        yield engine


@pytest.fixture
def engine(standin: StandinEngine) -> Iterator[Engine]:
    """Ours, on it."""
    engine = Engine({"base_url": standin.url}, call_timeout_seconds=SOON)
    yield engine
    standin.faults.clear()
    engine.close()


def lease(number: int = 1, *cards: CardShare, hub: str = "jupyter") -> Lease:
    """A lease of these cards."""
    started = datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc)
    return Lease(f"{number:032x}", Owner("ann", hub=hub), "one", cards, started)


async def create(engine: Engine, name: str, labels: Mapping[str, str] | None = None, **more: Any) -> str:
    """A container that is created and not started; its id."""
    made = await engine.call("create_container", "nb", name=name, labels=dict(labels or {}), **more)
    return str(made["Id"])


async def run(engine: Engine, name: str, labels: Mapping[str, str] | None = None) -> str:
    """A container that runs; its id."""
    container_id = await create(engine, name, labels)
    await engine.call("start", container_id)
    return container_id


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition, with a deadline."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


async def struck(fault: Fault, times: int = 1) -> None:
    """Wait until a fault has hit."""
    await until(lambda: fault.struck >= times)


def count(standin: StandinEngine, operation: str) -> int:
    """How often the engine was asked for it."""
    return len([call for call, _ in standin.calls if call.operation == operation])


# Errors


def api_error(message: str, status: int = 500) -> APIError:
    """As docker-py makes it of an answer of the engine."""
    response = requests.Response()
    response.status_code = status
    kind = ImageNotFound if status == 404 and "No such image" in message else APIError
    return kind("Server Error", response=response, explanation=message)


SHIM = "failed to create shim task: OCI runtime create failed: runc create failed: "
START = SHIM + "unable to start container process: "
HOOK = (
    START + "error during container init: error running hook #0: error running hook: exit status 1, stdout: , stderr: "
)
OLD = "OCI runtime create failed: container_linux.go:380: starting container process caused: "


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(
            api_error('could not select device driver "nvidia" with capabilities: [[gpu compute utility]]'),
            DeviceFault, id="no toolkit",
        ),
        pytest.param(
            api_error('could not select device driver "" with capabilities: [[gpu]]'), DeviceFault, id="no driver",
        ),
        pytest.param(
            api_error('could not select device driver "cdi" with capabilities: []'), DeviceFault, id="no CDI",
        ),
        pytest.param(
            api_error("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-9"),
            DeviceFault, id="stale CDI spec",
        ),
        pytest.param(
            api_error(HOOK + "Auto-detected mode\nnvidia-container-cli: device error: GPU-9: unknown device"),
            DeviceFault, id="the card is gone",
        ),
        pytest.param(
            api_error(HOOK + "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown"),
            DeviceFault, id="the driver is gone",
        ),
        pytest.param(
            api_error(START + 'exec: "nvidia-container-runtime-hook": executable file not found in $PATH: unknown'),
            DeviceFault, id="the hook was uninstalled",
        ),
        pytest.param(
            api_error("mkdir /var/lib/docker/overlay2/0f-init: no space left on device"), DiskFull, id="disk full",
        ),
        pytest.param(api_error("write /x: disk quota exceeded"), DiskFull, id="quota"),
        pytest.param(api_error("No such image: gpuspawner/x:latest", 404), ImageMissing, id="image missing"),
        pytest.param(api_error("No such image: nvidia-container/x:latest", 404), ImageMissing, id="NVIDIA's missing"),
        pytest.param(
            api_error("pull access denied for x, repository does not exist or may require 'docker login'", 404),
            ImageMissing, id="no such repository",
        ),
        pytest.param(
            api_error(START + 'exec: "jupyterhub-singleuser": executable file not found in $PATH: unknown', 400),
            ImageUnfit, id="no notebook server",
        ),
        pytest.param(
            api_error(OLD + 'exec: "jupyterhub-singleuser": executable file not found in $PATH: unknown', 400),
            ImageUnfit, id="no notebook server, older words",
        ),
        pytest.param(
            api_error(START + 'exec: "/srv/start.sh": stat /srv/start.sh: no such file or directory: unknown', 400),
            ImageUnfit, id="no such file",
        ),
        pytest.param(
            api_error(START + 'exec: "/srv/start.sh": permission denied: unknown', 400), ImageUnfit, id="no right",
        ),
        pytest.param(api_error("No command specified", 400), ImageUnfit, id="no command"),
        pytest.param(
            api_error('Conflict. The container name "/jupyter-nvidia" is already in use by container "1f"', 409),
            EngineError, id="a user called nvidia",
        ),
        pytest.param(api_error("network notebooks not found", 404), EngineError, id="no such network"),
        pytest.param(api_error("layer does not exist"), EngineError, id="anything else"),
        pytest.param(requests.exceptions.ReadTimeout("read timed out"), EngineTimeout, id="no answer in time"),
        pytest.param(requests.exceptions.ConnectTimeout("connect"), EngineDown, id="no connection in time"),
        pytest.param(requests.exceptions.ConnectionError("refused"), EngineDown, id="connection refused"),
        pytest.param(
            DockerException("Error while fetching server API version: no such file"), EngineDown, id="no socket",
        ),
        pytest.param(TypeError("a mistake of ours"), EngineError, id="a mistake of ours"),
    ],
)  # fmt: skip
def test_the_words_of_the_engine_become_ours(error: Exception, kind: type[Refused]) -> None:
    """Law 7: exactly that class, a sentence in both languages, the engine's words for the log."""
    ours = translate(error, image="gpuspawner/x:latest")
    assert type(ours) is kind
    assert ours.text.en.endswith((".", "x"))
    assert ours.text.ko
    assert str(getattr(error, "explanation", None) or error) in ours.detail
    assert "OCI" not in ours.text.en


def test_our_own_errors_pass_through() -> None:
    """What is a sentence already is not wrapped again."""
    error = NoRoom(Text("full", "가득"))
    assert translate(error) is error


def test_a_mistake_of_ours_leaves_a_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The student reads a sentence, the admin can report the mistake."""
    with caplog.at_level(logging.ERROR):
        translate(TypeError("a mistake of ours"))
    assert caplog.records[0].exc_info
    caplog.clear()
    translate(api_error("layer does not exist"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("reference", "command"),
    [
        pytest.param("gpuspawner/pytorch:latest", "images/build_images.py pytorch", id="of the shelf"),
        pytest.param("quay.io/x/y:1", "docker pull quay.io/x/y:1", id="foreign"),
    ],
)
def test_a_missing_image_comes_with_the_command(reference: str, command: str) -> None:
    """The admin who is told by a student can paste it."""
    error = image_missing(reference)
    assert command in error.text.en
    assert command in error.text.ko
    assert error.reason is Reason.NO_IMAGE


GPU = {"device_requests": [{"Driver": "nvidia", "DeviceIDs": [A], "Capabilities": [["gpu"]]}]}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(standins.DiskFull(), DiskFull, id="disk full at create"),
        pytest.param(standins.DiskFull("start"), DiskFull, id="disk full at start"),
        pytest.param(standins.NoSuchImage(), ImageMissing, id="image gone"),
        pytest.param(standins.ImageHasNoHub(), ImageUnfit, id="no notebook server"),
        pytest.param(standins.NoDeviceDriver(), DeviceFault, id="no toolkit"),
        pytest.param(standins.HookFails(), DeviceFault, id="the hook refuses"),
        pytest.param(Http500("start"), EngineError, id="500"),
        pytest.param(standins.EngineDown("close"), EngineDown, id="engine hangs up"),
    ],
)
async def test_what_docker_py_really_raises(
    standin: StandinEngine, engine: Engine, fault: Fault, kind: type[Refused]
) -> None:
    """The same by way of HTTP and docker-py's own exceptions."""
    host_config = await engine.call("create_host_config", **GPU)
    with standin.faults.during(fault), pytest.raises((DockerException, requests.RequestException)) as raised:
        await engine.call("start", await create(engine, "ann", host_config=host_config))
    assert type(translate(raised.value, image="nb")) is kind


async def test_a_name_that_is_taken_is_told_from_other_conflicts(standin: StandinEngine, engine: Engine) -> None:
    """The spawner clears the name and creates again."""
    await create(engine, "ann")
    with pytest.raises(APIError) as raised:
        await create(engine, "ann")
    assert is_name_conflict(raised.value)
    assert not is_name_conflict(api_error("removal of container 1f is already in progress", 409))
    assert not is_name_conflict(ValueError("already in use"))


@pytest.mark.parametrize("known", [False, True], ids=["from the start", "later"])
async def test_an_engine_that_is_down_and_comes_back(standin: StandinEngine, engine: Engine, known: bool) -> None:
    """Down is an error with a sentence; afterwards all is well without anybody's help."""
    if known:
        await engine.ask("version")
    with standin.faults.during(standins.EngineDown()):
        for work in (engine.facts, engine.leased, lambda: engine.find("ann"), lambda: engine.remove("ann")):
            with pytest.raises(EngineDown):
                await work()
    assert await engine.find("ann") is None


# Calls


async def test_a_call_has_a_time_limit_and_goes_on_without_us(standin: StandinEngine, engine: Engine) -> None:
    """The answer is given up; the effect still comes."""
    await engine.ask("version")
    with standin.faults.during(EngineSlow(SOON, on="create")) as slow:
        with pytest.raises(EngineTimeout, match="too slow") as late:
            await engine.call("create_container", "nb", name="ann", time_limit=0.1)
        assert late.value.detail == "create_container took longer than 0.1 s"
        await struck(slow)
        assert not standin.containers
    await until(lambda: bool(standin.containers))


@pytest.mark.fault(37)
async def test_the_usual_limit_holds_where_none_is_said(standin: StandinEngine) -> None:
    """A queue for a free thread counts too: to the student it is the same."""
    engine = Engine({"base_url": standin.url}, threads=1, call_timeout_seconds=0.2)
    with standin.faults.during(EngineSlow(SOON, on="inspect")):
        for operation in (engine.find("ann"), engine.leased()):
            with pytest.raises(EngineTimeout):
                await operation
    engine.close()


async def test_a_slow_call_of_one_user_delays_nobody_else(standin: StandinEngine, engine: Engine) -> None:
    """Law 9: DockerSpawner's own pool has one thread for everybody."""
    await run(engine, "ann")
    await run(engine, "bob")
    with standin.faults.during(EngineSlow(SOON, on="inspect", container="ann")) as slow:
        others = [asyncio.ensure_future(engine.find("ann")) for _ in range(8)]
        await struck(slow, 8)
        assert await asyncio.wait_for(engine.find("bob"), 2)
    await asyncio.gather(*others)


async def test_pulls_have_a_pool_of_their_own(standin: StandinEngine) -> None:
    """Law 9: many long pulls, one thread for calls, and a call goes through at once."""
    for number in range(4):
        standin.add_image(f"big-{number}", remote=True)
    engine = Engine({"base_url": standin.url}, threads=1, call_timeout_seconds=0.5)
    with standin.faults.during(EngineSlow(SOON, on="pull")) as slow:
        pulls = [asyncio.ensure_future(engine.call("pull", f"big-{number}", "latest")) for number in range(4)]
        await struck(slow, 2)
        assert await engine.find("ann") is None
    # And a pull has no time limit.
    await asyncio.gather(*pulls)
    assert (await engine.image_facts("big-3")).reference == "big-3"
    engine.close()


async def test_calls_that_were_given_up_are_collected(standin: StandinEngine, engine: Engine) -> None:
    """Those that ended drop out by themselves; of the rest one can wait for the end."""
    with standin.faults.during(EngineSlow(SOON, on="create")) as slow:
        with collecting() as calls:
            await engine.ask("version")
            assert not calls
            task = asyncio.ensure_future(create(engine, "ann"))
            await struck(slow)
            task.cancel()
            await asyncio.wait([task])
        assert len(calls) == 1
        waiting = asyncio.ensure_future(ended(calls))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
    await asyncio.wait_for(waiting, SOON)
    assert not calls
    assert standin.container("ann").status == "created"


async def test_a_call_that_fails_has_ended_as_well(standin: StandinEngine, engine: Engine) -> None:
    """`ended` raises nothing."""
    with collecting() as calls:
        task = asyncio.ensure_future(engine.call("inspect_container", "ann"))
        await until(lambda: calls or task.done())
        pending = set(calls)
        await ended(pending)
    with pytest.raises(DockerException):
        await task
    assert not calls


async def test_each_collects_its_own(standin: StandinEngine, engine: Engine) -> None:
    """Two launches at once do not wait for each other's calls."""

    async def launch(name: str) -> set[Any]:
        with collecting() as calls:
            with pytest.raises(EngineTimeout):
                await engine.call("create_container", "nb", name=name, time_limit=0.3)
            return calls

    await engine.ask("version")
    with standin.faults.during(EngineSlow(SOON, on="create")):
        ann, bob = await asyncio.gather(launch("ann"), launch("bob"))
        assert len(ann) == len(bob) == 1
        assert ann.isdisjoint(bob)
        with pytest.raises(EngineTimeout):
            await engine.call("create_container", "nb", name="cho", time_limit=0.1)
        assert len(ann | bob) == 2
    await ended(ann | bob)


def test_what_the_admin_says_to_docker_py_counts(standin: StandinEngine) -> None:
    """`client_kwargs` is DockerSpawner's; a read timeout in it is not a mistake."""
    engine = Engine({"base_url": standin.url, "timeout": 77})
    assert engine.client.timeout == 77
    engine.close()


def test_by_default_a_hanging_thread_comes_back(standin: StandinEngine) -> None:
    """docker-py's own time limit is behind ours, so that the thread is free some time after we gave up."""
    engine = Engine({"base_url": standin.url}, call_timeout_seconds=15)
    assert engine.client.timeout == 30
    engine.close()


# Facts


async def test_facts_of_the_engine_are_asked_once_a_minute(
    standin: StandinEngine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start wants them, `docker info` is slow on a busy engine."""
    for _ in range(3):
        facts = await engine.facts()
    assert (facts.version, facts.cdi_devices) == ("20.10.24", ())
    assert "runc" in facts.runtimes
    assert count(standin, "info") == 1
    later = dockerd.time.monotonic() + 61
    monkeypatch.setattr(dockerd.time, "monotonic", lambda: later)
    await engine.facts()
    assert count(standin, "info") == 2


async def test_a_new_engine_lists_the_names_of_the_cards() -> None:
    """Only those of CDI; `attachment_for` decides by them."""
    with StandinEngine(gpus={A: 0}, cdi=True, version="28.5.2", api_version="1.51") as standin:
        engine = Engine({"base_url": standin.url})
        assert "nvidia.com/gpu=GPU-a" in (await engine.facts()).cdi_devices
        engine.close()


@pytest.mark.parametrize(
    ("env", "home"),
    [
        pytest.param({"HOME": "/root"}, "/root", id="the image says"),
        pytest.param({"HOME": ""}, "/home/jovyan", id="empty"),
        pytest.param({"PATH": "/bin"}, "/home/jovyan", id="the image does not say"),
        pytest.param({}, "/home/jovyan", id="no environment"),
    ],
)
async def test_the_home_of_an_image(standin: StandinEngine, engine: Engine, env: dict[str, str], home: str) -> None:
    """The home volume is mounted there."""
    image = standin.add_image("other:1", env=env)
    facts = await engine.image_facts("other:1")
    assert (facts.reference, facts.id, facts.home) == ("other:1", image.id, home)


async def test_an_image_that_is_not_there(engine: Engine) -> None:
    """Named, so that the admin knows which."""
    with pytest.raises(ImageMissing, match="'nothing'"):
        await engine.image_facts("nothing:1")


async def test_an_engine_that_fails_is_not_an_image_that_is_missing(standin: StandinEngine, engine: Engine) -> None:
    """What cannot be known is not denied."""
    with standin.faults.during(Http500("inspect_image")), pytest.raises(EngineError) as raised:
        await engine.image_facts("nb")
    assert type(raised.value) is EngineError


async def test_every_image_with_its_names_and_its_age(standin: StandinEngine, engine: Engine) -> None:
    """What `gpuspawner status` compares with."""
    made = standin.add_image("other:1")
    found = {reference: image for image in await engine.images() for reference in image.references}
    assert found["other:1"].id == made.id
    assert abs(found["other:1"].created.timestamp() - made.created) <= 1


def test_an_image_without_a_tag_has_no_name(standin: StandinEngine, engine: Engine) -> None:
    """Engines before 25 write "<none>", newer ones nothing; digests are names too."""
    read = [
        dockerd._image({"Id": "sha256:1", "Created": 0, "RepoTags": tags, "RepoDigests": digests})
        for tags, digests in ((["<none>:<none>"], ["<none>@<none>"]), (None, None), ([], ["a@sha256:2"]))
    ]
    assert [image.references for image in read] == [(), (), ("a@sha256:2",)]


async def test_a_leased_container_knows_its_image(standin: StandinEngine, engine: Engine) -> None:
    """By id, whatever the tag means by now."""
    before = next(image.id for image in standin.images if image.ref == "nb:latest")
    await create(engine, "ann", encode(lease(1)))
    standin.add_image("nb")
    assert [entry.image_id for entry in await engine.leased()] == [before]


def test_images_that_are_missing(standin: StandinEngine, engine: Engine) -> None:
    """For the log at the Hub's start, which waits for the answer."""
    assert engine.missing_images(["nb:latest", "nothing:1", "nb"]) == {"nothing:1"}
    assert engine.missing_images([]) == frozenset()


@pytest.mark.parametrize("fault", [Http500("inspect_image"), standins.EngineDown("close")], ids=["500", "down"])
def test_an_engine_that_does_not_tell_which_images_are_missing(
    standin: StandinEngine, engine: Engine, fault: Fault
) -> None:
    """What cannot be known is not denied."""
    assert engine.client.ping()
    with standin.faults.during(fault), pytest.raises(EngineError) as raised:
        engine.missing_images(["nothing:1"])
    assert not isinstance(raised.value, ImageMissing)


# Leases on the labels


@pytest.mark.fault(3)
@pytest.mark.parametrize(
    ("state", "holds"),
    [
        ("created", True), ("running", True), ("paused", True), ("restarting", True), ("removing", True),
        ("exited", False), ("dead", False),
    ],
)  # fmt: skip
async def test_which_containers_hold_their_cards(
    standin: StandinEngine, engine: Engine, state: str, holds: bool
) -> None:
    """All but those whose processes are over."""
    await create(engine, "ann", encode(lease(1, CardShare(A))))
    standin.container("ann").status = state
    assert await engine.holdings() == ({lease(1).id: Held((CardShare(A),), lease(1).owner)} if holds else {})


@pytest.mark.fault(22)
async def test_leases_of_every_hub_count(engine: Engine) -> None:
    """Two Hubs may share an engine; containers of others hold nothing of ours."""
    await create(engine, "ann", encode(lease(1, CardShare(A))))
    await create(engine, "bob", encode(lease(2, CardShare(B, GIB), hub="other")))
    await create(engine, "cpu", encode(lease(3)))
    await create(engine, "stranger", {"com.example": "1"})
    assert await engine.holdings() == {
        lease(1).id: Held((CardShare(A),), lease(1).owner),
        lease(2).id: Held((CardShare(B, GIB),), lease(2, hub="other").owner),
        lease(3).id: Held((), lease(3).owner),
    }
    assert {entry.name: entry.lease for entry in await engine.leased()}["bob"] == lease(
        2, CardShare(B, GIB), hub="other"
    )


@pytest.mark.fault(5)
async def test_a_second_container_of_one_lease_counts_as_well(engine: Engine) -> None:
    """An image that was committed from a server has its labels, and so has whatever is started from it."""
    await create(engine, "ann", encode(lease(1, CardShare(A))))
    copy = await create(engine, "copy", encode(lease(1, CardShare(A))))
    found = await engine.holdings()
    assert set(found) < {lease(1).id, copy, *(entry.id for entry in await engine.leased())}
    assert [held.cards for held in found.values()] == [(CardShare(A),)] * 2


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({LEASE: "2"}, id="another version's format"),
        pytest.param({PREFIX + "vram": "many"}, id="not a number"),
        pytest.param({PREFIX + "vram": "-1"}, id="a negative budget"),
        pytest.param({PREFIX + "started": "yesterday"}, id="not a time"),
    ],
)
async def test_labels_that_cannot_be_read_hold_the_whole_card(
    engine: Engine, damage: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """In doubt nobody else gets it; the admin reads which container."""
    container_id = await create(engine, "ann", {**encode(lease(1, CardShare(A, GIB))), **damage})
    assert await engine.holdings() == {container_id: Held((CardShare(A),))}
    assert "ann" in caplog.text


@pytest.mark.parametrize("fault", [Http500("list"), standins.EngineDown("close")], ids=["500", "down"])
async def test_leases_that_cannot_be_listed_are_an_error(standin: StandinEngine, engine: Engine, fault: Fault) -> None:
    """Never an empty answer: all cards would look free."""
    with standin.faults.during(fault), pytest.raises(EngineError):
        await engine.holdings()


# Containers


async def test_a_container_is_found_by_name_and_id(engine: Engine) -> None:
    """None means that there is none."""
    container_id = await create(engine, "ann")
    for key in ("ann", container_id):
        found = await engine.find(key)
        assert found is not None
        assert found["Id"] == container_id
    assert await engine.find("bob") is None


async def test_an_engine_that_fails_is_not_a_container_that_is_gone(standin: StandinEngine, engine: Engine) -> None:
    """DockerSpawner takes a 500 for "stopped" and forgets a container that runs."""
    await run(engine, "ann")
    with standin.faults.during(Http500("inspect")), pytest.raises(EngineError):
        await engine.find("ann")


async def test_evidence_of_a_death(standin: StandinEngine, engine: Engine) -> None:
    """Exit code, memory, and the end of the log, without the megabyte that a program printed on one line."""
    await run(engine, "ann")
    standin.die("ann", oom=True, logs=[f"line {n}" for n in range(100)] + ["z" * 100_000])
    found = await engine.find("ann")
    assert found is not None
    evidence = await engine.evidence(found, lines=3)
    assert (evidence.exit_code, evidence.out_of_memory) == (137, True)
    assert evidence.log_lines == ("line 98", "line 99", "z" * dockerd.LOG_LINE_LIMIT)


async def test_a_log_that_cannot_be_read_does_not_hide_the_rest(standin: StandinEngine, engine: Engine) -> None:
    """The exit code alone says something."""
    await run(engine, "ann")
    standin.die("ann", 3)
    found = await engine.find("ann")
    assert found is not None
    with standin.faults.during(Http500("logs")):
        evidence = await engine.evidence(found)
    assert evidence.exit_code == 3
    assert "could not be read" in evidence.record
    assert "“" not in str(last_words(evidence, None))


async def test_a_command_in_a_container(standin: StandinEngine, engine: Engine) -> None:
    """Both streams, whatever the exit code."""
    standin.exec_handler = lambda container, words: standins.ExecAnswer(1, f"{words}\n".encode(), b"warning \xff\n")
    await run(engine, "ann")
    assert await engine.run_in("ann", ("sh", "-c", "ls")) == "['sh', '-c', 'ls']\nwarning \ufffd\n"


async def test_a_command_that_hangs(standin: StandinEngine, engine: Engine) -> None:
    """`nvidia-smi` does that when a card has fallen off the bus."""
    await run(engine, "ann")
    with standin.faults.during(EngineSlow(SOON, on="exec_start")), pytest.raises(EngineTimeout):
        await engine.run_in("ann", ("nvidia-smi",), time_limit=0.2)


# Removal


@pytest.mark.parametrize("state", ["created", "running", "paused", "exited"])
async def test_a_container_is_removed_in_any_state(standin: StandinEngine, engine: Engine, state: str) -> None:
    """By force, and its cards are let go when this returns."""
    await (create if state == "created" else run)(engine, "ann", encode(lease(1, CardShare(A))))
    if state == "paused":
        await engine.call("pause", "ann")
    if state == "exited":
        standin.die("ann")
    await engine.remove("ann")
    assert not standin.containers
    assert await engine.holdings() == {}
    await engine.remove("ann")


@pytest.mark.fault(36)
async def test_a_removal_that_is_under_way_is_waited_for(standin: StandinEngine, engine: Engine) -> None:
    """Two may remove at once (a 409): both return when it is gone, and the name is free."""
    await run(engine, "ann")
    standin.faults.add(RemovalInProgress(times=3))
    await engine.remove("ann")
    assert not standin.containers
    await create(engine, "ann")


async def test_somebody_else_may_finish_a_removal(standin: StandinEngine, engine: Engine) -> None:
    """409 until the container is gone."""
    await run(engine, "ann")
    with standin.faults.during(RemovalInProgress(times=None)) as busy:
        removing = asyncio.ensure_future(engine.remove("ann"))
        await struck(busy)
        assert not removing.done()
        # Not by the API: the fault would strike it as well.
        standin.remove("ann")
        standin.faults.remove(busy)
        await asyncio.wait_for(removing, SOON)


async def test_a_removal_that_never_ends_is_an_error(
    standin: StandinEngine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever, and nobody believes that the card is free."""
    monkeypatch.setattr(dockerd, "REMOVAL_PAUSE_SECONDS", 0.001)
    await run(engine, "ann")
    with (
        standin.faults.during(RemovalInProgress(times=None)) as busy,
        pytest.raises(EngineError, match="does not finish removing"),
    ):
        await engine.remove("ann")
    assert busy.struck == dockerd.REMOVAL_TRIES


@pytest.mark.fault(36)
async def test_a_late_removal_does_not_hit_the_next_container(standin: StandinEngine, engine: Engine) -> None:
    """The engine gets to it when the name is another container's (moby#37698: act by id)."""
    await run(engine, "ann")
    with standin.faults.during(EngineSlow(SOON, on="remove")) as slow:
        removing = asyncio.ensure_future(engine.remove("ann"))
        await struck(slow)
        standin.remove("ann")
        successor = await run(engine, "ann")
    await asyncio.wait_for(removing, SOON)
    assert [container.id for container in standin.containers] == [successor]


async def test_all_of_a_lease_is_removed_whatever_its_name(standin: StandinEngine, engine: Engine) -> None:
    """And nothing else; also what has ended."""
    await create(engine, "one", encode(lease(1)))
    await run(engine, "two", encode(lease(1)))
    await run(engine, "three", encode(lease(1)))
    standin.die("three")
    await run(engine, "other", encode(lease(2)))
    await engine.remove_lease(lease(1).id)
    assert [container.name for container in standin.containers] == ["other"]


async def test_a_removal_that_fails_is_an_error(standin: StandinEngine, engine: Engine) -> None:
    """A root file system that is busy, say."""
    await run(engine, "ann")
    with standin.faults.during(Http500("remove", message="device or resource busy")), pytest.raises(EngineError):
        await engine.remove("ann")
    assert standin.container("ann")


# Volumes and networks


async def test_a_volume_is_made_once(standin: StandinEngine, engine: Engine) -> None:
    """The second time it keeps what it has."""
    await engine.ensure_volume("home", {"gpuspawner.home": "ann"})
    assert await engine.ensure_volume("home", {"gpuspawner.home": "bob"}) == {"gpuspawner.home": "ann"}
    assert standin.volumes["home"].labels == {"gpuspawner.home": "ann"}


def test_a_network_is_made_once(standin: StandinEngine, engine: Engine) -> None:
    """The gateway, which old engines leave out when they chose it, is the Hub's address for the notebooks."""
    for _ in range(2):
        assert engine.ensure_network("notebooks") == "127.1.0.1"
    assert count(standin, "create_network") == 1
    assert standin.networks["notebooks"].options["com.docker.network.bridge.enable_icc"] == "false"


def test_a_network_with_a_longer_name_is_another_one(standin: StandinEngine, engine: Engine) -> None:
    """The engine's filter finds parts of names."""
    engine.ensure_network("notebooks-old")
    engine.ensure_network("notebooks")
    assert {"notebooks", "notebooks-old"} <= set(standin.networks)


def test_a_network_on_an_engine_that_is_down(standin: StandinEngine, engine: Engine) -> None:
    """The Hub's configuration stops with a sentence."""
    with standin.faults.during(standins.EngineDown()), pytest.raises(EngineDown):
        engine.ensure_network("notebooks")
