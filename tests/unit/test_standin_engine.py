"""The stand-in engine itself: its faults, its notebooks, and the real DockerSpawner on it."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import jupyterhub
import pytest
import requests
from docker.errors import APIError
from docker.types import DeviceRequest
from dockerspawner import DockerSpawner
from jupyterhub import orm
from jupyterhub.objects import Hub
from jupyterhub.user import User
from jupyterhub.utils import wait_for_http_server

from tests.standins.engine import (
    CreateConflict,
    DiesOnBoot,
    DiskFull,
    EngineDown,
    EngineSlow,
    ExecAnswer,
    Fault,
    GpuNodeMissing,
    HangsOnStop,
    HookFails,
    Http500,
    ImageHasNoHub,
    NeverAnswers,
    NoDeviceDriver,
    NoSuchImage,
    RemovalInProgress,
    SlowBoot,
    StandinEngine,
    StartFails,
)

# docker-py leaves the socket of a refused connection to the garbage collector.
LEAKS_A_SOCKET = pytest.mark.filterwarnings("ignore:unclosed <socket.socket fd=.*family=1:ResourceWarning")

CARDS = {"GPU-a": 3, "GPU-b": 1}
GPU = DeviceRequest(driver="nvidia", device_ids=["GPU-a"], capabilities=[["gpu"]])
ENV = {"JUPYTERHUB_SERVICE_PREFIX": "/user/ann/", "JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8899/user/ann/"}


@pytest.fixture
def engine() -> Iterator[StandinEngine]:
    """An engine with two cards and a notebook image."""
    with StandinEngine(gpus=CARDS) as one:
        one.add_image("nb", env={"FROM_IMAGE": "1"}, labels={"from": "image"})
        yield one


@pytest.fixture
def api(engine: StandinEngine) -> Iterator[docker.APIClient]:
    """The real docker-py on it."""
    client = docker.APIClient(engine.url, timeout=5)
    yield client
    client.close()


def create(api: docker.APIClient, name: str = "ann", *, command: list[str] | None = None, **host: Any) -> str:
    """Create a notebook container and return its name."""
    config = api.create_host_config(**host)
    api.create_container("nb", command, name=name, environment=ENV, ports={"8899/tcp": None}, host_config=config)
    return name


def start(api: docker.APIClient, name: str = "ann", **host: Any) -> str:
    """Create and start one."""
    api.start(create(api, name, **host))
    return name


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll a condition to a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        threading.Event().wait(0.01)


def address(api: docker.APIClient, name: str = "ann") -> str:
    """The address of a running container."""
    ip: str = api.inspect_container(name)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    return ip


def answers(ip: str, port: int = 8899) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((ip, port)) == 0


def get(url: str) -> tuple[int, str]:
    """Status and body of a page."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, ""


def refusal(call: Callable[..., object], *words: Any, **more: Any) -> tuple[int, str]:
    """Status and text of the error that a call must end with."""
    with pytest.raises(APIError) as caught:
        call(*words, **more)
    return caught.value.status_code, caught.value.explanation


