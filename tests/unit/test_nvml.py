"""The real pynvml on a stand-in driver: what the adapter says when all is well, and when it is not.

Each case runs in a process of its own, because pynvml loads the driver's library once per process and for good.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gpuspawner.nvml_off import NvmlOff
from tests.standins import gpustate
from tests.standins.gpustate import DEFAULT_CARDS, GpuState, Process, nvml_environment

ROOT = Path(__file__).parents[2]
FIRST, SECOND = (card.uuid for card in DEFAULT_CARDS)
TWO_CARDS = [
    {"uuid": uuid, "index": n, "name": "NVIDIA GeForce RTX 4090", "memory": 24564 * 2**20, "minor": n, "fault": None}
    for n, uuid in enumerate((FIRST, SECOND))
]
UNTIL_SECONDS = 20

# One line in, one line of JSON out. `calls` is filled by those cases that count.
PROGRAM = """
import asyncio, json, os, sys, threading, time, types

# Without the package's __init__, which imports JupyterHub: forty processes are started here.
sys.modules["gpuspawner"] = package = types.ModuleType("gpuspawner")
package.__path__ = ["gpuspawner"]
from gpuspawner.nvml import Nvml

calls = []
source = Nvml(**json.loads(sys.argv[1]))
exec(sys.argv[2])

async def look(callers):
    return await asyncio.gather(*(source.inventory() for _ in range(callers)))

async def anew(callers):
    return [await source.look_anew()]

async def give_up(callers):
    hasty, patient = (asyncio.create_task(source.inventory()) for _ in range(2))
    await asyncio.sleep(0.05)
    hasty.cancel()
    return [await patient]

def report(found, started):
    gpus = [
        {"uuid": g.uuid, "index": g.index, "name": g.name, "memory": g.memory_bytes, "minor": g.minor,
         "fault": g.fault and g.fault.en}
        for g in found[0].gpus
    ]
    print(json.dumps({
        "gpus": gpus,
        "off": source.off and source.off.value,
        "trouble": found[0].trouble and found[0].trouble.en,
        "detail": found[0].detail,
        "agree": all(inventory == found[0] for inventory in found),
        "seconds": time.monotonic() - started,
        "threads": sum(thread.name == "nvml" for thread in threading.enumerate()),
        "calls": calls,
        "samples": {uuid: [sample.used_bytes, sample.pids, sample.draws] for uuid, sample in found[0].samples.items()},
        "xids": [[xid.uuid, xid.number] for xid in source.take_xids()],
    }), flush=True)

for line in sys.stdin:
    command, callers = line.split()
    started = time.monotonic()
    child = os.fork() if command == "fork" else 0
    if child:
        os.waitpid(child, 0)
        continue
    if command == "shutdown":
        sys.modules["pynvml"].nvmlShutdown()
    ask = {"give_up": give_up, "anew": anew}.get(command, look)
    report(asyncio.run(ask(int(callers))), started)
    if command == "fork":
        os._exit(0)
"""

COUNT_LOOKS = """
import pynvml
def counted(name):
    real = getattr(pynvml, name)
    setattr(pynvml, name, lambda *arguments: (calls.append(name), real(*arguments))[1])
counted("nvmlInit"), counted("nvmlShutdown"), counted("nvmlDeviceGetCount")
"""


@dataclass(frozen=True)
class Seen:
    """One answer of the adapter, as the child process printed it."""

    gpus: list[dict[str, Any]]
    off: str | None
    trouble: str | None
    detail: str
    agree: bool
    seconds: float
    threads: int
    calls: list[str]
    samples: dict[str, list[Any]]
    xids: list[list[Any]]

    @property
    def faults(self) -> dict[str, str | None]:
        """UUID → the sentence why the card is left out."""
        return {gpu["uuid"]: gpu["fault"] for gpu in self.gpus}


@dataclass
class Hub:
    """A process that holds one `Nvml` and looks when it is told to."""

    process: subprocess.Popen[str]

    def look(self, callers: int = 1, command: str = "look") -> Seen:
        """Ask, by as many callers at once, and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command} {callers}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process that looks has died: its error output is above"
        return Seen(**json.loads(line))

    def look_until(self, satisfied: Callable[[Seen], bool]) -> Seen:
        """Ask again and again until the answer is as wanted."""
        deadline = time.monotonic() + UNTIL_SECONDS
        while not satisfied(seen := self.look()):
            assert time.monotonic() < deadline, f"still {seen} after {UNTIL_SECONDS} s"
        return seen


