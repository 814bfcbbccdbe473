"""How many boot at once."""

from __future__ import annotations

import asyncio
import os

import pytest

from gpuspawner.boots import Boots, usual_limit

SOON = 5.0


class Crowd:
    """People who boot until they are told that it is done."""

    def __init__(self, boots: Boots) -> None:
        self.boots = boots
        self.booting: list[int] = []
        self.ready = asyncio.Event()

    async def boot(self, number: int) -> None:
        """Wait for a turn, and have it until `ready`."""
        async with self.boots.turn():
            self.booting.append(number)
            await self.ready.wait()


async def settled() -> None:
    """Let everybody go on who can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_so_many_at_a_time_in_the_order_of_their_coming() -> None:
    crowd = Crowd(Boots(2, hold_seconds=60))
    tasks = [asyncio.ensure_future(crowd.boot(number)) for number in range(6)]
    await settled()
    assert crowd.booting == [0, 1]
    assert crowd.boots.busy
    crowd.ready.set()
    await asyncio.wait_for(asyncio.gather(*tasks), SOON)
    assert crowd.booting == [0, 1, 2, 3, 4, 5]
    assert not crowd.boots.busy


async def test_one_that_fails_or_is_stopped_gives_its_turn_back() -> None:
    """Also one who leaves before the turn has come, or in the moment when it comes."""
    boots = Boots(1, hold_seconds=60)
    with pytest.raises(RuntimeError):
        async with boots.turn():
            raise RuntimeError
    crowd = Crowd(boots)
    first, second, third = (asyncio.ensure_future(crowd.boot(number)) for number in range(3))
    await settled()
    first.cancel()
    await asyncio.sleep(0)  # the turn is second's now, who has not heard of it
    second.cancel()
    await settled()
    assert crowd.booting == [0, 2]
    crowd.ready.set()
    await asyncio.wait_for(third, SOON)
    assert not boots.busy


async def test_a_long_boot_counts_no_longer() -> None:
    """And is not counted twice when it ends at last."""
    crowd = Crowd(Boots(1, hold_seconds=0.05))
    tasks = [asyncio.ensure_future(crowd.boot(number)) for number in range(3)]
    await asyncio.wait_for(_all(crowd, 3), SOON)
    crowd.ready.set()
    await asyncio.gather(*tasks)
    assert not crowd.boots.busy
    async with crowd.boots.turn():
        assert crowd.boots.busy, "it is still one at a time"


async def _all(crowd: Crowd, count: int) -> None:
    while len(crowd.booting) < count:
        await asyncio.sleep(0.01)


def test_the_usual_limit_is_that_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use, not those of the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 7})
    assert usual_limit() == 6
