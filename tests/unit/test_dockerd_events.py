"""The event stream of the engine, with the real docker-py on the stand-in engine: a hint for each change, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from gpuspawner.dockerd import Engine, events, watch_leases
from gpuspawner.leases import LEASE
from tests.standins.engine import EngineDown, StandinEngine
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS


class Hints:
    """Counts the calls, and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._more.set()

    async def more_than(self, count: int) -> None:
        """Until there were more."""

        async def wait() -> None:
            while self.count <= count:
                self._more.clear()
                await self._more.wait()

        await asyncio.wait_for(wait(), 10)


@pytest.fixture
def standin() -> Iterator[StandinEngine]:
    """An engine with a notebook image."""
    with StandinEngine() as engine:
        engine.add_image("nb")
        yield engine


@pytest.fixture
def engine(standin: StandinEngine) -> Iterator[Engine]:
    """Ours, on it."""
    engine = Engine({"base_url": standin.url}, call_timeout_seconds=10)
    yield engine
    engine.close()


@pytest_asyncio.fixture
async def hints(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hints]:
    """A watch that has begun."""
    monkeypatch.setattr(events, "RECONNECT_SECONDS", 0.05)
    found = Hints()
    watching = asyncio.ensure_future(watch_leases(engine, found))
    await found.more_than(0)
    yield found
    watching.cancel()
    await asyncio.wait([watching])


async def run(engine: Engine, name: str, labels: dict[str, str]) -> str:
    """A container that runs; its id."""
    made = await engine.call("create_container", "nb", name=name, labels=labels)
    await engine.call("start", made["Id"])
    return str(made["Id"])


async def test_a_lease_that_ends_is_told_at_once(standin: StandinEngine, engine: Engine, hints: Hints) -> None:
    """Whoever waits for the card looks at this moment."""
    await run(engine, "ann", {LEASE: "1"})
    await hints.more_than(2)
    before = hints.count
    standin.die("ann")
    await hints.more_than(before)


async def test_containers_without_a_lease_are_not_told(engine: Engine, hints: Hints) -> None:
    """A busy engine of others costs nothing."""
    before = hints.count
    stranger = await run(engine, "stranger", {})
    await engine.remove(stranger)
    await run(engine, "ann", {LEASE: "1"})
    await hints.more_than(before + 1)
    assert hints.count == before + 2


@pytest.mark.fault(17)
async def test_a_stream_that_is_lost_is_replaced(standin: StandinEngine, engine: Engine, hints: Hints) -> None:
    """An engine that restarts: there is a hint when the new stream is open, and then for each change."""
    before = hints.count
    with standin.faults.during(EngineDown()):
        await hints.more_than(before + 1)
    await run(engine, "ann", {LEASE: "1"})
    before = hints.count
    standin.die("ann")
    await hints.more_than(before)


async def test_a_stream_is_replaced_now_and_then_though_it_looks_alive(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that died without a word tells nothing for ever."""
    monkeypatch.setattr(events, "STREAM_SECONDS", 0.1)
    found = Hints()
    watching = asyncio.ensure_future(watch_leases(engine, found))
    await found.more_than(4)
    watching.cancel()
    await asyncio.wait([watching])


async def test_an_engine_that_is_down_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The watch goes on until it is cancelled, and its thread ends with it."""
    monkeypatch.setattr(events, "RECONNECT_SECONDS", 0.01)
    nobody = Engine({"base_url": f"unix://{tmp_path}/nobody.sock", "version": "1.41"}, call_timeout_seconds=1)
    found = Hints()
    watching = asyncio.ensure_future(watch_leases(nobody, found))
    await found.more_than(2)
    assert not watching.done()
    watching.cancel()
    await asyncio.wait([watching])
    nobody.close()
