"""Throw-away containers for the builder: made, watched and removed through docker-py, one call after the other.

It decides nothing: what a container is made of is given as a `Box`. Nothing here may be called by the Hub, whose calls
must not block. Every method raises BuildError with a sentence for the admin where the engine fails.
"""

from __future__ import annotations

import io
import stat
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from gpuspawner.candidates import Boot, ImageConfig
from gpuspawner.dockerd.translate import for_the_admin, translate
from gpuspawner.errors import BuildError, DiskFull, EngineDown, EngineTimeout
from gpuspawner.units import moment_of

LABEL = "gpuspawner.trial"
REMOVAL_TRIES, REMOVAL_PAUSE_SECONDS = 50, 0.1

P = ParamSpec("P")
T = TypeVar("T")


class CannotStart(Exception):
    """The engine refused to make or start a container of this image: its own words."""


@dataclass(frozen=True)
class Box:
    """A container to be made.

    `argv` None: the image's own command. `program` takes the place of the image's entrypoint. `host_config` holds
    docker-py's keyword arguments; `volumes` are places for new, nameless volumes; `files` (path → content) are put in
    before it starts, readable by everybody.
    """

    image: str
    argv: Sequence[str] | None = None
    program: str | None = None
    user: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    host_config: Mapping[str, Any] = field(default_factory=dict)
    volumes: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class BoxState:
    """What a container is doing. `started` counts seconds since 1970 on the engine's clock."""

    running: bool
    exit_code: int
    out_of_memory: bool
    error: str
    started: float


