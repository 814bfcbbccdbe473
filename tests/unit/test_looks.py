"""One look for all who ask at once: never one that began before somebody asked."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from gpuspawner.dockerd import looks as module
from gpuspawner.dockerd.looks import SharedLooks
from gpuspawner.errors import EngineError
from gpuspawner.texts import Text

SOON = 10.0
WHOSE: ContextVar[str] = ContextVar("whose", default="nobody's")


class Engine:
    """Tells what was true when a look began; each look is under way until it is let go."""

    def __init__(self) -> None:
        self.truth = 0
        self.begun: list[asyncio.Event] = []
        self.whose: list[str] = []
        self.error: Exception | None = None
        self.looks = SharedLooks(self._look)

    async def _look(self) -> int:
        told, error, go = self.truth, self.error, asyncio.Event()
        self.begun.append(go)
        self.whose.append(WHOSE.get())
        await go.wait()
        if error is not None:
            raise error
        return told

    def ask(self) -> asyncio.Task[int]:
        """Somebody asks."""
        return asyncio.ensure_future(self.looks.look())

    async def begins(self, count: int) -> None:
        """Wait until so many looks have begun."""
        end = asyncio.get_running_loop().time() + SOON
        while len(self.begun) < count:
            assert asyncio.get_running_loop().time() < end, "the look did not begin in time"
            await asyncio.sleep(0)


async def test_those_who_ask_at_once_share_a_look() -> None:
    """Sixteen in the same moment, one call."""
    engine = Engine()
    asked = [engine.ask() for _ in range(16)]
    await engine.begins(1)
    engine.begun[0].set()
    assert await asyncio.gather(*asked) == [0] * 16
    assert len(engine.begun) == 1


async def test_who_comes_later_gets_a_later_look() -> None:
    """What was done before asking is on it, and those who came later share it: two calls for all."""
    engine = Engine()
    early = engine.ask()
    await engine.begins(1)
    engine.truth = 1
    late = [engine.ask() for _ in range(15)]
    await asyncio.sleep(0)
    assert len(engine.begun) == 1
    engine.begun[0].set()
    await engine.begins(2)
    engine.begun[1].set()
    assert await early == 0
    assert await asyncio.gather(*late) == [1] * 15
    assert len(engine.begun) == 2


async def test_what_is_done_while_one_waits_for_the_next_look_is_on_it() -> None:
    """The next look has not begun while the one before is under way."""
    engine = Engine()
    engine.ask()
    await engine.begins(1)
    second = engine.ask()
    await asyncio.sleep(0)
    engine.truth = 2
    third = engine.ask()
    engine.begun[0].set()
    await engine.begins(2)
    engine.begun[1].set()
    assert await asyncio.gather(second, third) == [2, 2]


async def test_a_look_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 9: the next one begins beside it, and tells first."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    engine = Engine()
    hangs = engine.ask()
    await engine.begins(1)
    later = engine.ask()
    await engine.begins(2)
    engine.begun[1].set()
    assert await later == 0
    assert not hangs.done()
    engine.begun[0].set()
    assert await hangs == 0


async def test_who_is_cancelled_leaves_the_look_to_the_others() -> None:
    """The first one, whose call it is, as well as any other."""
    engine = Engine()
    first, second, third = engine.ask(), engine.ask(), engine.ask()
    await engine.begins(1)
    first.cancel()
    third.cancel()
    await asyncio.wait([first, third])
    engine.begun[0].set()
    assert await second == 0


async def test_an_error_is_for_all_who_share_it_and_for_nobody_after() -> None:
    """The next look is a new one."""
    engine = Engine()
    engine.error = EngineError(Text("No."))
    asked = [engine.ask(), engine.ask()]
    await engine.begins(1)
    engine.error = None
    engine.begun[0].set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in found] == [EngineError, EngineError]
    later = engine.ask()
    await engine.begins(2)
    engine.begun[1].set()
    assert await later == 0


async def test_an_error_that_nobody_waits_for_is_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    """All were cancelled: asyncio has nothing to say about the look that failed afterwards."""
    engine = Engine()
    engine.error = EngineError(Text("No."))
    asked = engine.ask()
    await engine.begins(1)
    asked.cancel()
    await asyncio.wait([asked])
    engine.begun[0].set()
    later = engine.ask()
    await engine.begins(2)
    engine.begun[1].set()
    with pytest.raises(EngineError):
        await later
    assert not caplog.records


async def test_a_look_belongs_to_nobodys_start() -> None:
    """What its first asker collects (`dockerd.collecting`) does not hold the call that all share."""
    engine = Engine()
    token = WHOSE.set("ann's")
    asked = engine.ask()
    await engine.begins(1)
    WHOSE.reset(token)
    engine.begun[0].set()
    await asked
    assert engine.whose == ["nobody's"]
