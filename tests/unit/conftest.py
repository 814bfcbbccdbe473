"""What several modules of the unit tier start from."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standins.engine import StandinEngine
from tests.standins.gpustate import build_nvml
from tests.unit.imagelab import Lab


@pytest.fixture(scope="module")
def collected() -> Iterator[None]:
    """What the module left to the garbage collector goes at its end, and not in somebody else's test."""
    yield
    gc.collect()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Four folders of images, and no image yet."""
    with StandinEngine() as engine:
        yield Lab(tmp_path, engine, monkeypatch)
        engine.faults.clear()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in of NVIDIA's driver library, compiled once."""
    try:
        return build_nvml(tmp_path_factory.mktemp("nvml"))
    except RuntimeError as error:
        if "needs a C compiler" not in str(error):
            raise
        pytest.skip(str(error))