@dataclass(frozen=True)
class Machine:
    """The stand-in driver's library and the file that it reads."""

    library: Path
    state: Path

    @contextmanager
    def hub(self, before: str = "", python_path: str = "", **settings: float) -> Iterator[Hub]:
        """Start a process that sees this driver; `before` runs in it first."""
        environment = {**os.environ, **nvml_environment(self.library, self.state)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (python_path, str(ROOT))))
        arguments = {"deadline_seconds": 10.0, "cache_seconds": 0.0, **settings}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(arguments), before]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield Hub(process)
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(UNTIL_SECONDS) == 0
            finally:
                process.kill()


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    """A machine with two RTX 4090."""
    GpuState().write(tmp_path / "gpus")
    return Machine(library, tmp_path / "gpus")


# All is well


def test_two_cards_are_read(machine: Machine) -> None:
    """UUID, index, name, memory and minor number come from the driver."""
    with machine.hub() as hub:
        seen = hub.look()
    assert seen.gpus == TWO_CARDS
    assert (seen.trouble, seen.off, seen.detail) == (None, None, "")


def test_a_machine_without_cards_is_no_trouble(machine: Machine) -> None:
    """A driver that lists no card is a fact, not a fault."""
    GpuState(cards=()).write(machine.state)
    with machine.hub() as hub:
        seen = hub.look()
    assert (seen.gpus, seen.trouble, seen.off) == ([], None, None)


def test_forty_students_make_one_look(machine: Machine) -> None:
    """Callers at the same moment share what one of them asked."""
    with machine.hub(before=COUNT_LOOKS) as hub:
        seen = hub.look(callers=40)
    assert seen.agree
    assert seen.calls == ["nvmlInit", "nvmlDeviceGetCount"]


def test_an_answer_is_used_again_for_the_time_that_was_set(machine: Machine) -> None:
    """A change is seen when the answer has grown old, and not before."""
    with machine.hub(cache_seconds=3600) as hub:
        before = hub.look()
        GpuState(cards=()).write(machine.state)
        assert hub.look().gpus == before.gpus
    with machine.hub(cache_seconds=0) as hub:
        assert hub.look().gpus == []
        GpuState().write(machine.state)
        assert hub.look().gpus == TWO_CARDS


def test_a_caller_who_gives_up_does_not_spoil_it_for_the_others(machine: Machine) -> None:
    """A student who closes the form while the driver is slow leaves the shared look alone."""
    GpuState(delay_ms=50).write(machine.state)
    with machine.hub() as hub:
        assert hub.look(command="give_up").gpus == TWO_CARDS


def test_a_fork_starts_its_own_session(machine: Machine) -> None:
    """Neither the thread nor NVML's session come along in a fork, so the child makes its own."""
    with machine.hub(before=COUNT_LOOKS, cache_seconds=3600) as hub:
        parent = hub.look()
        child = hub.look(command="fork")
        assert (parent.gpus, child.gpus) == (TWO_CARDS, TWO_CARDS)
        assert child.calls == [*parent.calls, "nvmlInit", "nvmlDeviceGetCount"]
        assert child.threads == 1


# One card has a fault


