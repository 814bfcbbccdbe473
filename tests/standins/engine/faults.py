"""Named faults: each class is one way in which an engine or a container goes wrong, in the engine's own words.

A fault is switched on with ``engine.faults.add(fault)`` or for a while with ``with engine.faults.during(fault):``,
from any thread, while the engine runs. Faults only disturb; what a call normally does is in the other modules.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from . import answers
from .answers import ApiError, DropConnection, StartError
from .state import Container, Image, new_id


@dataclass(frozen=True)
class Call:
    """One request: ``operation`` is a short word such as ``create``, ``path`` has no version prefix."""

    method: str
    path: str
    operation: str
    container: str = ""
    image: str = ""

    def matches(self, pattern: str) -> bool:
        """Whether a shell pattern fits the operation (``start``) or the request line (``POST */start``)."""
        return fnmatchcase(self.operation, pattern) or fnmatchcase(f"{self.method} {self.path}", pattern)


@dataclass(frozen=True)
class Boot:
    """How a started notebook comes up: seconds until it answers or dies, and how it dies if it does."""

    seconds: float = 0.0
    answers: bool = True
    exit_code: int | None = None
    oom: bool = False
    logs: tuple[str, ...] = ()


@dataclass(eq=False)
class Fault:
    """The base: ``container`` is a shell pattern of names, ``times`` how often it strikes (None: always)."""

    container: str = field(default="*", kw_only=True)
    times: int | None = field(default=None, kw_only=True)
    struck: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _off: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    #: What the engine closes while the fault is on: the whole socket.
    closes_socket: bool = field(default=False, init=False, repr=False)

    def strikes(self, name: str) -> bool:
        """Whether this fault hits a container of that name now; counts the hit."""
        if not fnmatchcase(name, self.container):
            return False
        with self._lock:
            if self.times is not None and self.struck >= self.times:
                return False
            self.struck += 1
            return True

    async def hold(self, seconds: float | None) -> None:
        """Wait that long, or until the fault is switched off; None waits for the latter only."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._off.wait(), seconds)

    async def arriving(self, call: Call) -> None:
        """Called for each request before it is handled."""

    def creating(self, name: str, image: Image) -> None:
        """Called before a container is made."""

    def starting(self, container: Container) -> None:
        """Called before a container's command runs."""

    def booting(self, container: Container, boot: Boot) -> Boot:
        """Called when a notebook comes up: may change how."""
        return boot

    def nodes(self, container: Container, found: list[str]) -> list[str]:
        """Called with the GPU device nodes that a command in the container would see."""
        return found

    async def building(self, tag: str, gone: Callable[[], bool]) -> str | None:
        """Called before the last step of a build; what it fails with. ``gone``: whether the client has left."""
        return None


@dataclass(eq=False)
class EngineDown(Fault):
    """The engine is gone: ``refuse`` leaves a dead socket file, ``close`` takes each call and hangs up."""

    how: Literal["refuse", "close"] = "refuse"

    def __post_init__(self) -> None:
        self.closes_socket = self.how == "refuse"

    async def arriving(self, call: Call) -> None:
        """Hang up on everyone."""
        raise DropConnection


@dataclass(eq=False)
class EngineSlow(Fault):
    """Each matching call waits that many seconds before it is handled, or until the fault is switched off."""

    seconds: float
    on: str = "*"

    async def arriving(self, call: Call) -> None:
        """Wait; the call is then handled even if the client has left, as in the real engine."""
        if call.matches(self.on) and self.strikes(call.container):
            await self.hold(self.seconds)


@dataclass(eq=False)
class Http500(Fault):
    """Each matching call is answered with a 500."""

    on: str = "*"
    message: str = "the engine failed"

    async def arriving(self, call: Call) -> None:
        """Refuse."""
        if call.matches(self.on) and self.strikes(call.container):
            raise ApiError(500, self.message)


@dataclass(eq=False)
class HangsUp(Fault):
    """Each matching call is taken and the connection closed: the engine dies in the middle of it."""

    on: str = "*"

    async def arriving(self, call: Call) -> None:
        """Close the connection."""
        if call.matches(self.on) and self.strikes(call.container):
            raise DropConnection


@dataclass(eq=False)
class CreateConflict(Fault):
    """The name is still held by a container that is not in any list: the auto-remove race (moby#37698)."""

    times: int | None = field(default=1, kw_only=True)

    def creating(self, name: str, image: Image) -> None:
        """Refuse."""
        if self.strikes(name):
            raise answers.name_in_use(name, new_id())


@dataclass(eq=False)
class RemovalInProgress(Fault):
    """A remove is answered with 409 because another one is at work, and the container stays for now."""

    times: int | None = field(default=1, kw_only=True)

    async def arriving(self, call: Call) -> None:
        """Refuse."""
        if call.operation == "remove" and self.strikes(call.container):
            raise answers.removal_in_progress(new_id())


@dataclass(eq=False)
class NoSuchImage(Fault):
    """The image was removed behind our back, or never built; ``ref`` is a shell pattern."""

    ref: str = "*"

    async def arriving(self, call: Call) -> None:
        """Refuse to inspect it."""
        if call.operation == "inspect_image" and fnmatchcase(call.image, self.ref) and self.strikes(""):
            raise answers.no_such_image_to_inspect(call.image)

    def creating(self, name: str, image: Image) -> None:
        """Refuse to make a container of it."""
        bare = image.ref.removesuffix(":latest")
        if (fnmatchcase(image.ref, self.ref) or fnmatchcase(bare, self.ref)) and self.strikes(name):
            raise answers.no_such_image(image.ref)


