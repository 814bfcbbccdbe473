"""Cards and the inventory of a machine."""

from __future__ import annotations

import pytest
from traitlets import Instance
from traitlets.config import Config, Configurable

from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.gpus import Gpu, GpuSource, GpuUuid, Inventory
from gpuspawner.nvml import Nvml
from gpuspawner.units import GIB

CARD = Gpu(GpuUuid("GPU-a"), 0, "NVIDIA GeForce RTX 4090", 24 * GIB)


@pytest.mark.parametrize(
    ("model", "matches"),
    [
        pytest.param(None, True, id="any"),
        pytest.param("RTX 4090", True, id="as-on-the-box"),
        pytest.param("rtx4090", True, id="case-and-spaces"),
        pytest.param("NVIDIA GeForce RTX 4090", True, id="full-name"),
        pytest.param("4090", True, id="number"),
        pytest.param("RTX 4080", False, id="another-card"),
        pytest.param("NVIDIA GeForce RTX 4090 D", False, id="longer-than-the-name"),
    ],
)
def test_a_model_matches_by_its_words(model: str | None, matches: bool) -> None:
    """An admin writes the model as people say it."""
    assert CARD.matches(model) is matches


def test_an_inventory_finds_cards_by_uuid_only() -> None:
    """An index is for people to read, so it finds nothing."""
    inventory = Inventory((CARD,))
    assert inventory.get("GPU-a") is CARD
    assert inventory.get("GPU-b") is None
    assert inventory.get("0") is None


@pytest.mark.parametrize("source", [pytest.param(Nvml(), id="nvml"), pytest.param(FakeGPUs(), id="fake")])
def test_both_sources_satisfy_the_protocol(source: object) -> None:
    """The Hub takes either without knowing which."""
    assert isinstance(source, GpuSource)


@pytest.mark.parametrize("kind", [pytest.param(Nvml, id="nvml"), pytest.param(FakeGPUs, id="fake")])
async def test_a_configured_source_is_shared_and_not_copied(kind: type[Nvml] | type[FakeGPUs]) -> None:
    """traitlets copies what is configured for each spawner: two sources would each keep their own truth."""

    class Spawner(Configurable):  # type: ignore[misc]
        gpus = Instance(GpuSource).tag(config=True)

    source = kind()
    await source.inventory()
    config = Config({"Spawner": {"gpus": source}})
    assert Spawner(config=config).gpus is source
    assert Spawner(config=config).gpus is source