@pytest.mark.fault(27)
def test_a_lost_card_is_left_out_by_name_and_the_other_stays(machine: Machine) -> None:
    """A card that stops answering keeps its UUID and gets a fault; one that comes back is well again."""
    with machine.hub() as hub:
        hub.look()
        GpuState().with_card(FIRST, lost=True).write(machine.state)
        seen = hub.look()
        assert [gpu["uuid"] for gpu in seen.gpus] == [FIRST, SECOND]
        assert seen.trouble is None
        assert "does not answer" in (seen.faults[FIRST] or "")
        assert seen.faults[SECOND] is None
        assert "GPU is lost (NVML error 15)" in seen.detail
        assert FIRST in seen.detail
        GpuState().write(machine.state)
        assert hub.look().gpus == TWO_CARDS


def test_a_card_lost_from_the_start_is_listed_without_a_name(machine: Machine) -> None:
    """Where no UUID was ever read, people still see that one of two cards is out of order."""
    GpuState().with_card(FIRST, lost=True).write(machine.state)
    with machine.hub() as hub:
        seen = hub.look()
        assert [gpu["uuid"] for gpu in seen.gpus] == ["unreadable-0", SECOND]
        assert "does not answer" in (seen.faults["unreadable-0"] or "")
        assert seen.faults[SECOND] is None
        GpuState().write(machine.state)
        assert hub.look().gpus == TWO_CARDS


@pytest.mark.fault(9, 29)
def test_a_card_that_vanishes_stays_listed_until_it_returns(machine: Machine) -> None:
    """A card that is not listed any more is out of order, not forgotten: the other one has its index now."""
    with machine.hub() as hub:
        hub.look()
        GpuState(cards=DEFAULT_CARDS[1:]).write(machine.state)
        seen = hub.look()
        assert [gpu["uuid"] for gpu in seen.gpus] == [SECOND, FIRST]
        assert seen.gpus[0] == {**TWO_CARDS[1], "index": 0}
        assert "not there any more" in (seen.faults[FIRST] or "")
        GpuState().write(machine.state)
        assert hub.look().gpus == TWO_CARDS


@pytest.mark.fault(29)
def test_all_cards_may_vanish(machine: Machine) -> None:
    """A machine that loses every card has faults, and still no trouble with the driver."""
    with machine.hub() as hub:
        hub.look()
        GpuState(cards=()).write(machine.state)
        seen = hub.look()
        assert set(seen.faults) == {FIRST, SECOND}
        assert all(seen.faults.values())
        assert seen.trouble is None


def test_the_session_is_closed_while_a_card_is_out_of_order(machine: Machine) -> None:
    """An open session would keep the admin from resetting the card, and would not see it come back."""
    with machine.hub(before=COUNT_LOOKS) as hub:
        hub.look()
        GpuState().with_card(SECOND, lost=True).write(machine.state)
        assert hub.look().calls[-1] == "nvmlShutdown"
        GpuState().write(machine.state)
        assert hub.look().calls[-2:] == ["nvmlInit", "nvmlDeviceGetCount"]


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        pytest.param("pynvml.nvmlDeviceGetMigMode = lambda handle: [1, 1]", "MIG", id="mig"),
        pytest.param("pynvml.nvmlDeviceGetMemoryInfo = lambda handle: fail(16)", "has to be reset", id="needs-reset"),
        pytest.param("pynvml.nvmlDeviceGetName = lambda handle: fail(4)", "does not answer", id="no-permission"),
        pytest.param("pynvml.nvmlDeviceGetMinorNumber = lambda handle: fail(999)", "does not answer", id="unknown"),
        pytest.param("pynvml.nvmlDeviceGetMemoryInfo = lambda handle: fail(3)", "how much memory", id="no-memory"),
    ],
)
def test_an_odd_card_is_left_out_with_its_reason(machine: Machine, before: str, sentence: str) -> None:
    """What the stand-in cannot do by itself is put over it: each oddity is a fault and never an error."""
    raising = "import pynvml\ndef fail(code): raise pynvml.NVMLError(code)\n"
    with machine.hub(before=raising + before) as hub:
        seen = hub.look()
    assert [gpu["uuid"] for gpu in seen.gpus] == [FIRST, SECOND]
    assert all(sentence in (fault or "") for fault in seen.faults.values())
    assert seen.trouble is None


