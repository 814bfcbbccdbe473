"""How many servers boot at once. It knows nothing of what a boot is.

A boot costs processor time and little else: more at once than there are processors for only take turns on them, so that
everybody waits for the last. One after the other the first is ready at once, and the last no later.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# A boot that takes longer waits for something else than a processor, and must not hold up anybody.
HOLD_SECONDS = 3.0
PER_PROCESSOR = 2


def usual_limit() -> int:
    """Two for each processor that this process may use: one computes while the other waits for the engine."""
    return PER_PROCESSOR * len(os.sched_getaffinity(0))


class Boots:
    """Lets `limit` boots through at a time, in the order in which they came.

    Each counts until it ends, or for `hold_seconds`: one that hangs delays the next by that, once.
    """

    def __init__(self, limit: int, hold_seconds: float = HOLD_SECONDS) -> None:
        self._free = asyncio.Semaphore(limit)
        self._hold_seconds = hold_seconds

    @property
    def busy(self) -> bool:
        """Whether whoever comes now has to wait."""
        return self._free.locked()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs."""
        await self._free.acquire()
        held = True

        def let_go() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        overdue = asyncio.get_running_loop().call_later(self._hold_seconds, let_go)
        try:
            yield
        finally:
            overdue.cancel()
            let_go()
