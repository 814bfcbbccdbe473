"""Rules: which cards are left out although the driver lists them as well, and which are not clean yet after a lease.

Pure: no await, no clock, no environment, no I/O. Durations are seconds of a clock that never jumps, given as `now`.

A card is left out when an admin has drained it, when the driver told of a critical XID (until an admin clears it),
when somebody from outside computes on it, and when what a lease left behind is still there after a grace time. The
last two clear by themselves. Until that grace is over the card is not sick: it is still taken, and whoever waits for
it goes on waiting.

What the driver does not say is no evidence: neither that a card is clean nor that it is not. On a driver that tells
neither processes nor memory, cards are leased as if they were clean.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import TypeVar

from gpuspawner.gpus import Gpu, GpuUuid, Inventory, Sample
from gpuspawner.leases import CardShare, Holdings
from gpuspawner.texts import Text
from gpuspawner.units import GIB, MIB, format_bytes

T = TypeVar("T")

HARMLESS_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Errors of a program, not of the card: the list of NVIDIA's device plugin for Kubernetes."""

TOLERANCE_BYTES = 512 * MIB
"""How far above its idle use the memory of a clean card may be. A CUDA context alone takes 300 MiB and more, and lives
in a process, which is seen as such; what the driver itself keeps moves by tens of MiB between looks."""

FIRST_IDLE_BYTES = GIB
"""The idle use that is assumed of a card which was never seen idle: the driver keeps about half of it for itself."""


class Cause(str, Enum):
    """Why a card is left out."""

    DRIVER = "driver"
    DRAINED = "drained"
    XID = "xid"
    FOREIGN = "foreign"
    NOT_CLEAN = "not-clean"


@dataclass(frozen=True)
class Drained:
    """An admin has taken a card out of use. `at` is in UTC."""

    at: datetime
    by: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Struck:
    """The driver has told of a critical XID, and no admin has cleared it yet. `at` is in UTC."""

    at: datetime
    xid: int


@dataclass(frozen=True)
class Record:
    """What has to be remembered of cards until an admin says otherwise: UUID → what happened."""

    drained: Mapping[GpuUuid, Drained] = field(default_factory=dict)
    struck: Mapping[GpuUuid, Struck] = field(default_factory=dict)

    def drain(self, uuid: GpuUuid, drained: Drained) -> Record:
        """This, and the card is out of use; what was said before is replaced."""
        return replace(self, drained={**self.drained, uuid: drained})

    def undrain(self, uuid: GpuUuid) -> Record:
        """This without anything about the card: an admin has looked after it."""
        return Record(_without(self.drained, uuid), _without(self.struck, uuid))

    def strike(self, uuid: GpuUuid, struck: Struck) -> Record:
        """This, and an XID of the card. The first one stays: those that follow are mostly its consequences."""
        return self if uuid in self.struck else replace(self, struck={**self.struck, uuid: struck})


def is_critical(xid: int) -> bool:
    """Whether the card itself may be sick."""
    return xid not in HARMLESS_XIDS


@dataclass(frozen=True)
class Watched:
    """What was seen of one card. `ended`: since when a lease on it is over and the card not known to be clean.

    `idle_bytes` is the least that was in use while nobody had it.
    """

    leased: bool = False
    ended: float | None = None
    foreign: bool = False
    idle_bytes: int | None = None


State = Mapping[GpuUuid, Watched]


@dataclass(frozen=True)
class Fault:
    """Why a card is left out now."""

    cause: Cause
    text: Text


