"""Which cards a request gets: never too much, always the same, and with a sentence when there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpuspawner.errors import GpusUnknown, NoRoom, Reason, Refused
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare
from gpuspawner.placement import Availability, Occupancy, Policy, availability, place, wording
from gpuspawner.profiles import GpuRequest
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests import strategies

POLICY = Policy(reserve_bytes=GIB)
NOTHING = Occupancy()
TROUBLE = Inventory(trouble=Text("the driver does not answer", "응답 없음"), detail="NVML is off")


def card(number: int, *, gib: int = 24, name: str = "NVIDIA GeForce RTX 4090", fault: Text | None = None) -> Gpu:
    """A card with a short UUID that tests can read."""
    return Gpu(GpuUuid(f"GPU-{number}"), number, name, gib * GIB, number, fault)


def whole(count: int = 1, model: str | None = None) -> GpuRequest:
    """A request for whole cards."""
    return GpuRequest.model_validate({"count": count, "model": model})


def share(gib: int, model: str | None = None) -> GpuRequest:
    """A request for a share of one card."""
    return GpuRequest.model_validate({"memory": gib * GIB, "model": model})


def held(*cards: tuple[int, int | None]) -> Occupancy:
    """Holdings as (number of the card, GiB or None for the whole)."""
    return Occupancy(tuple(CardShare(GpuUuid(f"GPU-{n}"), gib and gib * GIB) for n, gib in cards))


TWO = Inventory((card(0), card(1)))


# What is promised


@pytest.mark.fault(6, 7)
@given(strategies.inventories(), strategies.policies(), st.lists(strategies.requests(), max_size=12))
def test_no_series_of_requests_overcommits_a_card(
    inventory: Inventory, policy: Policy, requests: Sequence[GpuRequest]
) -> None:
    """Law 2: whatever is asked in whatever order, whole cards stay exclusive and shares within the budget."""
    occupancy = NOTHING
    for request in requests:
        try:
            cards = place(request, inventory, occupancy, policy)
        except Refused:
            continue
        occupancy = Occupancy.of(occupancy.cards, cards)
        strategies.assert_within_cards(occupancy.cards, inventory, policy)


@pytest.mark.fault(15)
@given(st.data(), strategies.inventories(min_cards=2), strategies.policies(), strategies.requests())
def test_a_placement_is_exactly_what_was_asked(
    data: st.DataObject, inventory: Inventory, policy: Policy, request: GpuRequest
) -> None:
    """As many different cards as asked, each known, well and of the right model, with the size that was asked."""
    occupancy = data.draw(strategies.occupancies(inventory, policy))
    assume(fits(request, inventory, occupancy, policy))
    cards = place(request, inventory, occupancy, policy)
    assert len({share.uuid for share in cards}) == len(cards) == (request.count or 1)
    assert {share.memory_bytes for share in cards} == {request.memory_bytes}
    for leased in cards:
        gpu = inventory.get(leased.uuid)
        assert gpu is not None
        assert gpu.fault is None
        assert gpu.matches(request.model)
    strategies.assert_within_cards((*occupancy.cards, *cards), inventory, policy)


@given(st.data(), strategies.inventories(), strategies.policies(), strategies.requests())
def test_placement_is_deterministic(
    data: st.DataObject, inventory: Inventory, policy: Policy, request: GpuRequest
) -> None:
    """The order in which labels were listed changes nothing."""
    occupancy = data.draw(strategies.occupancies(inventory, policy))
    shuffled = Occupancy(tuple(data.draw(st.permutations(occupancy.cards))))
    assert outcome(request, inventory, occupancy, policy) == outcome(request, inventory, shuffled, policy)


@given(st.data(), strategies.inventories(min_cards=2), strategies.policies(), strategies.requests())
def test_placement_is_monotone(data: st.DataObject, inventory: Inventory, policy: Policy, request: GpuRequest) -> None:
    """Somebody who stops a server never turns another one's yes into a no."""
    occupancy = data.draw(strategies.occupancies(inventory, policy))
    assume(occupancy.cards)
    gone = data.draw(st.integers(0, len(occupancy.cards) - 1))
    fewer = Occupancy(occupancy.cards[:gone] + occupancy.cards[gone + 1 :])
    before, after = (availability(request, inventory, held, policy) for held in (occupancy, fewer))
    assert after.free >= before.free
    assert after.fits or not before.fits