@dataclass(eq=False)
class DiskFull(Fault):
    """No space is left on the engine's disk, noticed at create or only at start."""

    at: Literal["create", "start"] = "create"

    def creating(self, name: str, image: Image) -> None:
        """Refuse."""
        if self.at == "create" and self.strikes(name):
            folder = f"/var/lib/docker/overlay2/{new_id()}-init"
            raise ApiError(500, f"mkdir {folder}: no space left on device")

    def starting(self, container: Container) -> None:
        """Refuse."""
        if self.at == "start" and self.strikes(container.name):
            file = f"/var/lib/docker/containers/{container.id}/.tmp-config.v2.json"
            raise StartError(f"open {file}: no space left on device")


@dataclass(eq=False)
class StartFails(Fault):
    """Create works and start is refused; the container stays ``created`` with the text in its state."""

    message: str = "the container could not be started"
    status: int = field(default=500, kw_only=True)
    exit_code: int = field(default=128, kw_only=True)

    def starting(self, container: Container) -> None:
        """Refuse."""
        if self.strikes(container.name):
            raise StartError(self.message, status=self.status, exit_code=self.exit_code)


@dataclass(eq=False)
class HookFails(Fault):
    """The NVIDIA prestart hook refuses, for containers that ask for a GPU; the text is the hook's stderr."""

    message: str = "nvidia-container-cli: initialization error: nvml error: driver not loaded"

    def starting(self, container: Container) -> None:
        """Refuse."""
        if container.host_config["DeviceRequests"] and self.strikes(container.name):
            raise answers.hook_failed(self.message)


@dataclass(eq=False)
class NoDeviceDriver(Fault):
    """The NVIDIA container toolkit is not known to the engine: it takes no device request."""

    def starting(self, container: Container) -> None:
        """Refuse."""
        requests = container.host_config["DeviceRequests"] or ()
        if requests and self.strikes(container.name):
            first = requests[0]
            raise answers.no_device_driver(first.get("Driver") or "", first.get("Capabilities") or ())


@dataclass(eq=False)
class ImageHasNoHub(Fault):
    """The image has no ``jupyterhub-singleuser``, or whatever the command is: the start is a 400."""

    def starting(self, container: Container) -> None:
        """Refuse."""
        if self.strikes(container.name):
            raise answers.executable_missing(container.command[0])


@dataclass(eq=False)
class SlowBoot(Fault):
    """The notebook answers only after that many seconds."""

    seconds: float

    def booting(self, container: Container, boot: Boot) -> Boot:
        """Wait longer."""
        return replace(boot, seconds=self.seconds) if self.strikes(container.name) else boot


@dataclass(eq=False)
class NeverAnswers(Fault):
    """The container runs and nothing ever listens in it."""

    def booting(self, container: Container, boot: Boot) -> Boot:
        """Stay silent."""
        return replace(boot, answers=False) if self.strikes(container.name) else boot


@dataclass(eq=False)
class DiesOnBoot(Fault):
    """The notebook ends before it answers, with these log lines (on stderr) and this exit code."""

    exit_code: int = 1
    oom: bool = False
    logs: Sequence[str] = ()
    after_seconds: float = field(default=0.0, kw_only=True)

    def booting(self, container: Container, boot: Boot) -> Boot:
        """Die; a container that the kernel killed for memory ends with 137."""
        if not self.strikes(container.name):
            return boot
        code = 137 if self.oom else self.exit_code
        return replace(boot, seconds=self.after_seconds, exit_code=code, oom=self.oom, logs=tuple(self.logs))


@dataclass(eq=False)
class HangsOnStop(Fault):
    """Stop, kill and forced remove do not come back while the fault is on: a card off the bus does that."""

    async def arriving(self, call: Call) -> None:
        """Hold the call."""
        if call.operation in ("stop", "kill", "remove") and self.strikes(call.container):
            await self.hold(None)


@dataclass(eq=False)
class GpuNodeMissing(Fault):
    """The container starts, but no GPU device node arrived in it."""

    def nodes(self, container: Container, found: list[str]) -> list[str]:
        """Show none."""
        return [] if self.strikes(container.name) else found


_F = TypeVar("_F", bound=Fault)


class Faults:
    """The faults that are on; every method may be called from any thread."""

    def __init__(self, changed: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._changed = changed
        self._active: tuple[Fault, ...] = ()
        self._lock = threading.Lock()
        self.on_change: Callable[[], Awaitable[None]] | None = None

    @property
    def active(self) -> tuple[Fault, ...]:
        """The faults that are on, in the order in which they were switched on."""
        return self._active

    def add(self, fault: _F) -> _F:
        """Switch a fault on; returns once it is in force."""
        fault._off = asyncio.Event()
        with self._lock:
            self._active = (*self._active, fault)
        self._changed(self._settle)
        return fault

    def remove(self, fault: Fault) -> None:
        """Switch a fault off and let go of the calls that it holds; returns once that is done."""
        with self._lock:
            self._active = tuple(each for each in self._active if each is not fault)

        async def release() -> None:
            fault._off.set()
            await self._settle()

        self._changed(release)

    def clear(self) -> None:
        """Switch every fault off."""
        for fault in self._active:
            self.remove(fault)

    @contextmanager
    def during(self, fault: _F) -> Iterator[_F]:
        """The fault is on inside the ``with`` block."""
        self.add(fault)
        try:
            yield fault
        finally:
            self.remove(fault)

    async def _settle(self) -> None:
        if self.on_change is not None:
            await self.on_change()
