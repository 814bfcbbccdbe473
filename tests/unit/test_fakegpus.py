"""Simulated cards: what the text says, and what a test can do to them."""

from __future__ import annotations

import re

import pytest

from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.leases import CardShare
from gpuspawner.placement import Occupancy, Policy, place
from gpuspawner.profiles import GpuRequest
from gpuspawner.units import GIB, MIB

NVIDIA_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        pytest.param("24GiB", [24 * GIB], id="one"),
        pytest.param("2x24GiB", [24 * GIB] * 2, id="two"),
        pytest.param("2x24GiB,1x12GiB", [24 * GIB, 24 * GIB, 12 * GIB], id="mixed"),
        pytest.param(" 2 X 24 GiB , 512M ", [24 * GIB, 24 * GIB, 512 * MIB], id="spaces-and-capital"),
        pytest.param("64x1G", [GIB] * 64, id="the-most"),
    ],
)
async def test_the_text_becomes_cards(spec: str, sizes: list[int]) -> None:
    """As many cards as the text says, in its order, all well and all simulated."""
    inventory = await FakeGPUs(spec).inventory()
    assert [gpu.memory_bytes for gpu in inventory.gpus] == sizes
    assert [gpu.index for gpu in inventory.gpus] == list(range(len(sizes)))
    assert inventory.simulated
    assert inventory.trouble is None
    assert all(gpu.fault is None for gpu in inventory.gpus)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("", id="empty"),
        pytest.param("two", id="word"),
        pytest.param("2x", id="no-size"),
        pytest.param("0x24GiB", id="no-cards"),
        pytest.param("-1x24GiB", id="negative"),
        pytest.param("2x0GiB", id="no-memory"),
        pytest.param("2x24GiB,", id="comma-at-the-end"),
        pytest.param("65x1GiB", id="too-many"),
        pytest.param("60x1GiB,5x1GiB", id="too-many-together"),
        pytest.param("9999999x1GiB", id="far-too-many"),
        pytest.param("2x24GiB;1x12GiB", id="semicolon"),
        pytest.param(2, id="number"),
        pytest.param(None, id="none"),
    ],
)
def test_a_wrong_text_is_refused_with_an_example(spec: object) -> None:
    """The sentence shows a right text and what was given."""
    with pytest.raises(ValueError, match="FakeGPUs takes a text such as '2x24GiB'") as caught:
        FakeGPUs(spec)  # type: ignore[arg-type]
    assert repr(spec) in str(caught.value)


async def test_uuids_are_well_formed_different_and_the_same_each_time() -> None:
    """A lease of a simulated card is still understood after the Hub's restart."""
    first, second = [await FakeGPUs("11x24GiB").inventory() for _ in range(2)]
    uuids = [gpu.uuid for gpu in first.gpus]
    assert all(NVIDIA_UUID.fullmatch(uuid) for uuid in uuids)
    assert len(set(uuids)) == 11
    assert first == second


async def test_the_shipped_profile_finds_a_simulated_4090() -> None:
    """A card of 24 GiB has the name that `model` looks for, and a smaller one does not pretend to."""
    inventory = await FakeGPUs("1x12GiB,1x24GiB").inventory()
    request = GpuRequest.model_validate({"count": 1, "model": "RTX 4090"})
    assert place(request, inventory, Occupancy(), Policy()) == (CardShare(inventory.gpus[1].uuid),)
    assert inventory.gpus[0].name == "Simulated GPU 12 GiB"


async def test_no_simulated_card_names_a_device() -> None:
    """Nothing can attach /dev/nvidia0 by mistake."""
    assert {gpu.minor for gpu in (await FakeGPUs("2x24GiB").inventory()).gpus} == {None}


async def test_a_card_can_be_lost_and_restored() -> None:
    """A lost card stays listed with a fault, and the one beside it stays well."""
    source = FakeGPUs("2x24GiB")
    before = await source.inventory()
    source.lose(before.gpus[0].uuid)
    lost = await source.inventory()
    assert [gpu.fault is None for gpu in lost.gpus] == [False, True]
    source.restore(before.gpus[0].uuid)
    assert await source.inventory() == before


@pytest.mark.parametrize("act", [pytest.param(FakeGPUs.lose, id="lose"), pytest.param(FakeGPUs.restore, id="restore")])
def test_an_unknown_card_is_named(act: object) -> None:
    """A typo in a test is a sentence rather than a card that stays well."""
    assert callable(act)
    with pytest.raises(ValueError, match="no simulated card 'GPU-x'; there are GPU-0000"):
        act(FakeGPUs(), "GPU-x")
