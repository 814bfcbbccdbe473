"""What the stand-in engine knows: images, containers, networks, volumes and exec instances.

Plain records and the look-ups over them. It knows nothing of HTTP or of what runs in a container, and it is
only touched from the engine's own thread.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import answers

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def new_id() -> str:
    """64 hex digits, as the engine gives to containers, networks and exec instances."""
    return secrets.token_hex(32)


@dataclass(frozen=True)
class Layer:
    """One entry of an image's history: what made it, and the bytes that it added."""

    id: str
    created_by: str = ""
    size: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    comment: str = ""


@dataclass(frozen=True)
class Image:
    """An image of the engine under one of its names; ``layers`` the lowest first.

    ``notebook`` false means that its command really runs as a process. ``parent`` is the id of the image that the
    classic builder made it from.
    """

    ref: str
    id: str
    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    notebook: bool = True
    created: float = field(default_factory=time.time)
    layers: tuple[Layer, ...] = ()
    parent: str = ""

    @property
    def size(self) -> int:
        """The bytes of all its layers."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True)
class ExecAnswer:
    """What a command run in a container printed and returned."""

    exit_code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True)
class LogLine:
    """One line of a container's log: stream 1 is stdout, 2 is stderr; ``at`` in seconds since 1970."""

    stream: int
    text: bytes
    at: float


class Running(Protocol):
    """What runs in a started container."""

    pid: int

    async def stop(self, grace_seconds: float) -> None:
        """Ask to end, then force it after the grace time; returns once it has ended."""

    async def kill(self, signal: int) -> None:
        """Send a signal; returns once it has ended, where the signal ends it."""


@dataclass(eq=False)
class Container:
    """One container; ``config`` and ``host_config`` are what inspect shows of them."""

    id: str
    name: str
    image: Image
    config: dict[str, Any]
    host_config: dict[str, Any]
    endpoints: dict[str, Any]
    mounts: list[dict[str, Any]]
    created: float = field(default_factory=time.time)
    status: str = "created"
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    started: float | None = None
    finished: float | None = None
    ip: str = ""
    ports: dict[str, list[dict[str, str]] | None] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    injected: tuple[str, ...] = ()
    log: list[LogLine] = field(default_factory=list)
    body: Running | None = None
    removed: bool = False

    @property
    def running(self) -> bool:
        """Docker calls a paused container running too."""
        return self.status in ("running", "paused")

    @property
    def labels(self) -> dict[str, str]:
        """The container's labels, those of its image included."""
        return dict(self.config["Labels"] or {})

    @property
    def env(self) -> dict[str, str]:
        """The environment in its config; what a device request injects is not in it."""
        return dict(each.partition("=")[::2] for each in self.config["Env"] or ())

    @property
    def command(self) -> list[str]:
        """Entrypoint and command together."""
        return [*(self.config["Entrypoint"] or ()), *(self.config["Cmd"] or ())]

    @property
    def network(self) -> str:
        """The network it is in; ``default`` is the engine's bridge."""
        mode = str(self.host_config["NetworkMode"])
        return "bridge" if mode == "default" else mode

    def write(self, text: str | bytes, stream: int = 1) -> None:
        """Append lines to the log."""
        data = text.encode() if isinstance(text, str) else text
        self.log += [LogLine(stream, line, time.time()) for line in data.splitlines(keepends=True)]


@dataclass(eq=False)
class ExecRun:
    """An exec instance; ``exit_code`` is None until it has run."""

    id: str
    container: Container
    command: list[str]
    tty: bool = False
    running: bool = False
    exit_code: int | None = None
    pid: int = 0


@dataclass(frozen=True)
class Network:
    """A network of the engine."""

    name: str
    id: str
    driver: str = "bridge"
    internal: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Volume:
    """A named or anonymous volume."""

    name: str
    driver: str = "local"
    options: Mapping[str, str] | None = None
    labels: Mapping[str, str] | None = None
    anonymous: bool = False