def test_a_card_without_a_known_size_is_left_out(machine: Machine) -> None:
    """A card that does not report its memory cannot be counted, so it is not leased."""
    GpuState().with_card(FIRST, memory=None).write(machine.state)
    with machine.hub() as hub:
        seen = hub.look()
    assert "how much memory" in (seen.faults[FIRST] or "")
    assert seen.faults[SECOND] is None


@pytest.mark.parametrize("how", [pytest.param("unsupported", id="wsl2"), pytest.param("missing", id="old-driver")])
def test_an_unknown_minor_number_is_none(machine: Machine, tmp_path: Path, how: str) -> None:
    """A driver that does not tell the minor number, or does not know the call, still gives its cards."""
    if how == "unsupported":
        GpuState().with_card(FIRST, minor="-").with_card(SECOND, minor="-").write(machine.state)
    else:
        folder = tmp_path / "old"
        folder.mkdir()
        source = Path(gpustate.__file__).parent / "nvml" / "libnvidia_ml.c"
        flags = ["-shared", "-fPIC", "-pthread", "-Wl,-soname,libnvidia-ml.so.1", "-DnvmlDeviceGetMinorNumber=gone"]
        target = folder / "libnvidia-ml.so.1"
        subprocess.run(["cc", *flags, "-o", str(target), str(source)], check=True)
        machine = replace(machine, library=target)
    with machine.hub() as hub:
        assert hub.look().gpus == [{**card, "minor": None} for card in TWO_CARDS]


# NVML is off


@pytest.mark.parametrize(
    ("code", "reason", "sentence", "advice"),
    [
        pytest.param(4, NvmlOff.NO_PERMISSION, "may not speak", "ls -l /dev/nvidia*", id="no-permission"),
        pytest.param(9, NvmlOff.DRIVER_NOT_LOADED, "not running", "modprobe nvidia", id="driver-not-loaded"),
        pytest.param(10, NvmlOff.TOO_SLOW, "does not answer", "dmesg", id="timeout"),
        pytest.param(18, NvmlOff.VERSION_MISMATCH, "was updated", "without a reboot", id="version-mismatch"),
        pytest.param(999, NvmlOff.OTHER, "reports an error", "NVML error 999", id="unknown"),
        pytest.param(1234, NvmlOff.OTHER, "reports an error", "NVML error 1234", id="a-code-of-the-future"),
    ],
)
def test_a_driver_that_does_not_start_says_why_until_it_does(
    machine: Machine, code: int, reason: NvmlOff, sentence: str, advice: str
) -> None:
    """The student reads a sentence and the admin what to do; once the driver is well no restart is needed."""
    GpuState(init_error=code).write(machine.state)
    with machine.hub() as hub:
        seen = hub.look()
        assert (seen.gpus, seen.off) == ([], reason.value)
        assert sentence in (seen.trouble or "")
        assert "ask the admin" in (seen.trouble or "")
        assert advice in seen.detail
        GpuState().write(machine.state)
        assert hub.look().gpus == TWO_CARDS


def test_a_driver_that_goes_away_comes_back(machine: Machine) -> None:
    """A session that died with its driver is replaced, and nothing is counted in between."""
    with machine.hub() as hub:
        hub.look()
        machine.state.unlink()
        seen = hub.look()
        assert (seen.gpus, seen.off) == ([], NvmlOff.DRIVER_NOT_LOADED.value)
        GpuState().write(machine.state)
        seen = hub.look()
        assert (seen.gpus, seen.off) == (TWO_CARDS, None)


def test_a_session_that_was_ended_by_others_is_opened_again(machine: Machine) -> None:
    """Another user of pynvml in the process may shut NVML down; no student notices."""
    with machine.hub(before=COUNT_LOOKS) as hub:
        hub.look()
        seen = hub.look(command="shutdown")
        assert (seen.gpus, seen.off) == (TWO_CARDS, None)
        assert seen.calls[2] == "nvmlShutdown"
        assert seen.calls[-2:] == ["nvmlInit", "nvmlDeviceGetCount"]


