"""The stand-ins for hardware are believed by every other engine test, so they are tested first.

The driver stand-in is read through the real pynvml in a process of its own; hook and runtime are run by a real
dockerd, whose answers are the ones that a machine with GPUs would give.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standins import netns, processes
from tests.standins.gpustate import (
    DEFAULT_CARDS,
    MIB,
    GpuState,
    Process,
    build_nvml,
    nvml_environment,
)
from tests.standins.netns_engine import EngineError, PrivateEngine, available
from tests.standins.rootfs import import_rootfs

pytestmark = pytest.mark.engine

FIRST, SECOND = (card.uuid for card in DEFAULT_CARDS)
UNKNOWN = "GPU-99999999-9999-4999-8999-999999999999"
LOOK = "ls /dev | grep nvidia; nvidia-smi -L"

INVENTORY = """
import json, pynvml as nvml
try:
    nvml.nvmlInit()
    cards = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(card, version=nvml.nvmlMemory_v2)
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(card)
            cards.append({
                "uuid": nvml.nvmlDeviceGetUUID(card), "name": nvml.nvmlDeviceGetName(card),
                "minor": nvml.nvmlDeviceGetMinorNumber(card), "total": memory.total, "used": memory.used,
                "pci": nvml.nvmlDeviceGetPciInfo(card).busId, "by_uuid": nvml.nvmlDeviceGetIndex(
                    nvml.nvmlDeviceGetHandleByUUID(nvml.nvmlDeviceGetUUID(card))),
                "pids": [[process.pid, process.usedGpuMemory] for process in processes],
            })
            cards[-1]["temperature"] = nvml.nvmlDeviceGetTemperature(card, 0)
        except nvml.NVMLError as error:
            cards.append({**(cards.pop() if len(cards) > index else {}), "error": str(error)})
    print(json.dumps({"driver": nvml.nvmlSystemGetDriverVersion(), "cards": cards}))
except nvml.NVMLError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled NVML stand-in."""
    try:
        return build_nvml(tmp_path_factory.mktemp("nvml"))
    except RuntimeError as error:
        if "Install the package" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateEngine]:
    """An engine with the stand-in hook and runc as its default runtime."""
    reason = available()
    if reason:
        pytest.skip(reason)
    with PrivateEngine.from_environment() as engine:
        yield engine


@pytest.fixture(scope="module")
def nvidia_engine() -> Iterator[PrivateEngine]:
    """An engine whose default runtime is the stub `nvidia`."""
    reason = available()
    if reason:
        pytest.skip(reason)
    with PrivateEngine(default_runtime_nvidia=True) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _default_cards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the engine with the two default cards."""
    yield
    if "engine" in request.fixturenames:
        GpuState().write(request.getfixturevalue("engine").state_file)


