"""Fixtures of the contract cases: each case runs once against the stand-in and once against a lent real engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.contract.engines import Engine, real, standin
from tests.standins.gpustate import STATE_VARIABLE, GpuState


@pytest.fixture(scope="session", params=["stand-in", "real"])
def client(request: pytest.FixtureRequest) -> Iterator[tuple[docker.APIClient, bool]]:
    """docker-py at one engine that has the test image, and whether that engine is the real one."""
    is_real = request.param == "real"
    with real() if is_real else standin() as api:
        yield api, is_real


@pytest.fixture
def engine(client: tuple[docker.APIClient, bool]) -> Iterator[Engine]:
    """One engine, and a clean-up of what the case made in it."""
    one = Engine(*client)
    yield one
    one.clear()


@pytest.fixture
def gpu_engine(engine: Engine) -> Engine:
    """An engine with two fake cards; a real one has them where its hook is the stand-in hook."""
    state = os.environ.get(STATE_VARIABLE)
    if engine.real and state is None:
        pytest.skip(f"the lent engine has no fake GPUs: {STATE_VARIABLE} is not set (netns_engine exec sets it)")
    if engine.real and state is not None:
        GpuState().write(Path(state))
    return engine


@pytest.fixture(params=["stand-in", "real"])
def nvidia_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with two fake cards whose default runtime is ``nvidia``: netns_engine's flavour ``--nvidia``."""
    is_real = request.param == "real"
    with real() if is_real else standin(default_runtime="nvidia") as api:
        if api.info()["DefaultRuntime"] != "nvidia":
            pytest.skip("the lent engine's default runtime is not nvidia: lend one by netns_engine --nvidia exec")
        one = Engine(api, is_real)
        yield one
        one.clear()