def _telling(method: Callable[P, T]) -> Callable[P, T]:
    """Turns docker-py's errors into sentences for the admin."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (DockerException, requests.RequestException) as error:
            raise for_the_admin(error) from error

    return call


class Boxes:
    """The engine behind one docker-py client, which the caller closes. May be used by several threads.

    `mark` is the value of the label by which `leftovers` knows its own.
    """

    def __init__(self, client: docker.APIClient, mark: str = "1") -> None:
        self._client = client
        self._mark = mark

    @_telling
    def image(self, reference: str) -> ImageConfig:
        """What an image says of itself."""
        found = self._client.inspect_image(reference)
        config = found.get("Config") or {}
        history = self._client.history(found["Id"])
        return ImageConfig(
            id=found["Id"],
            user=config.get("User") or "",
            environment=dict(entry.partition("=")[::2] for entry in config.get("Env") or ()),
            command=tuple(config.get("Cmd") or ()),
            history=tuple(layer.get("CreatedBy") or "" for layer in history),
        )

    def make(self, name: str, box: Box, *, start: bool = True) -> None:
        """Make a container and start it; half made, it stays until `remove`.

        Raises:
            CannotStart: with what the engine says about this image.
        """
        try:
            self._create(name, box)
            if start:
                self._client.start(name)
        except (DockerException, requests.RequestException) as error:
            told = for_the_admin(error)
            problem = translate(error)
            if not isinstance(error, APIError) or isinstance(problem, (DiskFull, EngineDown, EngineTimeout)):
                raise told from error
            raise CannotStart(problem.detail) from error

    def _create(self, name: str, box: Box) -> None:
        self._client.create_container(
            box.image,
            list(box.argv) if box.argv is not None else None,
            name=name,
            entrypoint=[box.program] if box.program else None,
            user=box.user,
            environment=dict(box.environment),
            labels={LABEL: self._mark},
            volumes=list(box.volumes) or None,
            host_config=self._client.create_host_config(**box.host_config),
        )
        if box.files:
            self._client.put_archive(name, "/", _packed(box.files))

    @_telling
    def wait(self, name: str, seconds: float) -> int | None:
        """The exit status of a container, or None where it still runs after that time."""
        try:
            return int(self._client.wait(name, timeout=seconds)["StatusCode"])
        except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError):
            # Of an engine that is gone, the next question tells.
            state = self._state(name)
            return None if state.running else state.exit_code

    @_telling
    def state(self, name: str) -> BoxState:
        """What it is doing."""
        return self._state(name)

    def _state(self, name: str) -> BoxState:
        state = self._client.inspect_container(name)["State"]
        return BoxState(
            running=bool(state.get("Running")),
            exit_code=int(state.get("ExitCode", -1)),
            out_of_memory=bool(state.get("OOMKilled")),
            error=str(state.get("Error") or ""),
            started=moment_of(str(state.get("StartedAt") or "")),
        )

    @_telling
    def usage(self, name: str, seconds: float) -> Boot:
        """What it has used until now; `seconds` is how long that took, which the engine cannot know."""
        stats = self._client.stats(name, stream=False, one_shot=True)
        memory = (stats.get("memory_stats") or {}).get("stats") or {}
        # "rss" is cgroup v1's word and "anon" v2's for the same: memory without file caches.
        resident = memory.get("rss", memory.get("anon"))
        if resident is None:
            raise BuildError(
                "The engine does not count the memory of containers, so neither the boot budget nor the memory limits "
                "of profiles hold. 'docker info' says why ('No memory limit support'): switch on the kernel's memory "
                "cgroup."
            )
        return Boot(seconds, stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, int(resident))

    @_telling
    def log(self, name: str, *, last: int | None = None, errors_too: bool = True) -> list[str]:
        """The last lines that it printed (None: all)."""
        output = self._client.logs(name, stderr=errors_too, tail="all" if last is None else last)
        return bytes(output).decode("utf-8", "replace").splitlines()

    def follow(self, name: str) -> Iterator[str]:
        """Each line that it prints, as soon as it does; ends when the container does, or the engine."""
        rest = b""
        try:
            with closing(self._client.logs(name, stream=True, follow=True, stderr=False)) as pieces:
                for piece in pieces:
                    *lines, rest = (rest + piece).split(b"\n")
                    yield from (line.decode("utf-8", "replace") for line in lines)
        except (DockerException, requests.RequestException):
            return

    @_telling
    def special_files(self, name: str) -> dict[str, str]:
        """Path → "setuid" and so on, in the words of `inside/walk.py`, for a container that need not run."""
        found: dict[str, str] = {}
        stream = io.BufferedReader(_Pieces(self._client.export(name)), 1 << 20)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                words = ["setuid"] * bool(entry.mode & stat.S_ISUID) + ["setgid"] * bool(entry.mode & stat.S_ISGID)
                words += ["a capability"] * ("SCHILY.xattr.security.capability" in entry.pax_headers)
                if words and (entry.isfile() or entry.islnk()):
                    found["/" + entry.name.removeprefix("./")] = " and ".join(words)
        return found

    @_telling
    def remove(self, name: str) -> None:
        """Kill and remove a container with its nameless volumes. One that is gone is fine."""
        for _ in range(REMOVAL_TRIES):
            try:
                self._client.remove_container(name, force=True, v=True)
                return
            except NotFound:
                return
            except APIError as error:
                if error.status_code != 409:  # 409: it is being removed, or made, at this moment
                    raise
            time.sleep(REMOVAL_PAUSE_SECONDS)
        raise BuildError(f"The engine does not finish removing the container {name}. Remove it: 'docker rm -f {name}'.")

    @_telling
    def leftovers(self) -> tuple[str, ...]:
        """The containers that `make` ever made and nobody removed."""
        found = self._client.containers(all=True, filters={"label": [f"{LABEL}={self._mark}"]})
        return tuple(entry["Id"] for entry in found)


class _Pieces(io.RawIOBase):
    """What arrives in pieces, as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        # An empty piece would be taken for the end.
        self._pieces = filter(None, pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._pieces, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _packed(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, content in files.items():
            folder = tarfile.TarInfo(path.strip("/").rpartition("/")[0])
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            entry = tarfile.TarInfo(path.strip("/"))
            entry.size, entry.mode = len(content), 0o644
            if folder.name:
                tar.addfile(folder)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