def test_a_driver_that_is_installed_later_is_found(machine: Machine, tmp_path: Path) -> None:
    """Without the library the reason is said; when it appears the Hub need not be restarted."""
    installed = tmp_path / "lib" / "libnvidia-ml.so.1"
    installed.parent.mkdir()
    with replace(machine, library=installed).hub() as hub:
        seen = hub.look()
        assert (seen.gpus, seen.off) == ([], NvmlOff.LIBRARY_MISSING.value)
        assert "not installed" in (seen.trouble or "")
        assert "libnvidia-ml.so.1 is not found" in seen.detail
        installed.write_bytes(machine.library.read_bytes())
        assert hub.look().gpus == TWO_CARDS


@pytest.mark.fault(30)
def test_a_driver_that_hangs_is_trouble_at_once_and_recovers(machine: Machine) -> None:
    """The answer comes within the deadline, then at once, from one thread; when the call returns all is well."""
    with machine.hub(deadline_seconds=1) as hub:
        GpuState(delay_ms=5000).write(machine.state)
        first = hub.look(callers=5)
        assert (first.gpus, first.off) == ([], NvmlOff.TOO_SLOW.value)
        assert "does not answer" in (first.trouble or "")
        assert 0.9 < first.seconds < 3
        GpuState().write(machine.state)
        again = hub.look(callers=5)
        assert again.off == NvmlOff.TOO_SLOW.value
        assert again.seconds < 0.9
        assert again.threads == 1
        well = hub.look_until(lambda seen: seen.off is None)
        assert (well.gpus, well.threads) == (TWO_CARDS, 1)


@pytest.mark.fault(30)
def test_a_hanging_call_does_not_keep_the_process_from_ending(machine: Machine) -> None:
    """A Hub with a hanging driver still stops within seconds."""
    GpuState(delay_ms=600_000).write(machine.state)
    with machine.hub(deadline_seconds=0.1) as hub:
        assert hub.look().off == NvmlOff.TOO_SLOW.value
        started = time.monotonic()
    assert time.monotonic() - started < UNTIL_SECONDS / 2


@pytest.mark.parametrize(
    ("module", "said"),
    [
        pytest.param(
            "def nvmlInit(): pass\ndef nvmlShutdown(): pass\n", "has no nvmlInitWithFlags", id="nvidia-ml-py3"
        ),
        pytest.param("raise ModuleNotFoundError('No module named pynvml')\n", "`import pynvml` failed", id="missing"),
        pytest.param(
            "import warnings\nwarnings.warn('use nvidia-ml-py', FutureWarning)\n", "failed", id="warning-as-error"
        ),
    ],
)
def test_a_wrong_package_is_named_with_its_cure(machine: Machine, tmp_path: Path, module: str, said: str) -> None:
    """A module that shadows nvidia-ml-py's is told with the commands that put it right."""
    (tmp_path / "pynvml.py").write_text(module)
    with machine.hub(python_path=str(tmp_path)) as hub:
        seen = hub.look()
    assert (seen.gpus, seen.off) == ([], NvmlOff.WRONG_PACKAGE.value)
    assert said in seen.detail
    assert "-m pip uninstall -y pynvml nvidia-ml-py3" in seen.detail
    assert "-m pip install --force-reinstall 'nvidia-ml-py>=12.535,<14'" in seen.detail


@pytest.mark.parametrize("reason", [pytest.param(reason, id=reason.value) for reason in NvmlOff])
def test_every_reason_has_words_for_both(reason: NvmlOff) -> None:
    """The student reads a sentence in either language that says what to do, the admin what is wrong."""
    assert reason.text.en.startswith("The GPUs of this server cannot be used now: ")
    assert reason.text.ko.startswith("지금은 이 서버의 GPU를 사용할 수 없습니다. ")
    assert reason.text.en != reason.text.ko
    assert len(reason.advice) > 20


# What cards do