def watch(
    state: State,
    inventory: Inventory,
    *,
    leased: AbstractSet[GpuUuid],
    given: AbstractSet[GpuUuid] = frozenset(),
    now: float,
) -> State:
    """What is known of the cards after a look at the leases.

    Args:
        inventory: a look at the cards from before that, so that a server which has just started is nobody from
            outside.
        leased: UUIDs of all cards that are held or promised.
        given: those that were promised since the last look, however short that was.
    """
    found = dict(state)
    for uuid in {gpu.uuid for gpu in inventory.gpus} | state.keys() | leased | given:
        before = state.get(uuid, Watched())
        if uuid in leased:
            found[uuid] = replace(before, leased=True, ended=None, foreign=False)
            continue
        if before.leased or uuid in given:
            before = replace(before, leased=False, ended=now, foreign=False)
        found[uuid] = _unleased(before, inventory.get(uuid), inventory.samples.get(uuid))
    return found


def look_again(state: State, inventory: Inventory) -> State:
    """What is known after one more look at the cards: what was left on them can have gone, and nothing else is new.

    Whoever is new on a card may be a server of ours, as long as the leases have not been looked at since.
    """
    found = dict(state)
    for uuid, before in state.items():
        sample = inventory.samples.get(uuid)
        if before.ended is not None:
            found[uuid] = _unleased(before, inventory.get(uuid), sample)
        elif before.foreign and sample is not None and sample.pids == ():
            found[uuid] = replace(before, foreign=False)
    return found


def stale(state: State, inventory: Inventory) -> bool:
    """Whether the evidence against a card is older than the end of its lease."""
    return any(
        watched.ended is not None and sample.at < watched.ended
        for uuid, watched in state.items()
        if (sample := inventory.samples.get(uuid)) is not None
    )


def clearing(state: State, inventory: Inventory, *, now: float, grace_seconds: float) -> dict[GpuUuid, float | None]:
    """Cards that look well and are still taken: UUID → seconds until what a lease left on it becomes a fault.

    None is somebody from outside, who was not there when the faults were last told.
    """
    found: dict[GpuUuid, float | None] = {}
    for gpu in inventory.gpus:
        watched = state.get(gpu.uuid, Watched())
        if gpu.fault is not None:
            continue
        if watched.foreign:
            found[gpu.uuid] = None
        elif watched.ended is not None and now - watched.ended < grace_seconds:
            found[gpu.uuid] = watched.ended + grace_seconds - now
    return found


def faults(
    inventory: Inventory, record: Record, state: State, *, now: float, grace_seconds: float
) -> dict[GpuUuid, Fault]:
    """Every card that must not be leased, with the reason that a person can do most about."""
    return {
        gpu.uuid: fault
        for gpu in inventory.gpus
        if (fault := _fault(gpu, inventory.samples.get(gpu.uuid), record, state, now, grace_seconds)) is not None
    }


def doubled(inventory: Inventory, holdings: Holdings) -> dict[GpuUuid, tuple[str, ...]]:
    """Cards that the labels promise beyond what there is, with the keys of all that have them.

    Nothing here gives a card twice; somebody with Docker can. Which of them is right only a person knows.
    """
    holders: dict[GpuUuid, list[tuple[str, CardShare]]] = {}
    for key, held in holdings.items():
        for card in held.cards:
            holders.setdefault(card.uuid, []).append((key, card))
    return {
        uuid: tuple(sorted(key for key, _ in cards))
        for uuid, cards in holders.items()
        if len(cards) > 1 and not _fit_together([card for _, card in cards], inventory.get(uuid))
    }


def _fit_together(cards: list[CardShare], gpu: Gpu | None) -> bool:
    if any(card.whole for card in cards):
        return False
    # The size of a card that has never told it is not known.
    return gpu is None or not gpu.memory_bytes or sum(card.memory_bytes or 0 for card in cards) <= gpu.memory_bytes


def apply(inventory: Inventory, found: Mapping[GpuUuid, Fault]) -> Inventory:
    """The same cards, with their faults."""

    def judged(gpu: Gpu) -> Gpu:
        fault = found.get(gpu.uuid)
        return gpu if fault is None else replace(gpu, fault=fault.text, drained=fault.cause is Cause.DRAINED)

    return replace(inventory, gpus=tuple(judged(gpu) for gpu in inventory.gpus))


