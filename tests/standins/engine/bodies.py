"""What runs in a started container: a small HTTP server that stands for a notebook, or a real process.

Both end by calling ``ended(exit_code)`` exactly once. Neither knows the engine's records.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlparse

from aiohttp import web

from .faults import Boot
from .state import ExecAnswer

Ended = Callable[[int], None]
Write = Callable[[bytes, int], None]

# Above the kernel's highest pid, so that whoever signals or inspects it hits no real process.
_pids = itertools.count(4_194_305)
_DEV = re.compile(r"/dev(?![\w.-])")
_PLAIN_NODES = ("null", "zero", "full", "random", "urandom", "tty", "stdin", "stdout", "stderr", "fd")


@dataclass(frozen=True)
class Place:
    """Where a notebook listens: its own loopback address and port, and perhaps a published one."""

    ip: str
    port: int
    sockets: tuple[socket.socket, ...]


def reserve(network_port: int, published: Sequence[tuple[str, int]]) -> tuple[Place, list[int]]:
    """Bind, without listening yet, a free address 127.1.x.y and the published ones; returns their ports too."""
    first = _free_address(network_port)
    others = []
    for ip, port in published:
        other = socket.socket()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((ip, port))
        others.append(other)
    place = Place(first.getsockname()[0], network_port, (first, *others))
    return place, [each.getsockname()[1] for each in others]


_addresses = itertools.count(os.getpid() * 64)


def _free_address(port: int) -> socket.socket:
    # Other test runs on this machine use the same range, so a taken address is passed over.
    for number in itertools.islice(_addresses, 65_000):
        low = number % 64_000
        bound = socket.socket()
        try:
            bound.bind((f"127.1.{low // 250}.{low % 250 + 2}", port))
        except OSError:
            bound.close()
            continue
        return bound
    raise OSError(f"No address in 127.1.0.0/16 is free for port {port}: end other test runs.")


class Notebook:
    """A server that answers below its prefix as jupyterhub-singleuser does, after its boot."""

    def __init__(self, place: Place, env: Mapping[str, str], boot: Boot, write: Write, ended: Ended) -> None:
        self.pid = next(_pids)
        self._place, self._boot, self._write, self._ended = place, boot, write, ended
        self._prefix = env.get("JUPYTERHUB_SERVICE_PREFIX", "/")
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        self._done = False
        self._up = asyncio.create_task(self._come_up())

    async def stop(self, grace_seconds: float) -> None:
        """End cleanly: jupyterhub-singleuser handles SIGTERM and exits with 0."""
        await self.end(0)

    async def kill(self, signal: int) -> None:
        """End with the exit code that a shell gives to a signal."""
        await self.end(0 if signal == 15 else 128 + signal)

    async def end(self, exit_code: int) -> None:
        """Close the server and report the exit code, once."""
        if self._done:
            return
        self._done = True
        if self._up is not asyncio.current_task():
            self._up.cancel()
        await self._runner.cleanup()
        for bound in self._place.sockets:
            bound.close()
        self._ended(exit_code)

    async def _come_up(self) -> None:
        if self._boot.seconds:
            await asyncio.sleep(self._boot.seconds)
        for line in self._boot.logs:
            self._write(f"{line}\n".encode(), 2)
        if self._boot.exit_code is not None:
            await self.end(self._boot.exit_code)
        elif self._boot.answers:
            await self._runner.setup()
            for bound in self._place.sockets:
                await web.SockSite(self._runner, bound).start()
            self._write(f"Jupyter server is running at http://0.0.0.0:{self._place.port}\n".encode(), 2)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {"X-JupyterHub-Version": version("jupyterhub")}
        if not request.path.startswith(self._prefix):
            return web.Response(status=404, headers=headers)
        if request.path.rstrip("/") == f"{self._prefix}api":
            return web.json_response({"version": "2.20.0"}, headers=headers)
        page = f"<html><body>stand-in notebook {self._prefix}</body></html>"
        return web.Response(text=page, content_type="text/html", headers=headers)


def listening_port(env: Mapping[str, str], exposed: Sequence[str]) -> int:
    """The port that a notebook would take: from the Hub's variable, the exposed port, or 8888."""
    told = urlparse(env.get("JUPYTERHUB_SERVICE_URL", "")).port
    ports = [int(each.partition("/")[0]) for each in exposed]
    return told or next(iter(ports), 8888)