@given(st.data(), strategies.inventories(min_cards=2), strategies.policies())
def test_a_share_leaves_untouched_cards_untouched(data: st.DataObject, inventory: Inventory, policy: Policy) -> None:
    """While a card that is shared already has room, no other one is broken up; the tightest of them is taken."""
    occupancy = data.draw(strategies.occupancies(inventory, policy))
    shared = occupancy.shared_bytes
    room = {
        gpu.uuid: gpu.memory_bytes - policy.reserve_bytes - shared[gpu.uuid]
        for gpu in inventory.gpus
        if gpu.uuid in shared and gpu.fault is None
    }
    assume(any(left > 0 for left in room.values()))
    size = data.draw(st.integers(1, max(room.values())))
    (leased,) = place(GpuRequest.model_validate({"memory": size}), inventory, occupancy, policy)
    assert room.get(leased.uuid) == min(left for left in room.values() if left >= size)


@given(st.data(), strategies.inventories(), strategies.policies(), strategies.requests())
def test_too_big_means_too_big_for_the_empty_machine(
    data: st.DataObject, inventory: Inventory, policy: Policy, request: GpuRequest
) -> None:
    """BUSY if waiting for others helps, GPU_FAULT if a repair helps, TOO_BIG if nothing does."""
    occupancy = data.draw(strategies.occupancies(inventory, policy))
    found = outcome(request, inventory, occupancy, policy)
    repaired = Inventory(tuple(replace(gpu, fault=None) for gpu in inventory.gpus))
    assert (found in (Reason.TOO_BIG, Reason.GPU_FAULT)) == (not fits(request, inventory, NOTHING, policy))
    assert (found == Reason.TOO_BIG) == (not fits(request, repaired, NOTHING, policy))


@given(st.data(), strategies.inventories(), strategies.policies(), st.none() | strategies.requests())
def test_availability_agrees_with_placement(
    data: st.DataObject, inventory: Inventory, policy: Policy, request: GpuRequest | None
) -> None:
    """What the form calls free can be had, and what it calls full cannot."""
    occupancy = data.draw(strategies.occupancies(inventory, policy))
    seen = availability(request, inventory, occupancy, policy)
    assert seen.fits == fits(request, inventory, occupancy, policy)
    assert 0 <= seen.free <= seen.total
    if request is not None:
        assert seen.fits == (seen.free >= (request.count or 1))


@given(strategies.inventories(faults=False), strategies.policies(), strategies.share_sizes())
def test_as_many_shares_fit_as_availability_says(inventory: Inventory, policy: Policy, size: int) -> None:
    """The number on the form is the number of students who get their share."""
    request = GpuRequest.model_validate({"memory": max(size, GIB)})
    promised = availability(request, inventory, NOTHING, policy).free
    occupancy, placed = NOTHING, 0
    while fits(request, inventory, occupancy, policy):
        occupancy = Occupancy.of(occupancy.cards, place(request, inventory, occupancy, policy))
        placed += 1
    assert placed == promised


# What is chosen


