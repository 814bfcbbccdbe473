"""The life of a container: created, started, stopped, removed; and commands run in it.

The engine's rules in the engine's order, with the faults' hooks where the real failures happen. It knows
nothing of HTTP; what it refuses is an ApiError.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from . import answers, bodies, devices, render
from .answers import ApiError, StartError
from .faults import Boot, Faults
from .state import Container, ExecAnswer, ExecRun, Image, Store, Volume, new_id

ExecHandler = Callable[[Container, list[str]], "ExecAnswer | None"]
_SIX_MIB = 6 * 1024**2
_RUNC_NAMES = ("runc", "io.containerd.runc.v2")
_SINGLEUSER = "jupyterhub-singleuser"


class Lifecycle:
    """Moves containers through their states; ``host`` may be replaced while the engine runs."""

    def __init__(self, store: Store, faults: Faults, host: devices.Host, boot: Boot) -> None:
        self.store, self.faults, self.host, self.boot = store, faults, host, boot
        self.runtimes: tuple[str, ...] = _RUNC_NAMES
        self.exec_handler: ExecHandler | None = None
        self.listeners: list[asyncio.Queue[dict[str, Any]]] = []
        self.changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, name: str, body: Mapping[str, Any]) -> Container:
        """Make a container of a create call's body. Raises ApiError, and then nothing was made."""
        given: dict[str, Any] = body.get("HostConfig") or {}
        ref = str(body.get("Image") or "")
        image = self.store.image(ref)
        if image is None:
            raise answers.no_such_image(ref)
        self.store.check_name(name)
        for fault in self.faults.active:
            fault.creating(name, image)
        self._check(given)
        container_id = new_id()
        kept = render.host_config(given, self.host.default_runtime)
        config = render.config(body, image, container_id)
        if not config["Cmd"] and not config["Entrypoint"]:
            raise ApiError(400, "No command specified")
        mounts = self._mounts(kept, config)
        container = Container(container_id, name, image, config, kept, {}, mounts)
        chosen: dict[str, Any] = (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
        container.endpoints = dict.fromkeys([container.network, *chosen])
        for mount in mounts:
            volume = mount.get("Name")
            if volume and volume not in self.store.volumes:
                # The engine names a volume itself where nobody else did.
                anonymous = bool(re.fullmatch("[0-9a-f]{64}", volume))
                self.store.volumes[volume] = Volume(volume, anonymous=anonymous)
        self.store.containers[container_id] = container
        self.tell("create", container)
        return container

    def _check(self, given: Mapping[str, Any]) -> None:
        runtime = given.get("Runtime")
        if runtime and runtime not in self.runtimes:
            raise ApiError(400, f"Unknown runtime specified {runtime}")
        if 0 < int(given.get("Memory") or 0) < _SIX_MIB:
            raise ApiError(400, "Minimum memory limit allowed is 6MB")

    def _mounts(self, kept: Mapping[str, Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
        mounts: list[dict[str, Any]] = []
        for bind in kept["Binds"] or ():
            source, target, mode = [*str(bind).split(":"), "rw"][:3]
            mounts.append(_mount(source, target, mode, writable="ro" not in mode.split(",")))
        for each in kept.get("Mounts") or ():
            source = str(each.get("Source") or new_id())
            mounts.append(_mount(source, str(each["Target"]), "", writable=not each.get("ReadOnly")))
        targets = [mount["Destination"] for mount in mounts]
        for target in targets:
            if targets.count(target) > 1:
                raise ApiError(400, f"Duplicate mount point: {target}")
        for target in config["Volumes"] or {}:
            if target not in targets:
                mounts.append(_mount(new_id(), target, "", writable=True))
        return mounts

    async def start(self, container: Container) -> None:
        """Run the container's command. Raises StartError, and then the text is in the container's state."""
        if container.status == "paused":
            raise ApiError(409, "cannot start a paused container, try unpause instead")
        try:
            for fault in self.faults.active:
                fault.starting(container)
            await self._run(container)
        except StartError as refused:
            container.error, container.exit_code = refused.message, refused.exit_code
            if container.host_config["AutoRemove"]:
                await self.remove(container, volumes=True, force=True)
            raise
        self.tell("start", container)
        await self.note_change()

    async def _run(self, container: Container) -> None:
        self._network_exists(container)
        environment = container.config["Env"] or []
        granted = devices.grant(
            container.host_config["DeviceRequests"],
            environment,
            container.host_config["Runtime"],
            self.host,
        )
        container.gpus, container.injected = granted.gpus, granted.environment
        notebook = _is_notebook(container)
        if not notebook and shutil.which(container.command[0]) is None:
            raise answers.executable_missing(container.command[0])
        container.status, container.started, container.error = "running", time.time(), ""
        container.exit_code, container.oom_killed = 0, False
        if notebook:
            self._open_notebook(container)
        else:
            await self._open_process(container)

    def _network_exists(self, container: Container) -> None:
        if container.network.startswith("container:"):
            return
        try:
            self.store.network(container.network)
        except ApiError as missing:
            raise StartError(missing.message, status=missing.status) from missing

    def _open_notebook(self, container: Container) -> None:
        boot = self.boot
        for fault in self.faults.active:
            boot = fault.booting(container, boot)
        port = bodies.listening_port(container.env, list(container.config.get("ExposedPorts") or ()))
        bindings = (container.host_config["PortBindings"] or {}).get(f"{port}/tcp") or []
        wanted = [(b.get("HostIp") or "127.0.0.1", int(b.get("HostPort") or 0)) for b in bindings]
        place, published = bodies.reserve(port, wanted)
        container.ip = place.ip
        container.ports = {
            f"{port}/tcp": [
                {"HostIp": ip, "HostPort": str(number)} for (ip, _), number in zip(wanted, published, strict=True)
            ]
            or None
        }

        def ended(exit_code: int) -> None:
            self.spawn(self.ended(container, exit_code, oom=boot.oom and exit_code == boot.exit_code))

        container.body = bodies.Notebook(place, container.env, boot, container.write, ended)

    async def _open_process(self, container: Container) -> None:
        place, _ = bodies.reserve(0, [])
        for bound in place.sockets:
            bound.close()
        container.ip = place.ip
        container.ports = dict.fromkeys(container.config.get("ExposedPorts") or ())
        env = container.env | dict(each.partition("=")[::2] for each in container.injected)
        init = bool(container.host_config.get("Init"))
        process = await bodies.Process.start(container.command, env, self.nodes(container), init=init)
        container.body = process
        process.watch(container.write, lambda code: self.spawn(self.ended(container, code)))

    def nodes(self, container: Container) -> list[str]:
        """The names of the GPU nodes in the container's /dev."""
        minors = [self.host.gpus[uuid] for uuid in container.gpus if uuid in self.host.gpus]
        found = [f"nvidia{minor}" for minor in sorted(minors)]
        if found:
            found += ["nvidiactl", "nvidia-uvm"]
        for fault in self.faults.active:
            found = fault.nodes(container, found)
        return found

    async def ended(self, container: Container, exit_code: int, *, oom: bool = False) -> None:
        """Note that the container's command is over; removes the container if it was made so."""
        if not container.running:
            return
        container.status, container.exit_code, container.oom_killed = "exited", exit_code, oom
        container.finished, container.body, container.ip = time.time(), None, ""
        if oom:
            self.tell("oom", container)
        self.tell("die", container)
        await self.note_change()
        if container.host_config["AutoRemove"]:
            await self.remove(container, volumes=True, force=True)

    async def stop(self, container: Container, grace_seconds: float) -> None:
        """Stop a running container and wait until it has ended."""
        if container.body is not None:
            await container.body.stop(grace_seconds)
            await self.until(lambda: not container.running)
            self.tell("stop", container)

    async def kill(self, container: Container, signal: int) -> None:
        """Send a signal. Raises ApiError 409 for a container that does not run."""
        if container.body is None:
            refused = answers.not_running(container.id)
            raise ApiError(409, f"Cannot kill container: {container.name}: {refused.message}")
        await container.body.kill(signal)
        self.tell("kill", container)

    async def remove(self, container: Container, *, volumes: bool, force: bool) -> None:
        """Take the container away. Raises ApiError 409 if it runs and ``force`` is false."""
        if container.running:
            if not force:
                raise answers.cannot_remove(container.id, container.status)
            if container.body is not None:
                await container.body.kill(9)
                await self.until(lambda: not container.running)
        self.store.containers.pop(container.id, None)
        container.removed = True
        for mount in container.mounts if volumes else ():
            volume = self.store.volumes.get(str(mount.get("Name")))
            if volume is not None and volume.anonymous:
                del self.store.volumes[volume.name]
        self.tell("destroy", container)
        await self.note_change()

    async def execute(self, record: ExecRun) -> ExecAnswer:
        """Run an exec instance to its end; by default as a real command that sees the container's nodes."""
        container = record.container
        record.running = True
        try:
            scripted = self.exec_handler(container, record.command) if self.exec_handler else None
            answer = scripted or await self._execute(container, record)
        finally:
            record.running = False
        record.exit_code = answer.exit_code
        return answer

    async def _execute(self, container: Container, record: ExecRun) -> ExecAnswer:
        if shutil.which(record.command[0]) is None:
            return ExecAnswer(126, answers.exec_missing(record.command[0]).encode())
        # The variables of a device request are not in an exec's environment; the nodes are.
        return await bodies.run(record.command, container.env, self.nodes(container))

    def tell(self, action: str, container: Container) -> None:
        """Send an event to everyone who listens."""
        attributes = {"image": container.config["Image"], "name": container.name, **container.labels}
        if action == "die":
            attributes["exitCode"] = str(container.exit_code)
        now = time.time()
        event = {
            "status": action,
            "id": container.id,
            "from": container.config["Image"],
            "Type": "container",
            "Action": action,
            "Actor": {"ID": container.id, "Attributes": attributes},
            "scope": "local",
            "time": int(now),
            "timeNano": int(now * 1e9),
        }
        for queue in self.listeners:
            queue.put_nowait(event)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a change makes the condition true."""
        async with self.changed:
            await self.changed.wait_for(condition)

    async def note_change(self) -> None:
        """Wake everyone who waits in ``until``."""
        async with self.changed:
            self.changed.notify_all()

    async def close(self) -> None:
        """End whatever still runs."""
        for container in list(self.store.containers.values()):
            if container.body is not None:
                await container.body.kill(9)
        for task in list(self._tasks):
            with suppress(asyncio.CancelledError):
                await task

    def spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_notebook(container: Container) -> bool:
    image: Image = container.image
    words = container.command
    own = [*image.entrypoint, *image.cmd]
    return image.notebook and (words[: len(own)] == own != [] or any(_SINGLEUSER in each for each in words))


def _mount(source: str, target: str, mode: str, *, writable: bool) -> dict[str, Any]:
    shared = {"Source": source, "Destination": target, "Mode": mode, "RW": writable}
    if re.match(r"[/~.]", source):
        return {"Type": "bind", **shared, "Propagation": "rprivate"}
    return {"Type": "volume", "Name": source, "Driver": "local", **shared, "Propagation": ""}
