"""Named faults of builds and registries; ``faults`` says how they are switched on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .answers import ApiError
from .faults import Call, Fault


@dataclass(eq=False)
class BuildFails(Fault):
    """A build fails in its last step; ``tag`` is a shell pattern of the names that builds ask for."""

    tag: str = "*"
    message: str = "The command '/bin/sh -c make' returned a non-zero code: 2"

    async def building(self, tag: str, gone: Callable[[], bool]) -> str | None:
        """Fail."""
        return self.message if fnmatchcase(tag, self.tag) and self.strikes("") else None


@dataclass(eq=False)
class BuildHangs(Fault):
    """A build stays in its last step until this is switched off, or its client leaves."""

    tag: str = "*"

    async def building(self, tag: str, gone: Callable[[], bool]) -> str | None:
        """Hold."""
        if fnmatchcase(tag, self.tag) and self.strikes(""):
            while not self._off.is_set() and not gone():
                await self.hold(0.02)
        return None


@dataclass(eq=False)
class RegistryDown(Fault):
    """No registry can be reached; ``ref`` is a shell pattern of names without tags."""

    ref: str = "*"
    message: str = 'Get "https://registry.example/v2/": dial tcp: lookup registry.example: no such host'

    async def arriving(self, call: Call) -> None:
        """Refuse."""
        is_asked = call.operation in ("pull", "push", "distribution")
        if is_asked and fnmatchcase(call.image, self.ref) and self.strikes(""):
            raise ApiError(500, self.message)


@dataclass(eq=False)
class RegistrySilent(Fault):
    """A registry that takes the question and never answers: a firewall that drops."""

    ref: str = "*"

    async def arriving(self, call: Call) -> None:
        """Hold."""
        if call.operation in ("pull", "distribution") and fnmatchcase(call.image, self.ref) and self.strikes(""):
            await self.hold(None)