@pytest.mark.parametrize(
    ("request_", "occupancy", "uuids"),
    [
        pytest.param(whole(), NOTHING, ["GPU-0"], id="the-first-card"),
        pytest.param(whole(), held((0, None)), ["GPU-1"], id="the-free-card"),
        pytest.param(whole(), held((0, 4)), ["GPU-1"], id="not-a-shared-card"),
        pytest.param(whole(2), NOTHING, ["GPU-0", "GPU-1"], id="both-cards"),
        pytest.param(share(8), held((1, 8)), ["GPU-1"], id="share-beside-a-share"),
        pytest.param(share(8), held((0, 16), (1, 8)), ["GPU-1"], id="share-where-it-fits"),
        pytest.param(share(4), held((0, 16), (1, 8)), ["GPU-0"], id="share-where-it-is-tightest"),
        pytest.param(share(23), held((1, 1)), ["GPU-0"], id="the-whole-budget"),
        pytest.param(share(8), held((0, None)), ["GPU-1"], id="share-beside-a-whole-card"),
    ],
)
def test_the_card_is_chosen_by_best_fit(request_: GpuRequest, occupancy: Occupancy, uuids: list[str]) -> None:
    """Shares are packed, so that whole cards stay whole as long as they can."""
    assert [leased.uuid for leased in place(request_, TWO, occupancy, POLICY)] == uuids


def test_a_smaller_untouched_card_is_not_broken_up() -> None:
    """A share joins the shared big card even where an untouched small one has less room."""
    mixed = Inventory((card(0, gib=12), card(1, gib=24)))
    assert place(share(4), mixed, held((1, 4)), POLICY) == (CardShare(GpuUuid("GPU-1"), 4 * GIB),)


def test_whole_cards_are_taken_from_the_small_end() -> None:
    """A big card is kept for those who need it."""
    mixed = Inventory((card(0, gib=24), card(1, gib=12)))
    assert [leased.uuid for leased in place(whole(), mixed, NOTHING, POLICY)] == ["GPU-1"]


def test_a_profile_without_gpu_gets_none_even_when_the_cards_are_unknown() -> None:
    """A broken driver keeps nobody from a CPU notebook."""
    assert place(None, TROUBLE, NOTHING, POLICY) == ()
    assert availability(None, TROUBLE, NOTHING, POLICY) == Availability(0, 0)


@pytest.mark.fault(27)
def test_a_lost_card_is_left_out() -> None:
    """Law 11: nobody is given a sick card, and the well one beside it stays in use."""
    inventory = Inventory((card(0, fault=strategies.FAULT), card(1)))
    assert [leased.uuid for leased in place(whole(), inventory, NOTHING, POLICY)] == ["GPU-1"]
    assert outcome(whole(2), inventory, NOTHING, POLICY) == Reason.GPU_FAULT


@given(strategies.requests())
def test_nothing_is_leased_on_unknown(request_: GpuRequest) -> None:
    """Law 10: cards that cannot be counted are given to nobody, and the log learns why."""
    with pytest.raises(GpusUnknown) as caught:
        place(request_, TROUBLE, NOTHING, POLICY)
    assert caught.value.text == TROUBLE.trouble
    assert caught.value.detail == "NVML is off"
    assert not availability(request_, TROUBLE, NOTHING, POLICY).fits


# What is said


