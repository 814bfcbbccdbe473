"""``StandinEngine``: the stand-in engine's thread, its unix socket and what a test may look at.

It wires the modules below together. Everything that changes state runs in the engine's own event loop; the
public methods may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from aiohttp import web

from . import answers, names
from .answers import ApiError, DropConnection
from .api import Containers
from .api_images import Images
from .api_system import System
from .devices import Host
from .faults import Boot, Call, Faults
from .lifecycle import ExecHandler, Lifecycle
from .state import Container, Image, Layer, Network, Store, Volume, new_id
from .streams import Spent

_R = TypeVar("_R")
_VERSION = r"/v{api:\d+\.\d+}"
_JOIN_SECONDS = 20.0


class StandinEngine:
    """A Docker Engine without Docker; use it as a context manager.

    ``gpus`` maps the UUIDs that a device request may name to minor numbers. ``nvidia_driver`` false is an
    engine without the NVIDIA toolkit. ``cdi`` and a ``version`` of 28.2 or more make one that lists CDI names.
    ``boot_seconds`` is how long a notebook takes until it answers. ``bridge`` false is an engine that was started
    without its default network.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        gpus: Mapping[str, int] | None = None,
        nvidia_driver: bool = True,
        cdi: bool = False,
        runtimes: Sequence[str] = ("runc", "io.containerd.runc.v2"),
        default_runtime: str = "runc",
        version: str = "20.10.24",
        api_version: str = "1.41",
        cgroup_driver: str = "cgroupfs",
        boot_seconds: float = 0.0,
        bridge: bool = True,
    ) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="engine-")
        self.socket = Path(folder or (self._temporary.name if self._temporary else "")) / "docker.sock"
        self._api_version = api_version
        self._calls: list[tuple[Call, int]] = []
        self._registry: dict[str, Image] = {}
        self._store = Store()
        self.faults = Faults(self._note)
        host = Host(dict(gpus or {}), nvidia_driver, cdi, default_runtime, version)
        self._life = Lifecycle(self._store, self.faults, host, Boot(boot_seconds))
        self._life.runtimes = tuple(dict.fromkeys([*runtimes, default_runtime]))
        self._system = System(self._life, api_version)
        self._images = Images(self._life, self._registry)
        if not bridge:
            del self._store.networks["bridge"]
        self._system.cgroup_driver = cgroup_driver
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="stand-in engine", daemon=True)
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._operations: dict[str, str] = {}
        self._site: web.UnixSite | None = None

    @property
    def url(self) -> str:
        """What ``DOCKER_HOST`` or ``base_url`` is set to."""
        return f"unix://{self.socket}"

    @property
    def containers(self) -> list[Container]:
        """All containers, the oldest first. Look, but change nothing."""
        return self._do(lambda: list(self._store.containers.values()))

    @property
    def images(self) -> list[Image]:
        """All images by their names, one that has two of them twice."""
        return self._do(lambda: list(self._store.images.values()))

    @property
    def volumes(self) -> dict[str, Volume]:
        """All volumes by name."""
        return self._do(lambda: dict(self._store.volumes))

    @property
    def networks(self) -> dict[str, Network]:
        """All networks by name."""
        return self._do(lambda: dict(self._store.networks))

    @property
    def calls(self) -> list[tuple[Call, int]]:
        """Every call so far with the status of its answer, 0 for a connection that was dropped."""
        return self._do(lambda: list(self._calls))

    @property
    def gpus(self) -> dict[str, int]:
        """The cards by UUID with their minor numbers; may be set while the engine runs."""
        return dict(self._life.host.gpus)

    @gpus.setter
    def gpus(self, cards: Mapping[str, int]) -> None:
        self._do(lambda: setattr(self._life, "host", replace(self._life.host, gpus=dict(cards))))

    @property
    def exec_handler(self) -> ExecHandler | None:
        """``handler(container, words)`` answers an exec, or returns None to have the command really run."""
        return self._life.exec_handler

    @exec_handler.setter
    def exec_handler(self, handler: ExecHandler | None) -> None:
        self._life.exec_handler = handler

    def container(self, name: str) -> Container:
        """A container by name or id. Raises KeyError, which lists the names that there are."""
        found = self._do(lambda: self._store.find(name))
        if found is None:
            raise KeyError(f"no container {name!r}, only {sorted(each.name for each in self.containers)}")
        return found

    def add_image(
        self,
        ref: str,
        *,
        env: Sequence[str] | Mapping[str, str] = (),
        labels: Mapping[str, str] | None = None,
        cmd: Sequence[str] = ("jupyterhub-singleuser",),
        entrypoint: Sequence[str] = (),
        workdir: str = "",
        user: str = "",
        notebook: bool = True,
        size: int = 1_000_000,
        remote: bool = False,
    ) -> Image:
        """Add an image, or with ``remote`` one that first has to be pulled. Whoever had its name loses it.

        Started with its own command, or one that names jupyterhub-singleuser, a container of it answers HTTP;
        other commands, and all of them with ``notebook`` false, really run as processes of this machine.
        """
        pairs = tuple(f"{key}={value}" for key, value in env.items()) if isinstance(env, Mapping) else tuple(env)
        image = Image(
            answers.with_tag(ref),
            f"sha256:{new_id()}",
            pairs,
            tuple(cmd),
            tuple(entrypoint),
            dict(labels or {}),
            workdir,
            user,
            notebook,
            layers=(Layer(f"sha256:{new_id()}", "", size),),
        )
        if remote:
            self._do(lambda: self._images.offer(image.ref, image))
        else:
            self._do(lambda: names.give(self._store, image, image.ref))
        return image

    def remove_image(self, ref: str) -> None:
        """Take an image away, as ``docker rmi -f`` at the engine's machine does."""
        self._do(lambda: names.remove(self._store, answers.with_tag(ref), force=True))

    def tag(self, ref: str, new: str) -> None:
        """Give an image another name, as ``docker tag`` at the engine's machine does."""
        self._do(lambda: names.give(self._store, self._store.images[answers.with_tag(ref)], new))

    @property
    def unnamed(self) -> list[Image]:
        """The images that have lost their last name."""
        return self._do(lambda: list(self._store.unnamed.values()))

    @property
    def registry(self) -> dict[str, Image]:
        """What registries have, by name and tag or digest."""
        return self._do(lambda: dict(self._registry))

    def die(self, name: str, exit_code: int = 1, *, oom: bool = False, logs: Sequence[str] = ()) -> None:
        """End a running container from inside, as a crash or the kernel's memory killer does."""
        container = self.container(name)

        async def end() -> None:
            for line in logs:
                container.write(f"{line}\n", 2)
            body, container.body = container.body, None
            await self._life.ended(container, 137 if oom else exit_code, oom=oom)
            if body is not None:
                await body.kill(9)

        self._await(end)

    def remove(self, name: str) -> None:
        """Remove a container behind everyone's back, as an admin with ``docker rm -f`` does."""
        container = self.container(name)
        self._await(lambda: self._life.remove(container, volumes=True, force=True))

    def __enter__(self) -> StandinEngine:
        self._thread.start()
        self._ready.wait(_JOIN_SECONDS)
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.faults.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_SECONDS)
        if self._temporary is not None:
            self._temporary.cleanup()

    def _do(self, look: Callable[[], _R]) -> _R:
        if not self._thread.is_alive():
            # Before its start and after its end nobody else looks.
            return look()

        async def in_loop() -> _R:
            return look()

        return self._await(in_loop)

    def _note(self, work: Callable[[], Awaitable[None]]) -> None:
        # A fault that is switched on before the start is looked at by the start itself.
        if self._thread.is_alive():
            self._await(work)

    def _await(self, work: Callable[[], Awaitable[_R]]) -> _R:
        async def in_loop() -> _R:
            return await work()

        if not self._thread.is_alive():
            raise RuntimeError("The stand-in engine does not run: use it inside its `with` block.")
        return asyncio.run_coroutine_threadsafe(in_loop(), self._loop).result(_JOIN_SECONDS)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        try:
            self._loop.run_until_complete(self._open())
        except BaseException as failed:
            self._failed = failed
            return
        finally:
            self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._life.close())
        self._loop.run_until_complete(self._runner.cleanup())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _open(self) -> None:
        await self._runner.setup()
        self.faults.on_change = self._settle
        await self._settle()

    async def _settle(self) -> None:
        """Open or close the socket, as the faults that are on say."""
        closed = any(each.closes_socket for each in self.faults.active)
        if closed and self._site is not None:
            site, self._site = self._site, None
            await site.stop()
            server = self._runner.server
            for connection in list(server.connections) if server is not None else ():
                if connection.transport is not None:
                    connection.transport.abort()
        elif not closed and self._site is None:
            self._site = web.UnixSite(self._runner, str(self.socket))
            await self._site.start()

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._middleware()], client_max_size=2**26)
        for method, path, operation, handler in [
            *Containers(self._life).routes(),
            *self._images.routes(),
            *self._system.routes(),
        ]:
            for prefix in ("", _VERSION):
                route = application.router.add_route(method, prefix + path, handler)
                self._operations[f"{method} {route.resource.canonical if route.resource else ''}"] = operation
        return application

    def _describe(self, request: web.Request) -> Call:
        resource = request.match_info.route.resource
        canonical = resource.canonical if resource is not None else ""
        operation = self._operations.get(f"{request.method} {canonical}", "unknown")
        if operation == "pull" and "fromSrc" in request.query:
            operation = "import"
        version = request.match_info.get("api")
        path = request.path.removeprefix(f"/v{version}") if version else request.path
        key = request.match_info.get("id")
        record = self._store.execs.get(request.match_info.get("exec", ""))
        container = self._store.find(key) if key else record.container if record else None
        name = container.name if container else request.query.get("name", "") if operation == "create" else ""
        image = request.match_info.get("image") or request.query.get("fromImage") or request.query.get("t", "")
        return Call(request.method, path, operation, name, image)

    def _middleware(self) -> Any:
        @web.middleware
        async def disturb(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            call = self._describe(request)
            # Read now: the body of a client that leaves while a fault holds the call would be lost.
            await request.read()
            response = await self._answer(call, request, handler)
            self._calls.append((call, response.status if response is not None else 0))
            if response is None:
                if request.transport is not None:
                    request.transport.abort()
                return Spent()
            return response

        return disturb

    async def _answer(
        self,
        call: Call,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse | None:
        try:
            for fault in self.faults.active:
                await fault.arriving(call)
            self._check_version(request.match_info.get("api"))
            return await handler(request)
        except DropConnection:
            return None
        except ApiError as refused:
            return web.json_response({"message": refused.message}, status=refused.status)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            return web.json_response({"message": "page not found"}, status=404)

    def _check_version(self, asked: str | None) -> None:
        if asked and _numbers(asked) > _numbers(self._api_version):
            raise ApiError(
                400,
                f"client version {asked} is too new. Maximum supported API version is {self._api_version}",
            )


def _numbers(version: str) -> tuple[int, ...]:
    with suppress(ValueError):
        return tuple(int(each) for each in version.split("."))
    return ()