def test_memory_and_compute_processes_are_sampled(machine: Machine) -> None:
    """Compute and MPS processes by their pids; that something draws on a screen is told apart from them."""
    processes = (Process(41), Process(43, kind="mps"), Process(42, kind="graphics"))
    GpuState().with_card(FIRST, used=3 * 2**30, processes=processes).write(machine.state)
    with machine.hub() as hub:
        seen = hub.look()
    assert seen.samples == {FIRST: [3 * 2**30, [41, 43], True], SECOND: [0, [], False]}


def test_a_driver_that_tells_no_processes_leaves_them_unknown(machine: Machine) -> None:
    """Unknown is not "none", and the card itself is well."""
    before = """
import pynvml
def refuse(handle):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
pynvml.nvmlDeviceGetComputeRunningProcesses = refuse
"""
    with machine.hub(before=before) as hub:
        seen = hub.look()
    assert seen.samples == {FIRST: [0, None, False], SECOND: [0, None, False]}
    assert seen.faults == {FIRST: None, SECOND: None}


def test_a_lost_card_has_no_sample(machine: Machine) -> None:
    """What it last did is not what it does now."""
    with machine.hub() as hub:
        assert set(hub.look().samples) == {FIRST, SECOND}
        GpuState().with_card(FIRST, lost=True).write(machine.state)
        assert set(hub.look().samples) == {SECOND}


def test_an_xid_is_told_once_and_with_its_card(machine: Machine) -> None:
    """Those between two looks are kept by the driver; those before the first look are not ours."""
    state = GpuState().with_xid(FIRST, 13)
    state.write(machine.state)
    with machine.hub() as hub:
        assert hub.look().xids == []
        state.with_xid(SECOND, 79).with_xid(FIRST, 31).write(machine.state)
        assert hub.look().xids == [[SECOND, 79], [FIRST, 31]]
        assert hub.look().xids == []


def test_a_driver_without_events_is_no_trouble(machine: Machine) -> None:
    """Then no XID is known, and the cards are what they are."""
    with machine.hub(before="import pynvml; del pynvml.nvmlEventSetCreate") as hub:
        hub.look()
        GpuState().with_xid(FIRST, 79).write(machine.state)
        seen = hub.look()
    assert (seen.gpus, seen.xids, seen.trouble) == (TWO_CARDS, [], None)


@pytest.mark.fault(28)
def test_the_xid_of_a_card_that_falls_off_the_bus_with_it_is_told(machine: Machine) -> None:
    """XID 79 comes from a card that cannot even tell its UUID any more."""
    with machine.hub() as hub:
        hub.look()
        GpuState().with_xid(FIRST, 79).with_card(FIRST, lost=True).write(machine.state)
        seen = hub.look()
    assert seen.xids == [[FIRST, 79]]
    assert seen.faults[FIRST] is not None


@pytest.mark.fault(27)
def test_a_card_that_the_driver_wants_reset_says_so(machine: Machine) -> None:
    """The other one is well."""
    GpuState().with_card(FIRST, reset=True).write(machine.state)
    with machine.hub() as hub:
        seen = hub.look()
    assert ["to be reset" in (gpu["fault"] or "") for gpu in seen.gpus] == [True, False]


def test_a_look_anew_is_not_answered_from_memory(machine: Machine) -> None:
    """What was seen a moment ago may be from before a server ended."""
    with machine.hub(cache_seconds=60.0) as hub:
        hub.look()
        GpuState().with_card(FIRST, used=2**30).write(machine.state)
        assert hub.look().samples[FIRST][0] == 0
        assert hub.look(command="anew").samples[FIRST][0] == 2**30


def test_the_other_cards_are_listened_to_again_when_a_lost_one_is_back(machine: Machine) -> None:
    """A lost card ends the session, and the listening with it; the next whole one begins it anew."""
    with machine.hub() as hub:
        hub.look()
        GpuState().with_card(FIRST, lost=True).write(machine.state)
        hub.look()
        GpuState().write(machine.state)
        assert hub.look().faults == {FIRST: None, SECOND: None}
        GpuState().with_xid(SECOND, 79).write(machine.state)
        assert hub.look().xids == [[SECOND, 79]]