def inventory(library: Path, state_file: Path) -> dict[str, object]:
    """What the real pynvml tells of the cards in `state_file`."""
    environment = {**os.environ, **nvml_environment(library, state_file)}
    done = subprocess.run(
        [sys.executable, "-c", INVENTORY], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def look(engine: PrivateEngine, image: str, *options: str) -> list[str]:
    """The GPU nodes and the cards that a container with these options sees, one line each."""
    seen = engine.docker("run", "--rm", *options, image, "sh", "-c", f"{LOOK} 2>/dev/null || true")
    return seen.splitlines()


def test_pynvml_reads_the_cards(library: Path, tmp_path: Path) -> None:
    """The real binding finds the cards of the file, with memory, bus and processes."""
    busy = {"used": 512 * MIB, "processes": (Process(4711, 500 * MIB), Process(4712, None))}
    GpuState().with_card(SECOND, **busy).write(tmp_path / "gpus")

    found = inventory(library, tmp_path / "gpus")

    first = {"uuid": FIRST, "name": "NVIDIA GeForce RTX 4090", "minor": 0, "by_uuid": 0, "temperature": 38}
    first |= {"total": 24564 * MIB, "used": 0, "pci": "00000000:01:00.0", "pids": []}
    second = {**first, "uuid": SECOND, "minor": 1, "by_uuid": 1, "pci": "00000000:41:00.0"}
    second |= {"used": 512 * MIB, "pids": [[4711, 500 * MIB], [4712, None]]}
    assert found == {"driver": "610.57.02", "cards": [first, second]}


def test_pynvml_meets_a_lost_card_and_a_missing_metric(library: Path, tmp_path: Path) -> None:
    """A lost card still counts and is refused; what a card does not report is "not supported", not zero."""
    GpuState().with_card(FIRST, lost=True).with_card(SECOND, temperature=None).write(tmp_path / "gpus")

    cards = inventory(library, tmp_path / "gpus")["cards"]

    assert isinstance(cards, list)
    assert cards[0] == {"error": "GPU is lost"}
    assert (cards[1]["uuid"], cards[1]["error"]) == (SECOND, "Not Supported")


@pytest.mark.parametrize(
    ("state", "error"),
    [
        pytest.param(GpuState(init_error=18), "RM has detected an NVML/RM version mismatch.", id="driver-upgraded"),
        pytest.param(None, "Driver Not Loaded", id="no-driver"),
    ],
)
def test_pynvml_meets_a_driver_that_fails(library: Path, tmp_path: Path, state: GpuState | None, error: str) -> None:
    """nvmlInit fails with the code in the file, and with "not loaded" where there is no file."""
    if state:
        state.write(tmp_path / "gpus")
    assert inventory(library, tmp_path / "gpus") == {"error": error}


def test_pynvml_follows_a_running_change(library: Path, tmp_path: Path) -> None:
    """A process that holds a handle sees the card get lost and come back, without a new nvmlInit."""
    script = """
import sys, pynvml as nvml
nvml.nvmlInit()
card = nvml.nvmlDeviceGetHandleByIndex(0)
for _ in sys.stdin:
    try: print(nvml.nvmlDeviceGetUUID(card), flush=True)
    except nvml.NVMLError as error: print(error, flush=True)
"""
    state_file = tmp_path / "gpus"
    GpuState().write(state_file)
    seen = []
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **nvml_environment(library, state_file)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for lost in (False, True, False):
            GpuState().with_card(FIRST, lost=lost).write(state_file)
            print(file=reader.stdin, flush=True)
            seen.append(reader.stdout.readline().strip())
        reader.stdin.close()

    assert seen == [FIRST, "GPU is lost", FIRST]


def test_pynvml_waits_for_a_slow_driver(library: Path, tmp_path: Path) -> None:
    """With a delay in the file each call takes that long, as with a driver that hangs."""
    GpuState(delay_ms=100).write(tmp_path / "gpus")
    started = time.monotonic()
    inventory(library, tmp_path / "gpus")
    assert time.monotonic() - started > 1


@pytest.mark.parametrize(
    ("uuids", "expected"),
    [
        pytest.param([FIRST], ["nvidia0", "nvidiactl"], id="first"),
        pytest.param([SECOND], ["nvidia1", "nvidiactl"], id="second"),
        pytest.param([SECOND, FIRST], ["nvidia0", "nvidia1", "nvidiactl"], id="both"),
    ],
)
def test_the_hook_gives_exactly_the_asked_cards(engine: PrivateEngine, uuids: list[str], expected: list[str]) -> None:
    """A device request by UUID brings those nodes and no other, and nvidia-smi lists those cards."""
    image = import_rootfs(engine, "standins-busybox")
    cards = [card for card in DEFAULT_CARDS if card.uuid in uuids]
    listed = [f"GPU {index}: {card.name} (UUID: {card.uuid})" for index, card in enumerate(cards)]

    seen = look(engine, image, "--gpus", f'"device={",".join(uuids)}"')

    assert seen == [*expected, *listed]


def test_a_node_can_be_opened_by_a_user(engine: PrivateEngine) -> None:
    """The nodes are real devices that an ordinary user may open, with Docker's default device rules."""
    image = import_rootfs(engine, "standins-busybox")
    read = ("run", "--rm", "--user", "1000", "--gpus", f"device={FIRST}", image, "cat", "/dev/nvidia0")
    assert engine.docker(*read) == ""


@pytest.mark.parametrize(
    ("state", "asked", "message"),
    [
        pytest.param(GpuState(), UNKNOWN, f"device error: {UNKNOWN}: unknown device", id="unknown"),
        pytest.param(
            GpuState().with_card(FIRST, lost=True), FIRST, f"device error: {FIRST}: unknown device", id="lost"
        ),
        pytest.param(
            GpuState(init_error=9), FIRST, "initialization error: nvml error: driver not loaded", id="no-driver"
        ),
        pytest.param(GpuState(hook_error="ldcache error"), FIRST, "ldcache error", id="other"),
    ],
)
def test_the_start_fails_with_the_words_of_the_real_tool(
    engine: PrivateEngine, state: GpuState, asked: str, message: str
) -> None:
    """A card that is not there makes the start fail, and the engine's error ends with the hook's sentence."""
    image = import_rootfs(engine, "standins-busybox")
    state.write(engine.state_file)
    with pytest.raises(EngineError, match=f"nvidia-container-cli: {message}"):
        engine.docker("run", "--rm", "--gpus", f"device={asked}", image, "true")


def test_dockerd_alone_stops_or_crashes_and_comes_back(engine: PrivateEngine) -> None:
    """Containers end with it or with the next one, and the engine works again, with GPUs and the same images."""
    image = import_rootfs(engine, "standins-busybox")
    for kill in (False, True):
        running = engine.docker("run", "--detach", "--stop-signal", "KILL", image, "sleep", "100")
        engine.stop_daemon(kill=kill)
        assert not engine.is_up()
        engine.start_daemon()
        state = ("inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", running)
        assert engine.docker(*state) == "false 137"
        engine.docker("rm", running)
        assert look(engine, image, "--gpus", f"device={FIRST}")[0] == "nvidia0"


def test_a_hook_that_ignores_gives_nothing_silently(engine: PrivateEngine) -> None:
    """The container starts without its card, as with a toolkit that refuses the environment variable."""
    image = import_rootfs(engine, "standins-busybox")
    GpuState(hook="ignore").write(engine.state_file)
    assert look(engine, image, "--gpus", f"device={FIRST}") == []


def test_an_image_that_wants_all_gets_nothing_without_a_request(engine: PrivateEngine) -> None:
    """Where runc is the default runtime the image's own variable has no effect."""
    image = import_rootfs(engine, "standins-wants-all", {"NVIDIA_VISIBLE_DEVICES": "all"})
    assert look(engine, image) == []


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"NVIDIA_VISIBLE_DEVICES": "all"}, id="says-all"),
        pytest.param({"CUDA_VERSION": "9.0"}, id="legacy-cuda-image"),
    ],
)
def test_the_default_runtime_opens_the_hole_and_void_with_runc_closes_it(
    nvidia_engine: PrivateEngine, variables: dict[str, str]
) -> None:
    """Under a default `nvidia` runtime an image alone gets all cards; `void` under plain runc gets none."""
    image = import_rootfs(nvidia_engine, "standins-" + "-".join(variables).lower(), variables)

    assert look(nvidia_engine, image)[:3] == ["nvidia0", "nvidia1", "nvidiactl"]
    assert look(nvidia_engine, image, "--env", "NVIDIA_VISIBLE_DEVICES=void") == []
    assert look(nvidia_engine, image, "--env", "NVIDIA_VISIBLE_DEVICES=void", "--runtime", "runc") == []
    assert look(nvidia_engine, image, "--gpus", f"device={SECOND}")[:2] == ["nvidia1", "nvidiactl"]


def test_a_killed_engine_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    """After kill -9 of the engine with a container running, `up` starts a clean one, and `down` leaves no trace."""
    reason = available()
    if reason:
        pytest.skip(reason)
    engine = PrivateEngine("killed", data_root=tmp_path / "data")
    try:
        assert engine.up()
        image = import_rootfs(engine, "standins-busybox")
        engine.docker("run", "--detach", "--name", "left-over", image)
        pid = int(engine.docker("inspect", "--format", "{{.State.Pid}}", "left-over"))
        for program in ("dockerd", "containerd"):
            killed = processes.read_pid(engine.run_dir / f"{program}.pid")
            assert killed is not None
            processes.stop(killed, 0)
        assert not engine.is_up()

        assert engine.up()
        assert not engine.up(), "a healthy engine is used as it is"

        assert engine.docker("ps", "--all", "--quiet") == ""
        assert not processes.alive(pid)
    finally:
        engine.down()
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    assert engine.netns not in rules
    assert not netns.exists(engine.netns)
    assert not engine.run_dir.exists()
