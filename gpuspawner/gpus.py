"""Nouns: a card, and all cards of this machine at one moment. No I/O; `nvml` and `fakegpus` make these values.

Cards are named by UUID everywhere. An index moves when a card falls off the bus and differs between NVML and CUDA;
it is kept for people to read, never to decide with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType, Protocol, runtime_checkable

from gpuspawner.texts import Text

GpuUuid = NewType("GpuUuid", str)


@dataclass(frozen=True)
class Sample:
    """What a card does at one moment; None is "the driver does not say", which is neither good nor bad.

    `at` is the second of the monotonic clock at which the look began. `pids` are those of compute processes, clients
    of MPS included, as the host counts them. `draws` tells whether a process draws on a screen with this card: what it
    holds comes and goes with windows, and nobody of ours has it.
    """

    at: float
    used_bytes: int | None = None
    pids: tuple[int, ...] | None = None
    draws: bool | None = None


@dataclass(frozen=True)
class Xid:
    """The driver's number for something that went wrong on a card. It is told once."""

    uuid: GpuUuid
    number: int


@dataclass(frozen=True)
class Gpu:
    """One card.

    `memory_bytes` is NVML's total. `minor` is the number in `/dev/nvidia<minor>`, None where the driver does not say
    (WSL2). `fault` is a sentence when the card must not be leased; `drained` when that is what an admin wants.
    """

    uuid: GpuUuid
    index: int
    name: str
    memory_bytes: int
    minor: int | None = None
    fault: Text | None = None
    drained: bool = False

    def matches(self, model: str | None) -> bool:
        """Whether the card's name holds `model`, ignoring case and spaces: "RTX 4090" and "rtx4090" alike."""
        return model is None or _plain(model) in _plain(self.name)


@dataclass(frozen=True)
class Inventory:
    """The cards of this machine, in NVML's order.

    `trouble` says why the cards cannot be known; then `gpus` is empty and nothing may be leased. A machine that simply
    has no card has neither. `simulated` cards are counted and leased but never attached. `samples` has no entry for a
    card that nothing is known of.
    """

    gpus: tuple[Gpu, ...] = ()
    simulated: bool = False
    trouble: Text | None = None
    detail: str = ""
    samples: Mapping[GpuUuid, Sample] = field(default_factory=dict, compare=False)

    def get(self, uuid: str) -> Gpu | None:
        """The card with this UUID, or None when it is not there now."""
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)


@runtime_checkable
class GpuSource(Protocol):
    """Where the cards come from: `nvml.Nvml` or `fakegpus.FakeGPUs`."""

    async def inventory(self) -> Inventory:
        """Look at the cards now. Never raises: what cannot be known becomes `Inventory.trouble`."""


@runtime_checkable
class DriverSource(GpuSource, Protocol):
    """A source with a driver behind it, which tells more than what cards there are."""

    async def look_anew(self) -> Inventory:
        """As `inventory`, but what was seen before this call is not good enough. Never raises."""

    def take_xids(self) -> tuple[Xid, ...]:
        """Those that came since the last call; whoever takes them has to keep them."""


def _plain(name: str) -> str:
    return "".join(name.lower().split())