class Store:
    """Everything the engine knows, with the engine's rules for finding it."""

    def __init__(self) -> None:
        self.engine_id = f"STAN:{new_id()[:4].upper()}:{new_id()[:4].upper()}"
        self.images: dict[str, Image] = {}
        """By name and tag; an image with two names is in it twice."""
        self.unnamed: dict[str, Image] = {}
        """By id, those that have lost their last name."""
        self.digests: dict[str, str] = {}
        """The id of what came from a registry or went to one, by ``name@digest``."""
        self.tagged: dict[str, float] = {}
        """When an image was given a name last, by id; pulls do not count."""
        self.containers: dict[str, Container] = {}
        self.networks = {name: Network(name, new_id(), PREDEFINED[name]) for name in PREDEFINED}
        self.volumes: dict[str, Volume] = {}
        self.execs: dict[str, ExecRun] = {}

    def find(self, key: str) -> Container | None:
        """A container by id, name, or a unique beginning of its id, in this order."""
        if key in self.containers:
            return self.containers[key]
        by_name = [each for each in self.containers.values() if each.name == key.lstrip("/")]
        by_prefix = [each for each in self.containers.values() if each.id.startswith(key)]
        if by_name:
            return by_name[0]
        return by_prefix[0] if len(by_prefix) == 1 else None

    def container(self, key: str) -> Container:
        """A container by id or name. Raises ApiError 404."""
        found = self.find(key)
        if found is None:
            raise answers.no_such_container(key)
        return found

    def image(self, key: str) -> Image | None:
        """An image by name, by digest, or by its id or a beginning of it."""
        if found := self.images.get(answers.with_tag(key)):
            return found
        wanted = self.digests.get(key, "") or (key if key.startswith("sha256:") else f"sha256:{key}")
        everything = [*self.images.values(), *self.unnamed.values()]
        return next((each for each in everything if each.id.startswith(wanted)), None)

    def network(self, key: str) -> Network:
        """A network by name or id. Raises ApiError 404."""
        for each in self.networks.values():
            if key in (each.name, each.id):
                return each
        raise answers.no_such_network(key)

    def check_name(self, name: str) -> None:
        """Raises ApiError for a name that is not legal (400) or taken (409)."""
        if not _NAME.fullmatch(name):
            raise answers.ApiError(400, f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        holder = next((each for each in self.containers.values() if each.name == name), None)
        if holder is not None:
            raise answers.name_in_use(name, holder.id)

    def users_of(self, volume: str) -> list[str]:
        """The ids of the containers that mount a volume."""
        return [
            each.id for each in self.containers.values() if any(mount.get("Name") == volume for mount in each.mounts)
        ]


PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}
_STATUSES = frozenset({"created", "running", "paused", "restarting", "removing", "exited", "dead"})
_FILTERS = frozenset({"label", "status", "name", "id", "network", "ancestor", "exited", "volume"})


def parse_filters(text: str | None) -> dict[str, list[str]]:
    """The ``filters`` of a query: ``{"label": ["a=b"]}`` or the older ``{"label": {"a=b": true}}``."""
    raw: dict[str, Any] = json.loads(text) if text else {}
    return {key: [str(each) for each in values] for key, values in raw.items()}


def select(containers: Iterable[Container], filters: Mapping[str, list[str]], *, everything: bool) -> list[Container]:
    """The containers of a list call, newest first. Raises ApiError 400 for an unknown filter or status."""
    for key in filters:
        if key not in _FILTERS:
            raise answers.ApiError(400, f"Invalid filter '{key}'")
    for status in filters.get("status", ()):
        if status not in _STATUSES:
            raise answers.ApiError(400, f"Invalid filter 'status={status}'")
    # A status filter stands for ?all=1, as in the engine.
    chosen = [
        each
        for each in containers
        if (everything or "status" in filters or "exited" in filters or each.running) and _matches(each, filters)
    ]
    return sorted(chosen, key=lambda each: each.created, reverse=True)


def labelled(labels: Mapping[str, str], filters: Mapping[str, list[str]]) -> bool:
    """Whether labels fit the label filters, the one kind where all must fit: ``key`` or ``key=value``."""
    pairs = [each.partition("=") for each in filters.get("label", ())]
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


def _matches(container: Container, filters: Mapping[str, list[str]]) -> bool:
    if not labelled(container.labels, filters):
        return False
    tests = {
        "status": lambda value: container.status == value,
        "name": lambda value: bool(re.search(value, f"/{container.name}") or re.search(value, container.name)),
        "id": container.id.startswith,
        "network": lambda value: value == container.network,
        "ancestor": lambda value: answers.with_tag(value) == container.image.ref or value == container.image.id,
        "exited": lambda value: container.status == "exited" and str(container.exit_code) == value,
        "volume": lambda value: any(value in (mount.get("Name"), mount["Destination"]) for mount in container.mounts),
    }
    return all(
        any(test(value) for value in filters[key])  # type: ignore[no-untyped-call, unused-ignore]
        for key, test in tests.items()
        if filters.get(key)
    )
