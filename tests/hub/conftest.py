"""The hub tier: a real JupyterHub, its real proxy and real docker-py on a stand-in engine with named faults."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from traitlets.config import Config

from tests.hub.lab import CARDS, Lab, LabHub, hub_config
from tests.hub.people import Person, one_shot
from tests.standins.engine import StandinEngine

HERE = Path(__file__).parent


# docker-py leaves a socket to the garbage collector when it cannot connect (`transport/unixconn.py`).
UNCLOSED_BY_DOCKER_PY = "ignore:unclosed <socket.socket fd=[0-9]+, family=1, type=1:ResourceWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all tests of this folder: the Hub lives in it as long as they run."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(UNCLOSED_BY_DOCKER_PY))
            if pytest_asyncio.is_async_test(item):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def session_engine() -> Iterator[StandinEngine]:
    """The stand-in engine that all tests share."""
    with StandinEngine(gpus=CARDS) as engine:
        for name in ("scipy", "pytorch"):
            engine.add_image(f"gpuspawner/{name}", env={"HOME": "/home/jovyan"})
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def hub_app() -> AsyncIterator[LabHub]:
    """The Hub that all tests share: pytest-jupyterhub's fixture of this name, made anew.

    The plugin (0.1.0) runs on JupyterHub 6, but it makes a Hub and a proxy for each test, which takes longer than all
    of these tests together; ends them by cancelling every task of the loop; and leaves client sessions open, which is
    an error under `filterwarnings = error`. Its idea is here: a MockHub from a configuration, started and stopped.
    """
    LabHub.clear_instance()
    app = LabHub.instance(config=Config(hub_config()))
    await app.initialize()
    await app.start()
    yield app
    await app.close()
    # While the filter of the last test is still in force.
    gc.collect()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client for the REST API."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), connector=one_shot()) as session:
        yield session


@pytest_asyncio.fixture(loop_scope="session")
async def lab(hub_app: LabHub, session_engine: StandinEngine, http: aiohttp.ClientSession) -> AsyncIterator[Lab]:
    """The Hub and the engine, with nothing in them but the images and the admin."""
    one = Lab(hub_app, session_engine, http)
    yield one
    await one.reset()


@pytest_asyncio.fixture(loop_scope="session")
async def alice(lab: Lab) -> Person:
    """A student."""
    return await lab.person("alice")


@pytest_asyncio.fixture(loop_scope="session")
async def bob(lab: Lab) -> Person:
    """Another student."""
    return await lab.person("bob")


@pytest_asyncio.fixture(loop_scope="session")
async def cai(lab: Lab) -> Person:
    """A third student."""
    return await lab.person("cai")


@pytest_asyncio.fixture(loop_scope="session")
async def dan(lab: Lab) -> Person:
    """A fourth one."""
    return await lab.person("dan")


@pytest_asyncio.fixture(loop_scope="session")
async def admin(lab: Lab) -> Person:
    """The admin."""
    return lab.admin()
