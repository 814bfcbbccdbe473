"""One look at the engine for all who ask at the same time.

A look may only be shared by those who asked before it began: what somebody has done before asking must be on it. So
whoever comes while a look is under way waits for the next one, and all who wait get that one together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")

# A look that takes longer hangs, maybe: the next one begins beside it. An ordinary one takes some milliseconds.
PATIENCE_SECONDS = 0.25


class SharedLooks(Generic[T]):
    """`look` is what may be shared: it changes nothing, and each call of it tells what is true from its beginning on.

    All of it is called on one event loop at a time.
    """

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._under_way: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def look(self) -> T:
        """What a look says that begins after this call. Raises what `look` raises, for all who share it."""
        if self._next is None or self._next.done():
            # In a context of its own: it belongs to nobody's start, and who is cancelled does not cancel it for others.
            self._next = Context().run(asyncio.ensure_future, self._begin(self._under_way))
            self._next.add_done_callback(_look_at_error)
        return await asyncio.shield(self._next)

    async def _begin(self, before: asyncio.Task[T] | None) -> T:
        if before is not None and not before.done():
            await asyncio.wait([before], timeout=PATIENCE_SECONDS)
        self._under_way, self._next = self._next, None
        return await self._look()


def _look_at_error(task: asyncio.Task[T]) -> None:
    """Keep asyncio from complaining about an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
