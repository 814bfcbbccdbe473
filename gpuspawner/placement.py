"""Rules: which cards a request gets, or the sentence that says why none. Pure: no await, no clock, no I/O.

Whole cards are exclusive. Shares of one card are counted against a budget: the card's memory less a reserve for the
driver's contexts. A share goes to the card that is shared already and has the least room that still fits (best fit),
and only then to an untouched one, so that whole cards stay whole as long as they can. The answer depends on the
arguments alone and is the same each time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from gpuspawner.errors import GpusUnknown, NoRoom, Reason, Refused
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare
from gpuspawner.profiles import GpuRequest
from gpuspawner.texts import Text
from gpuspawner.units import GIB, format_bytes


@dataclass(frozen=True)
class Policy:
    """`reserve_bytes` of each shared card is never given away: CUDA contexts and the driver live there."""

    reserve_bytes: int = GIB


class Taken(Protocol):
    """What is taken, summed up: all that a placement has to know of others."""

    @property
    def whole(self) -> frozenset[GpuUuid]:
        """UUIDs that somebody holds alone."""

    @property
    def shared_bytes(self) -> Mapping[GpuUuid, int]:
        """UUID → VRAM promised in shares; only cards with shares are in it."""


@dataclass(frozen=True)
class Occupancy:
    """Everything that is held or promised, from labels and from reservations in flight."""

    cards: tuple[CardShare, ...] = ()

    @classmethod
    def of(cls, *holdings: Iterable[CardShare]) -> Occupancy:
        """The sum of several sets of holdings."""
        return cls(tuple(card for holding in holdings for card in holding))

    @cached_property
    def whole(self) -> frozenset[GpuUuid]:
        """UUIDs that somebody holds alone."""
        return frozenset(card.uuid for card in self.cards if card.whole)

    @cached_property
    def shared_bytes(self) -> Mapping[GpuUuid, int]:
        """UUID → VRAM promised in shares; only cards with shares are in it."""
        shares: dict[GpuUuid, int] = defaultdict(int)
        for card in self.cards:
            if card.memory_bytes is not None:
                shares[card.uuid] += card.memory_bytes
        return dict(shares)


@dataclass(frozen=True)
class Availability:
    """How often a request fits now and on the empty machine; `refusal` says why when it does not fit now.

    For whole cards `free` and `total` count cards, for shares they count shares; both are 0 for a request without GPU.
    """

    free: int
    total: int
    refusal: Refused | None = None

    @property
    def fits(self) -> bool:
        """Whether the request could be placed now."""
        return self.refusal is None


def place(request: GpuRequest | None, inventory: Inventory, occupancy: Taken, policy: Policy) -> tuple[CardShare, ...]:
    """The cards for `request`; no card for None.

    Raises:
        GpusUnknown: the cards cannot be counted.
        NoRoom: BUSY when it would fit on the empty machine, GPU_FAULT when it would if all cards were well, else
            TOO_BIG.
    """
    if request is None:
        return ()
    if inventory.trouble is not None:
        raise GpusUnknown(inventory.trouble, detail=inventory.detail)
    fitting = _fitting(request, inventory, policy)
    if request.memory_bytes is not None:
        return _place_share(request.memory_bytes, request, fitting, inventory, occupancy, policy)
    return _place_whole(request.count or 1, request, fitting, inventory, occupancy, policy)


def availability(request: GpuRequest | None, inventory: Inventory, occupancy: Taken, policy: Policy) -> Availability:
    """What the form says about `request` right now. Never raises."""
    if request is None:
        return Availability(0, 0)
    try:
        place(request, inventory, occupancy, policy)
        refusal = None
    except Refused as error:
        refusal = error
    fitting = _fitting(request, inventory, policy)
    if request.memory_bytes is not None:
        size = request.memory_bytes
        room = _room(fitting, occupancy, policy)
        free = sum(max(0, room[gpu.uuid]) // size for gpu in fitting if gpu.uuid in room)
        return Availability(free, sum(budget(gpu, policy) // size for gpu in fitting), refusal)
    return Availability(len(_untouched(fitting, occupancy)), len(fitting), refusal)


def able_cards(request: GpuRequest, inventory: Inventory, policy: Policy) -> Mapping[GpuUuid, int]:
    """UUID → budget in bytes of the well cards that could serve the request; none where they are too few for it."""
    fitting = _fitting(request, inventory, policy)
    if len(fitting) < (request.count or 1):
        return {}
    return {gpu.uuid: budget(gpu, policy) for gpu in fitting}


def budget(gpu: Gpu, policy: Policy) -> int:
    """How much of a card may be given away in shares, in bytes."""
    return max(0, gpu.memory_bytes - policy.reserve_bytes)


def _fitting(request: GpuRequest, inventory: Inventory, policy: Policy) -> list[Gpu]:
    """The well cards that could serve the request on an empty machine."""
    cards = [gpu for gpu in inventory.gpus if gpu.fault is None and gpu.matches(request.model)]
    if request.memory_bytes is None:
        return cards
    return [gpu for gpu in cards if budget(gpu, policy) >= request.memory_bytes]


def _untouched(gpus: Iterable[Gpu], occupancy: Taken) -> list[Gpu]:
    taken = occupancy.whole | occupancy.shared_bytes.keys()
    return [gpu for gpu in gpus if gpu.uuid not in taken]


def _room(gpus: Iterable[Gpu], occupancy: Taken, policy: Policy) -> dict[str, int]:
    """UUID → what is left of the budget; cards that somebody holds alone are not in it."""
    whole, shared = occupancy.whole, occupancy.shared_bytes
    return {gpu.uuid: budget(gpu, policy) - shared.get(gpu.uuid, 0) for gpu in gpus if gpu.uuid not in whole}


def _place_whole(
    count: int,
    request: GpuRequest,
    fitting: list[Gpu],
    inventory: Inventory,
    occupancy: Taken,
    policy: Policy,
) -> tuple[CardShare, ...]:
    if len(fitting) < count:
        raise _never(request, inventory, policy)
    free = _untouched(fitting, occupancy)
    if len(free) < count:
        raise _busy(request, len(free), len(fitting))
    # The smaller cards first, so that a later request for a big one still finds it.
    free.sort(key=lambda gpu: (gpu.memory_bytes, gpu.index, gpu.uuid))
    return tuple(CardShare(gpu.uuid) for gpu in free[:count])


def _place_share(
    size: int,
    request: GpuRequest,
    fitting: list[Gpu],
    inventory: Inventory,
    occupancy: Taken,
    policy: Policy,
) -> tuple[CardShare, ...]:
    if not fitting:
        raise _never(request, inventory, policy)
    room = _room(fitting, occupancy, policy)
    candidates = [gpu for gpu in fitting if room.get(gpu.uuid, -1) >= size]
    if not candidates:
        raise _busy(request, 0, len(fitting))
    shared = occupancy.shared_bytes
    best = min(candidates, key=lambda gpu: (gpu.uuid not in shared, room[gpu.uuid], gpu.index, gpu.uuid))
    return (CardShare(best.uuid, size),)


def wording(request: GpuRequest) -> Text:
    """What is asked, in words: "2 whole GPUs (RTX 4090)", "8 GiB of one GPU"."""
    model = f" ({request.model})" if request.model else ""
    if request.memory_bytes is not None:
        size = format_bytes(request.memory_bytes)
        return Text(f"{size} of one GPU{model}", f"GPU 1장 중 {size}{model}")
    count = request.count or 1
    if count == 1:
        return Text(f"one whole GPU{model}", f"GPU 1장 전체{model}")
    return Text(f"{count} whole GPUs{model}", f"GPU {count}장 전체{model}")


def _busy(request: GpuRequest, free: int, total: int) -> NoRoom:
    asked = wording(request)
    advice = Text(
        "Choose a profile that is free, or try again when somebody has stopped a server.",
        "사용 가능한 다른 프로필을 선택하거나, 다른 사용자가 반납한 뒤 다시 시도하세요.",
    )
    if request.memory_bytes is not None:
        why = Text("no single card has that much left", "그만큼 남은 카드가 없습니다")
    elif free == 0:
        why = Text("it is in use", "사용 중입니다")
        if total > 1:
            why = Text(f"all {total} are in use", f"{total}장 모두 사용 중입니다")
    else:
        why = Text(f"only {free} of {total} are free", f"{total}장 중 {free}장만 남아 있습니다")
    why = Text(f"You asked for {asked.en}, but {why.en}.", f"{asked.ko}: {why.ko}.")
    return NoRoom(Text(f"{why.en} {advice.en}", f"{why.ko} {advice.ko}"), reason=Reason.BUSY, why=why)


def others_wait(request: GpuRequest) -> NoRoom:
    """It would fit, but somebody who was there first is waiting for these cards."""
    asked = wording(request)
    why = Text(
        f"You asked for {asked.en}, but others were here first and wait for these cards.",
        f"{asked.ko}: 먼저 온 사용자가 이 카드를 기다리고 있습니다.",
    )
    advice = Text("Join the line, or choose another profile.", "대기열에 들어가거나 다른 프로필을 선택하세요.")
    return NoRoom(Text(f"{why.en} {advice.en}", f"{why.ko} {advice.ko}"), reason=Reason.BUSY, why=why)


def _never(request: GpuRequest, inventory: Inventory, policy: Policy) -> NoRoom:
    """It does not fit on the empty machine: because cards are out of order, or because it is too big for all of them.

    A card that was never readable has no name and no memory; it might be the one.
    """
    matching = [gpu for gpu in inventory.gpus if gpu.matches(request.model) or not gpu.memory_bytes]
    able = [gpu for gpu in matching if not gpu.memory_bytes or budget(gpu, policy) >= (request.memory_bytes or 0)]
    sick = [gpu for gpu in matching if gpu.fault is not None]
    reason = Reason.TOO_BIG
    if len(able) >= (request.count or 1):
        reason = Reason.GPU_FAULT
        why = _sick(sick, len(matching))
    elif not inventory.gpus:
        why = Text("this server has no GPU", "이 서버에는 GPU가 없습니다")
    elif not matching:
        why = Text("this server has no such card", "이 서버에는 해당 모델이 없습니다")
    elif request.memory_bytes is not None:
        why = Text("no card of this server is that large", "이 서버에는 그만큼 큰 카드가 없습니다")
    else:
        why = Text(f"this server has only {len(matching)}", f"이 서버에는 {len(matching)}장뿐입니다")
    asked = wording(request)
    return NoRoom(
        Text(
            f"You asked for {asked.en}, but {why.en}. Choose another profile, or tell the admin.",
            f"{asked.ko}: {why.ko}. 다른 프로필을 선택하거나 관리자에게 알려 주세요.",
        ),
        reason=reason,
    )


def _sick(sick: list[Gpu], total: int) -> Text:
    """That they are missing, and the reason where it is about one card."""
    state = Text("out of order", "점검 중입니다")
    if all(gpu.drained for gpu in sick):
        state = Text("out of use", "사용에서 제외되었습니다")
    why = Text(
        f"{len(sick)} of {total} GPUs {'is' if len(sick) == 1 else 'are'} {state.en}",
        f"GPU {total}장 중 {len(sick)}장이 {state.ko}",
    )
    if total == 1:
        why = Text(f"its only GPU is {state.en}", f"하나뿐인 GPU가 {state.ko}")
    fault = sick[0].fault if len(sick) == 1 else None
    if fault is None:
        return why
    return Text(f"{why.en}. {fault.en.removesuffix('.')}", f"{why.ko}. {fault.ko.removesuffix('.')}")