@pytest.mark.parametrize(
    ("request_", "inventory", "occupancy", "english", "korean"),
    [
        pytest.param(whole(), TWO, held((0, None), (1, 4)), "all 2 are in use", "2장 모두", id="all-in-use"),
        pytest.param(
            whole(), Inventory((card(0),)), held((0, None)), "it is in use", "전체: 사용 중", id="the-only-one"
        ),
        pytest.param(whole(2), TWO, held((0, None)), "only 1 of 2", "1장만", id="some-free"),
        pytest.param(share(16), TWO, held((0, 16), (1, 16)), "no single card", "남은 카드", id="no-single-card"),
        pytest.param(whole(3), TWO, NOTHING, "has only 2", "2장뿐", id="more-than-there-are"),
        pytest.param(share(24), TWO, NOTHING, "that large", "큰 카드", id="larger-than-a-card-less-its-reserve"),
        pytest.param(whole(1, "H100"), TWO, NOTHING, "no such card", "해당 모델", id="no-such-model"),
        pytest.param(
            whole(2, "4090"),
            Inventory((card(0), card(1, name="NVIDIA T4"))),
            NOTHING,
            "has only 1",
            "1장뿐",
            id="counts-the-model-alone",
        ),
        pytest.param(whole(), Inventory(), NOTHING, "has no GPU", "GPU가 없습니다", id="no-cards"),
        pytest.param(
            whole(2),
            Inventory((card(0), card(1, fault=strategies.FAULT))),
            NOTHING,
            "1 of 2 GPUs is out of order",
            "2장 중 1장",
            id="one-lost",
        ),
        pytest.param(
            whole(),
            Inventory((card(0, fault=strategies.FAULT), card(1, fault=strategies.FAULT))),
            NOTHING,
            "2 of 2 GPUs are out of order",
            "2장 중 2장",
            id="all-lost",
        ),
        pytest.param(
            share(8),
            Inventory((card(0, fault=strategies.FAULT),)),
            NOTHING,
            "its only GPU is out of order",
            "하나뿐인 GPU",
            id="the-only-one-lost",
        ),
        pytest.param(
            whole(2, "4090"),
            Inventory((card(0), card(1, fault=strategies.FAULT), card(2, name="NVIDIA T4", fault=strategies.FAULT))),
            NOTHING,
            "1 of 2 GPUs is out of order",
            "2장 중 1장",
            id="counts-the-lost-of-the-model-alone",
        ),
        pytest.param(
            share(24),
            Inventory((card(0, fault=strategies.FAULT),)),
            NOTHING,
            "that large",
            "큰 카드",
            id="larger-than-the-lost-card-less-its-reserve",
        ),
        pytest.param(
            whole(1, "4090"),
            Inventory((card(0, gib=0, name="", fault=strategies.FAULT),)),
            NOTHING,
            "its only GPU is out of order",
            "하나뿐인 GPU",
            id="never-readable-might-be-it",
        ),
        pytest.param(
            whole(3),
            Inventory((card(0), card(1, fault=strategies.FAULT))),
            NOTHING,
            "has only 2",
            "2장뿐",
            id="too-many-even-with-the-lost-one",
        ),
    ],
)
def test_a_refusal_says_what_why_and_what_now(
    request_: GpuRequest, inventory: Inventory, occupancy: Occupancy, english: str, korean: str
) -> None:
    """Law 7: three parts in both languages."""
    refusal = availability(request_, inventory, occupancy, POLICY).refusal
    assert isinstance(refusal, NoRoom)
    asked = wording(request_)
    assert refusal.text.en.startswith(f"You asked for {asked.en}, but ")
    assert refusal.text.ko.startswith(f"{asked.ko}: ")
    assert english in refusal.text.en
    assert korean in refusal.text.ko
    assert "Choose" in refusal.text.en
    assert "선택하거나" in refusal.text.ko


@pytest.mark.parametrize(
    ("request_", "english", "korean"),
    [
        pytest.param(whole(), "one whole GPU", "GPU 1장 전체", id="one"),
        pytest.param(whole(2, "RTX 4090"), "2 whole GPUs (RTX 4090)", "GPU 2장 전체 (RTX 4090)", id="two-of-a-model"),
        pytest.param(share(8), "8 GiB of one GPU", "GPU 1장 중 8 GiB", id="share"),
    ],
)
def test_a_request_has_words(request_: GpuRequest, english: str, korean: str) -> None:
    """The same words stand on the form and in the refusal."""
    assert wording(request_) == Text(english, korean)


def fits(request: GpuRequest | None, inventory: Inventory, occupancy: Occupancy, policy: Policy) -> bool:
    """Whether `place` says yes."""
    return not isinstance(outcome(request, inventory, occupancy, policy), Reason)


def outcome(
    request: GpuRequest | None, inventory: Inventory, occupancy: Occupancy, policy: Policy
) -> tuple[CardShare, ...] | Reason:
    """What `place` gives, or the reason that it gives."""
    try:
        return place(request, inventory, occupancy, policy)
    except Refused as error:
        return error.reason
