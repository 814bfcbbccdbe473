"""The one file that says which GPUs a machine without GPUs has.

Three readers share it: the stand-in NVML library (`nvml/libnvidia_ml.c`), the stand-in container hook
(`gpu_hook.py`) and the stub runtime. They read it again at every call, so replacing it drives a running Hub:
lose a card, fill its memory, let the driver fail or hang.

The format is one fact per line, fields separated by tabs, `-` for "this card does not report it"::

    driver      610.57.02
    cuda        13040
    init_error  0                       NVML code returned by nvmlInit (9: driver not loaded)
    delay_ms    0                       every NVML call takes that long
    hook        on                      on; ignore: the hook succeeds and attaches nothing
    hook_error  unknown error           the hook fails with this text (no such line: it works)
    card        uuid=GPU-...  name=...  memory=...  minor=0  pci=00000000:01:00.0  used=0 ...  lost=0  reset=0
    process     uuid=GPU-...  kind=compute  pid=4711  memory=1048576
    xid         uuid=GPU-...  serial=1  number=79    each listener is told once, of those after it has registered

Cards stand in NVML's index order, which is that of the PCI bus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

STATE_VARIABLE = "GPUSPAWNER_TEST_GPUS"
"""Environment variable that names the file, for the Hub (NVML) and for the engine (hook) alike."""

MIB = 1024**2
_SOURCE = Path(__file__).parent / "nvml" / "libnvidia_ml.c"


@dataclass(frozen=True)
class Process:
    """A process on a card; `kind` is compute, graphics or mps; memory in bytes, None where unknown."""

    pid: int
    memory: int | None = 0
    kind: str = "compute"


@dataclass(frozen=True)
class Card:
    """One card as NVML tells of it: bytes, percent, degrees Celsius, milliwatts; None is "not supported".

    `lost` and `reset` are what its calls answer instead: "GPU is lost", "GPU requires reset".
    """

    uuid: str
    minor: int
    pci: str
    name: str = "NVIDIA GeForce RTX 4090"
    memory: int | None = 24564 * MIB
    used: int | None = 0
    reserved: int = 0
    utilisation: int | None = 0
    memory_utilisation: int | None = 0
    temperature: int | None = 38
    power: int | None = 21_000
    power_limit: int | None = 450_000
    lost: bool = False
    reset: bool = False
    processes: tuple[Process, ...] = ()

    def lines(self) -> list[str]:
        """Its `card` line and one `process` line for each process."""
        facts = {
            "uuid": self.uuid,
            "name": self.name,
            "memory": _number(self.memory),
            "minor": str(self.minor),
            "pci": self.pci,
            "used": _number(self.used),
            "reserved": str(self.reserved),
            "utilisation": _number(self.utilisation),
            "memory_utilisation": _number(self.memory_utilisation),
            "temperature": _number(self.temperature),
            "power": _number(self.power),
            "power_limit": _number(self.power_limit),
            "lost": str(int(self.lost)),
            "reset": str(int(self.reset)),
        }
        card = "\t".join(["card", *(f"{key}={value}" for key, value in facts.items())])
        processes = [
            f"process\tuuid={self.uuid}\tkind={p.kind}\tpid={p.pid}\tmemory={_number(p.memory)}" for p in self.processes
        ]
        return [card, *processes]


DEFAULT_CARDS = (
    Card("GPU-11111111-1111-4111-8111-111111111111", minor=0, pci="00000000:01:00.0"),
    Card("GPU-22222222-2222-4222-8222-222222222222", minor=1, pci="00000000:41:00.0"),
)
"""Two RTX 4090, the machine that most tests are about."""


@dataclass(frozen=True)
class GpuState:
    """All that the file says; `write` replaces the file in one step, so that no reader sees half of it."""

    cards: tuple[Card, ...] = DEFAULT_CARDS
    driver: str = "610.57.02"
    cuda: int = 13040
    init_error: int = 0
    delay_ms: int = 0
    hook: str = "on"
    hook_error: str = ""
    xids: tuple[tuple[str, int], ...] = ()
    comment: str = field(default="written by tests.standins.gpustate", compare=False)

    def text(self) -> str:
        """The file's content."""
        lines = [
            f"# {self.comment}",
            f"driver\t{self.driver}",
            f"cuda\t{self.cuda}",
            f"init_error\t{self.init_error}",
            f"delay_ms\t{self.delay_ms}",
            f"hook\t{self.hook}",
        ]
        if self.hook_error:
            lines.append(f"hook_error\t{self.hook_error}")
        for card in sorted(self.cards, key=lambda card: card.pci):
            lines += card.lines()
        for serial, (uuid, number) in enumerate(self.xids, 1):
            lines.append(f"xid\tuuid={uuid}\tserial={serial}\tnumber={number}")
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Replace the file at `path`; its folder must exist."""
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(self.text())
        temporary = Path(name)
        temporary.chmod(0o644)
        temporary.replace(path)

    def with_xid(self, uuid: str, number: int) -> GpuState:
        """This state after one more XID on a card."""
        return replace(self, xids=(*self.xids, (uuid, number)))

    def with_card(self, uuid: str, **changes: object) -> GpuState:
        """This state with one card changed, as in `with_card(uuid, lost=True)`; KeyError without such a card."""
        if all(card.uuid != uuid for card in self.cards):
            raise KeyError(f"No card {uuid} in this state; there are {[card.uuid for card in self.cards]}.")
        cards = tuple(replace(c, **changes) if c.uuid == uuid else c for c in self.cards)  # type: ignore[arg-type]
        return replace(self, cards=cards)


def build_nvml(folder: Path) -> Path:
    """Compile the stand-in library into `folder` as libnvidia-ml.so.1 and return its path.

    Put `folder` on LD_LIBRARY_PATH of the process that imports pynvml. Raises RuntimeError without a compiler
    or with what the compiler said.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("The NVML stand-in needs a C compiler (cc). Install the package gcc.")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    flags = ["-Wall", "-Wextra", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    command = [compiler, *flags, soname, "-o", str(library), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"The NVML stand-in could not be compiled:\n{done.stderr}")
    return library


def nvml_environment(library: Path, state_file: Path) -> dict[str, str]:
    """Environment of a child process that is to see the stand-in driver with the cards of `state_file`."""
    searched: Iterable[str] = (str(library.parent), os.environ.get("LD_LIBRARY_PATH", ""))
    return {"LD_LIBRARY_PATH": ":".join(filter(None, searched)), STATE_VARIABLE: str(state_file)}


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