def _unleased(before: Watched, gpu: Gpu | None, sample: Sample | None) -> Watched:
    """A card that nobody of ours has."""
    if sample is None:
        # A sick card tells nothing, and is left out for that. A well one that tells nothing cannot be held up for ever.
        well = gpu is not None and gpu.fault is None
        return replace(before, ended=None, foreign=False) if well else before
    if before.ended is not None:
        return before if _left_over(before, sample) else _idle(replace(before, ended=None), sample)
    if sample.pids is None:
        return before
    return _idle(replace(before, foreign=bool(sample.pids)), sample)


def _left_over(watched: Watched, sample: Sample) -> bool:
    """Whether something of the last lease is still on the card."""
    if sample.pids:
        return True
    # Where a screen is drawn, or may be, memory says nothing about the lease.
    if sample.used_bytes is None or sample.draws is not False:
        return False
    idle = FIRST_IDLE_BYTES if watched.idle_bytes is None else watched.idle_bytes
    return sample.used_bytes > idle + TOLERANCE_BYTES


def _idle(watched: Watched, sample: Sample) -> Watched:
    """Learn from a card that is clean how little it uses; the least counts, so that leaks do not add up unseen."""
    if sample.used_bytes is None or sample.pids != () or sample.draws is not False:
        return watched
    known = watched.idle_bytes
    return replace(watched, idle_bytes=sample.used_bytes if known is None else min(known, sample.used_bytes))


def _fault(
    gpu: Gpu, sample: Sample | None, record: Record, state: State, now: float, grace_seconds: float
) -> Fault | None:
    watched = state.get(gpu.uuid, Watched())
    reasons = (
        (Cause.DRAINED, _drained(record.drained.get(gpu.uuid))),
        (Cause.DRIVER, gpu.fault),
        (Cause.XID, _struck(record.struck.get(gpu.uuid))),
        (Cause.NOT_CLEAN, _not_clean(watched, sample, now, grace_seconds)),
        (Cause.FOREIGN, _FOREIGN if watched.foreign else None),
    )
    return next((Fault(cause, text) for cause, text in reasons if text is not None), None)


_FOREIGN = Text(
    "This GPU is in use from outside; it is left out until that has ended.",
    "이 GPU는 외부 프로그램이 사용 중이며, 끝날 때까지 제외됩니다.",
)


def _drained(drained: Drained | None) -> Text | None:
    if drained is None:
        return None
    why = f": {drained.reason}" if drained.reason else ""
    return Text(f"This GPU was taken out of use by the admin{why}.", f"관리자가 이 GPU를 사용에서 제외했습니다{why}.")


def _struck(struck: Struck | None) -> Text | None:
    if struck is None:
        return None
    return Text(
        f"This GPU has reported an error (XID {struck.xid}); it is left out until the admin has looked after it.",
        f"이 GPU에서 오류(XID {struck.xid})가 발생해 관리자가 점검할 때까지 제외됩니다.",
    )


def _not_clean(watched: Watched, sample: Sample | None, now: float, grace_seconds: float) -> Text | None:
    if watched.ended is None or now - watched.ended < grace_seconds:
        return None
    if sample is not None and not sample.pids and sample.used_bytes is not None:
        held = format_bytes(sample.used_bytes // MIB * MIB)
        return Text(
            f"This GPU still has {held} of memory in use after its last server has ended; it is left out until that "
            "is free.",
            f"마지막 서버가 종료된 뒤에도 이 GPU의 메모리 {held}가 반환되지 않아, 반환될 때까지 제외됩니다.",
        )
    return Text(
        "Programs of the last server are still on this GPU; it is left out until they are gone.",
        "마지막 서버의 프로그램이 이 GPU에 남아 있어, 사라질 때까지 제외됩니다.",
    )


def _without(entries: Mapping[GpuUuid, T], uuid: GpuUuid) -> dict[GpuUuid, T]:
    return {key: value for key, value in entries.items() if key != uuid}