class TestNotebooks:
    """Started notebook containers really answer."""

    def test_it_answers_below_its_prefix_only(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """The API with a version, every other page with 200, the rest of the world with 404."""
        ip = address(api, start(api))
        until(lambda: answers(ip))
        assert get(f"http://{ip}:8899/user/ann/api") == (200, '{"version": "2.20.0"}')
        assert get(f"http://{ip}:8899/user/ann/lab/tree/x")[0] == 200
        assert get(f"http://{ip}:8899/user/bob/api")[0] == 404

    def test_each_has_an_address_of_its_own_for_the_same_port(self, api: docker.APIClient) -> None:
        """As containers on a bridge have; both answer at once."""
        ips = {address(api, start(api, name)) for name in ("ann", "bob", "cho")}
        assert len(ips) == 3
        until(lambda: all(map(answers, ips)))

    def test_it_is_silent_after_its_stop(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """The port closes, the exit code is 0 and the address is gone."""
        ip = address(api, start(api))
        until(lambda: answers(ip))
        api.stop("ann")
        assert not answers(ip)
        assert (engine.container("ann").exit_code, address(api)) == (0, "")

    def test_a_published_port_answers_too(self, api: docker.APIClient) -> None:
        """DockerSpawner asks for one unless it uses the container's own address."""
        start(api, port_bindings={8899: ("127.0.0.1",)})
        (binding,) = api.port("ann", 8899)
        until(lambda: answers(binding["HostIp"], int(binding["HostPort"])))

    def test_a_crash_from_inside_is_seen(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """Out of memory: 137, OOMKilled, and its last words in the log."""
        ip = address(api, start(api))
        until(lambda: answers(ip))
        engine.die("ann", oom=True, logs=["Killed"])
        state = api.inspect_container("ann")["State"]
        assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 137, True)
        assert api.logs("ann").endswith(b"Killed\n")
        assert not answers(ip)

    def test_a_removal_behind_everyones_back(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """The container is gone at once."""
        start(api)
        engine.remove("ann")
        assert api.containers(all=True) == []

    def test_its_own_commands_are_told_from_others(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """A command without jupyterhub-singleuser in it really runs."""
        create(api, "plain", command=["sh", "-c", "echo really"])
        api.start("plain")
        api.wait("plain")
        assert api.logs("plain") == b"really\n"
        create(api, "shell", command=["bash", "-c", "exec jupyterhub-singleuser --ip=0.0.0.0"])
        api.start("shell")
        until(lambda: answers(address(api, "shell")))


class TestGpus:
    """Cards of containers."""

    def test_an_exec_sees_the_nodes_of_the_granted_card(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """By its minor number, not its place in the list."""
        start(api, device_requests=[GPU])
        made = api.exec_create("ann", ["sh", "-c", "ls /dev/nvidia*"])
        assert api.exec_start(made) == b"/dev/nvidia-uvm\n/dev/nvidia3\n/dev/nvidiactl\n"
        assert engine.container("ann").gpus == ("GPU-a",)

    def test_python_in_an_exec_sees_them_too(self, api: docker.APIClient) -> None:
        """A probe may list the folder instead of asking a shell."""
        start(api, device_requests=[GPU])
        code = "import os; print(sorted(n for n in os.listdir('/dev') if n.startswith('nvidia')))"
        made = api.exec_create("ann", ["python3", "-c", code])
        assert b"'nvidia3'" in api.exec_start(made)

    def test_a_scripted_answer_takes_the_place_of_the_command(
        self, engine: StandinEngine, api: docker.APIClient
    ) -> None:
        """For what no machine without a GPU can run; None lets the command run."""
        engine.exec_handler = lambda container, words: (
            ExecAnswer(9, b"No devices were found\n") if words[0] == "nvidia-smi" else None
        )
        start(api)
        made = api.exec_create("ann", ["nvidia-smi", "-L"])
        assert api.exec_start(made) == b"No devices were found\n"
        assert api.exec_inspect(made["Id"])["ExitCode"] == 9
        assert api.exec_start(api.exec_create("ann", ["echo", "hi"])) == b"hi\n"

    def test_a_card_can_be_lost_while_the_engine_runs(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """The next start that names it fails."""
        engine.gpus = {"GPU-b": 1}
        create(api, device_requests=[GPU])
        assert "device error: GPU-a: unknown device" in refusal(api.start, "ann")[1]

    @pytest.mark.parametrize(
        ("ids", "gpus"),
        [
            pytest.param(["nvidia.com/gpu=GPU-b"], ("GPU-b",), id="by UUID"),
            pytest.param(["nvidia.com/gpu=0"], ("GPU-b",), id="index is the order of minors"),
            pytest.param(["nvidia.com/gpu=all"], ("GPU-b", "GPU-a"), id="all"),
        ],
    )
    def test_cdi_names(self, ids: list[str], gpus: tuple[str, ...]) -> None:
        """An engine with CDI lists the names and takes them."""
        with StandinEngine(gpus=CARDS, cdi=True, version="28.5.2", api_version="1.51") as engine:
            engine.add_image("nb")
            with docker.APIClient(engine.url) as api:
                listed = {each["ID"] for each in api.info()["DiscoveredDevices"]}
                assert set(ids) <= listed
                start(api, device_requests=[DeviceRequest(driver="cdi", device_ids=ids)])
                assert engine.container("ann").gpus == gpus
                create(api, "bob", device_requests=[DeviceRequest(driver="cdi", device_ids=["nvidia.com/gpu=9"])])
                assert refusal(api.start, "bob") == (
                    500,
                    "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=9",
                )


class TestFaults:
    """Each named fault fails in its own way, and stops failing when it is switched off."""

    @pytest.fixture
    def collected(self) -> Iterator[None]:
        """Collect what the test leaves behind within its own warning filter."""
        yield
        gc.collect()

    @LEAKS_A_SOCKET
    @pytest.mark.usefixtures("collected")
    @pytest.mark.parametrize("how", ["refuse", "close"])
    def test_an_engine_that_is_down(self, engine: StandinEngine, api: docker.APIClient, how: Any) -> None:
        """docker-py sees a broken connection, on old connections too; containers are still there afterwards."""
        start(api)
        with engine.faults.during(EngineDown(how=how)):
            with pytest.raises(requests.exceptions.ConnectionError):
                api.ping()
            with (
                docker.APIClient(engine.url, version="1.41") as new,
                pytest.raises(requests.exceptions.ConnectionError),
            ):
                new.ping()
        assert api.inspect_container("ann")["State"]["Running"] is True

    def test_a_slow_call_times_out_at_the_client_and_is_done_all_the_same(
        self, engine: StandinEngine, api: docker.APIClient
    ) -> None:
        """The engine goes on with a create whose client has left."""
        api.timeout = 0.2
        with engine.faults.during(EngineSlow(30, on="create")), pytest.raises(requests.exceptions.ReadTimeout):
            create(api)
        until(lambda: len(engine.containers) == 1)

    def test_a_slow_call_of_one_user_holds_no_other(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """Faults can be aimed at the names of containers."""
        create(api, "ann")
        create(api, "bob")
        with (
            docker.APIClient(engine.url) as anns,
            ThreadPoolExecutor(1) as pool,
            engine.faults.during(EngineSlow(30, on="POST */start", container="ann")) as slow,
        ):
            other = pool.submit(anns.start, "ann")
            until(lambda: slow.struck == 1)
            api.start("bob")
            assert [each.running for each in engine.containers] == [False, True]
            engine.faults.remove(slow)
            other.result(5)
        assert engine.container("ann").running

    @pytest.mark.parametrize("operation", ["stop", "kill", "remove"])
    def test_a_stop_that_hangs(self, engine: StandinEngine, api: docker.APIClient, operation: str) -> None:
        """The container runs on until the fault is over; then the call that was held is carried out."""
        start(api)
        call = {"stop": api.stop, "kill": api.kill, "remove": lambda name: api.remove_container(name, force=True)}
        with ThreadPoolExecutor(1) as pool, engine.faults.during(HangsOnStop()) as hang:
            held = pool.submit(call[operation], "ann")
            until(lambda: hang.struck == 1)
            assert engine.container("ann").running
            engine.faults.remove(hang)
            held.result(5)
        assert not any(each.running for each in engine.containers)

    def test_a_number_of_times(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """``times`` counts the hits; afterwards all is well, without switching anything off."""
        engine.faults.add(Http500(on="inspect", times=2, message="boom"))
        create(api)
        assert [refusal(api.inspect_container, "ann") for _ in range(2)] == [(500, "boom")] * 2
        assert api.inspect_container("ann")["Name"] == "/ann"

    @pytest.mark.parametrize(
        ("fault", "status", "text"),
        [
            pytest.param(CreateConflict(), 409, 'The container name "/ann" is already in use', id="name held"),
            pytest.param(NoSuchImage("nb"), 404, "No such image: nb:latest", id="image gone"),
            pytest.param(DiskFull(), 500, "no space left on device", id="disk full"),
            pytest.param(Http500(on="create"), 500, "the engine failed", id="500"),
        ],
    )
    def test_creates_that_fail(
        self, engine: StandinEngine, api: docker.APIClient, fault: Fault, status: int, text: str
    ) -> None:
        """Nothing is made."""
        with engine.faults.during(fault):
            got, message = refusal(create, api)
        assert (got, text in message) == (status, True), message
        assert engine.containers == []
        create(api)

    @pytest.mark.parametrize(
        ("fault", "status", "code", "text"),
        [
            pytest.param(StartFails("no such thing"), 500, 128, "no such thing", id="any text"),
            pytest.param(DiskFull(at="start"), 500, 128, "no space left on device", id="disk full"),
            pytest.param(HookFails(), 500, 128, "nvml error: driver not loaded", id="hook"),
            pytest.param(
                NoDeviceDriver(),
                500,
                128,
                'could not select device driver "nvidia" with capabilities: [[gpu]]',
                id="no driver",
            ),
            pytest.param(ImageHasNoHub(), 400, 127, 'exec: "jupyterhub-singleuser": executable file', id="no hub"),
        ],
    )
    def test_starts_that_fail(
        self, engine: StandinEngine, api: docker.APIClient, fault: Fault, status: int, code: int, text: str
    ) -> None:
        """The container stays created, with the text and the exit code in its state."""
        create(api, device_requests=[GPU])
        with engine.faults.during(fault):
            got, message = refusal(api.start, "ann")
        assert (got, text in message) == (status, True), message
        state = api.inspect_container("ann")["State"]
        assert (state["Status"], state["ExitCode"], state["Error"]) == ("created", code, message)
        api.start("ann")
        assert api.inspect_container("ann")["State"]["Error"] == ""

    def test_faults_of_gpus_leave_others_alone(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """A container without a device request starts where the hook or the driver is broken."""
        with engine.faults.during(HookFails()), engine.faults.during(NoDeviceDriver()):
            start(api)
        assert engine.container("ann").running

    def test_an_image_that_is_gone_is_not_inspected_either(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """In docker-py's own class."""
        with engine.faults.during(NoSuchImage("nb*")), pytest.raises(docker.errors.ImageNotFound):
            api.inspect_image("nb")
        assert api.inspect_image("nb")["Config"]["Labels"] == {"from": "image"}

    def test_a_removal_that_another_one_is_at(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """Once a 409, then it works."""
        create(api)
        engine.faults.add(RemovalInProgress())
        status, text = refusal(api.remove_container, "ann")
        assert (status, text.endswith("is already in progress")) == (409, True)
        api.remove_container("ann")

    @pytest.mark.parametrize(
        ("fault", "code", "oom"),
        [
            pytest.param(DiesOnBoot(3, logs=["ImportError: no", "bye"]), 3, False, id="crash"),
            pytest.param(DiesOnBoot(oom=True, logs=["ImportError: no", "bye"]), 137, True, id="out of memory"),
        ],
    )
    def test_a_notebook_that_dies_on_boot(
        self, engine: StandinEngine, api: docker.APIClient, fault: Fault, code: int, oom: bool
    ) -> None:
        """It starts, never answers, and leaves its exit code and last words."""
        with engine.faults.during(fault):
            start(api)
        assert api.wait("ann", timeout=5)["StatusCode"] == code
        state = api.inspect_container("ann")["State"]
        assert (state["Status"], state["OOMKilled"]) == ("exited", oom)
        assert api.logs("ann", tail=1) == b"bye\n"

    def test_a_notebook_that_never_answers(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """It runs and its port stays closed, while another one's opens."""
        engine.faults.add(NeverAnswers(container="ann"))
        silent, other = address(api, start(api)), address(api, start(api, "bob"))
        until(lambda: answers(other))
        assert not answers(silent)
        assert engine.container("ann").running

    def test_a_slow_boot(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """Its port opens after the delay and not before."""
        engine.faults.add(SlowBoot(0.4))
        began = time.monotonic()
        ip = address(api, start(api))
        assert not answers(ip)
        until(lambda: answers(ip))
        assert time.monotonic() - began >= 0.4

    def test_a_gpu_that_did_not_arrive(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """The start succeeds and no node is there."""
        engine.faults.add(GpuNodeMissing())
        start(api, device_requests=[GPU])
        made = api.exec_create("ann", ["sh", "-c", "ls /dev/nvidia*"])
        api.exec_start(made)
        assert api.exec_inspect(made["Id"])["ExitCode"] != 0

    @LEAKS_A_SOCKET
    @pytest.mark.usefixtures("collected")
    def test_a_fault_that_is_on_before_the_engine_starts(self) -> None:
        """The Hub may come up before Docker does."""
        engine = StandinEngine()
        down = engine.faults.add(EngineDown())
        with engine, docker.APIClient(engine.url, version="1.41") as api:
            with pytest.raises(requests.exceptions.ConnectionError):
                api.ping()
            engine.faults.remove(down)
            assert api.ping()


class TestBookkeeping:
    """What a test can look at."""

    def test_calls_are_noted_with_their_answers(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """Operation, container and status, in order."""
        start(api)
        refusal(api.start, "bob")
        noted = [(call.operation, call.container, status) for call, status in engine.calls[1:]]
        assert noted == [("create", "ann", 201), ("start", "ann", 204), ("start", "", 404)]

    def test_a_container_that_is_not_there_is_a_key_error_with_the_names(
        self, engine: StandinEngine, api: docker.APIClient
    ) -> None:
        """A misspelt name in a test is found at once."""
        create(api)
        with pytest.raises(KeyError, match="only \\['ann'\\]"):
            engine.container("amn")

    def test_a_pull_brings_an_image_of_the_registry(self, engine: StandinEngine, api: docker.APIClient) -> None:
        """And nothing that is not in it."""
        engine.add_image("school/lab", remote=True)
        with pytest.raises(docker.errors.ImageNotFound):
            api.inspect_image("school/lab:latest")
        api.pull("school/lab", tag="latest")
        assert api.inspect_image("school/lab")["RepoTags"] == ["school/lab:latest"]
        assert refusal(api.pull, "school/other", tag="1")[1].startswith("pull access denied for school/other,")

    def test_the_end_of_the_engine_ends_what_runs_in_it(self) -> None:
        """No process and no port is left behind."""
        with StandinEngine() as engine, docker.APIClient(engine.url) as api:
            engine.add_image("nb")
            start(api)
            create(api, "plain", command=["sleep", "60"])
            api.start("plain")
            body = engine.container("plain").body
            ip = address(api)
            until(lambda: answers(ip))
        assert body is not None
        with pytest.raises(ProcessLookupError):
            os.kill(body.pid, 0)
        assert not answers(ip)
        assert not engine.socket.exists()


@pytest.fixture
def spawner(engine: StandinEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerSpawner]:
    """The real DockerSpawner of a user "ann", on the stand-in engine."""
    client = docker.APIClient(engine.url)
    monkeypatch.setattr(DockerSpawner, "_client", client)
    db = orm.new_session_factory("sqlite:///:memory:")()
    orm_user = orm.User(name="ann")
    db.add(orm_user)
    db.commit()
    user = User(orm_user, {"spawner_class": DockerSpawner, "config": None, "subdomain_host": ""}, db)
    made = user._new_spawner("", hub=Hub(), image="nb", use_internal_ip=True, remove=True, network_name="bridge")
    yield made
    db.close()
    client.close()


class TestDockerSpawner:
    """The real DockerSpawner finds its way about."""

    async def test_start_poll_and_stop(self, spawner: DockerSpawner, engine: StandinEngine) -> None:
        """A started server answers to the Hub's own check, is found running, and is gone after its stop."""
        ip, port = await spawner.start()
        assert await spawner.poll() is None
        answer = await wait_for_http_server(f"http://{ip}:{port}/api", timeout=5)
        assert answer.headers["X-JupyterHub-Version"] == jupyterhub.__version__
        assert [each.name for each in engine.containers] == ["jupyter-ann"]
        await spawner.stop()
        assert await spawner.poll() is not None
        assert engine.containers == []

    async def test_a_failed_start_leaves_its_container_behind(
        self, spawner: DockerSpawner, engine: StandinEngine
    ) -> None:
        """DockerSpawner's own gap, which ours has to close: without auto-remove the created one stays."""
        spawner.extra_host_config = {"auto_remove": False}
        with engine.faults.during(StartFails("boom")), pytest.raises(APIError, match="boom"):
            await spawner.start()
        assert [(each.name, each.status) for each in engine.containers] == [("jupyter-ann", "created")]
