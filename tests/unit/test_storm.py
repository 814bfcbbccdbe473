"""benchmarks/storm.py: what it makes of its figures, and the engine that takes its time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def storm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program; what it brings to sys.path goes again."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import storm

    yield storm
    for name in ("storm", "hubs", "contenders"):
        sys.modules.pop(name, None)


def figures(storm: ModuleType, **ours: float) -> dict[str, dict[str, list[float]]]:
    """Everybody has the same, but for what is given."""
    names = (storm.PLAIN_HUB, storm.BASE_HUB, storm.OURS, storm.FLOOR)
    found = {name: {figure: [10.0, 10.0, 1000.0] for figure in storm.FIGURES} for name in names}
    found[storm.OURS] |= {figure: [value] for figure, value in ours.items()}
    return found


def test_a_target_is_a_ratio_of_medians_and_holds_up_to_its_value(storm: ModuleType) -> None:
    """Sixteen in 3 s are three tenths of 10 s, and just as much of the other Hub and of the floor."""
    judged = {(each["figure"], each["against"]): each for each in storm.judge(figures(storm, last=3.0, stops=2.51))}
    assert judged["last", storm.PLAIN_HUB]["value"] == pytest.approx(0.3)
    assert judged["last", storm.PLAIN_HUB]["holds"]
    assert not judged["stops", storm.PLAIN_HUB]["holds"]
    assert judged["stops", storm.BASE_HUB]["holds"]
    assert judged["last", storm.FLOOR]["holds"]


def test_a_target_without_another_is_a_value(storm: ModuleType) -> None:
    """Another user's poll, in seconds."""
    (poll,) = (each for each in storm.judge(figures(storm, poll=0.02)) if each["against"] is None)
    assert (poll["figure"], poll["value"], poll["holds"]) == ("poll", 0.02, True)


def test_everybody_begins_a_round_once(storm: ModuleType) -> None:
    """Whoever comes first finds the quieter machine, or the colder cache."""
    rounds = [[kind.name for kind in storm.turns(number)] for number in range(3)]
    assert {names[0] for names in rounds} == {storm.PLAIN_HUB, storm.BASE_HUB, storm.OURS}
    assert all(sorted(names) == sorted(rounds[0]) for names in rounds)


async def test_one_call_is_held_back_and_others_pass(
    storm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the next that starts a container, and only when it is told to."""

    answering: list[asyncio.Task[None] | None] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.current_task())
        while chunk := await reader.read(1000):
            writer.write(chunk)
        writer.close()
        await writer.wait_closed()

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine.sock'}")
    engine = await asyncio.start_unix_server(echo, tmp_path / "engine.sock")
    start, look = b"POST /v1.41/containers/a/start HTTP/1.1\r\n", b"GET /v1.41/containers/a/json HTTP/1.1\r\n"

    async def seconds(request: bytes) -> float:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "slow.sock")
        began = time.monotonic()
        writer.write(request)
        assert await reader.readexactly(len(request)) == request
        writer.close()
        await writer.wait_closed()
        return time.monotonic() - began

    async with storm.SlowEngine(tmp_path / "slow.sock", 2.0) as slow:
        await seconds(start)
        assert not slow.held.is_set()
        slow.arm()
        await seconds(look)
        assert not slow.held.is_set()
        held = asyncio.ensure_future(seconds(start))
        await asyncio.wait_for(slow.held.wait(), 5)
        await seconds(start)
        assert not held.done()
        assert await held >= 2.0
        assert not slow.held.is_set()
    await asyncio.gather(*filter(None, answering))
    engine.close()
    await engine.wait_closed()