class Jail:
    """A folder that plays a container's /dev: commands are rewritten to it and their output back.

    It keeps nothing in or out; it only lets ``ls /dev`` in a command show the container's nodes.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="standin-"))
        self._dev = self._folder / "dev"
        self._dev.mkdir()
        for name in _PLAIN_NODES:
            (self._dev / name).symlink_to(f"/dev/{name}")
        for name in nodes:
            # Following the link gives a character device that can be opened, without being root.
            (self._dev / name).symlink_to("/dev/null")

    def command(self, words: Sequence[str]) -> list[str]:
        """The words with /dev replaced by the folder."""
        return [_DEV.sub(str(self._dev), word) for word in words]

    def output(self, text: bytes) -> bytes:
        """What the command printed, with the folder replaced by /dev."""
        return text.replace(str(self._dev).encode(), b"/dev")

    async def spawn(self, words: Sequence[str], env: Mapping[str, str]) -> asyncio.subprocess.Process:
        """Start a command in a process group of its own."""
        return await asyncio.create_subprocess_exec(
            *self.command(words),
            env={"PATH": os.environ.get("PATH", os.defpath), **env},
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


async def run(words: Sequence[str], env: Mapping[str, str], nodes: Sequence[str]) -> ExecAnswer:
    """Run a command to its end and return what it printed; it is killed when the caller is cancelled."""
    jail = Jail(nodes)
    process = await jail.spawn(words, env)
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            _signal(process.pid, signal.SIGKILL)
        jail.close()
    return ExecAnswer(_exit_code(process.returncode), jail.output(out), jail.output(err))


class Process:
    """A real process that plays a container's command."""

    def __init__(self, process: asyncio.subprocess.Process, jail: Jail, *, init: bool) -> None:
        self.pid = process.pid
        self._process, self._jail, self._init = process, jail, init
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, words: Sequence[str], env: Mapping[str, str], nodes: Sequence[str], *, init: bool) -> Process:
        """Start the command; ``init`` says whether something in the container reaps and passes signals on."""
        jail = Jail(nodes)
        return cls(await jail.spawn(words, env), jail, init=init)

    def watch(self, write: Write, ended: Ended) -> None:
        """Copy the output to the log and report the end."""
        self._watch = asyncio.create_task(self._follow(write, ended))

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after the grace time.

        The first process of a container has no default handler for SIGTERM, so without an init it never ends
        by it: then only the SIGKILL is sent.
        """
        if self._init:
            _signal(self.pid, signal.SIGTERM)
        if not await self._gone(grace_seconds):
            await self.kill(signal.SIGKILL)

    async def kill(self, signal: int) -> None:
        """Send a signal and wait a moment for the end."""
        _signal(self.pid, signal)
        await self._gone(5.0)

    async def _gone(self, seconds: float) -> bool:
        assert self._watch is not None, "watch() comes first"
        done, _ = await asyncio.wait([self._watch], timeout=seconds)
        return bool(done)

    async def _follow(self, write: Write, ended: Ended) -> None:
        async def copy(stream: asyncio.StreamReader | None, number: int) -> None:
            while stream is not None and (line := await stream.readline()):
                write(self._jail.output(line), number)

        await asyncio.gather(copy(self._process.stdout, 1), copy(self._process.stderr, 2))
        await self._process.wait()
        self._jail.close()
        ended(_exit_code(self._process.returncode))


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _exit_code(returned: int | None) -> int:
    code = returned or 0
    return 128 - code if code < 0 else code
