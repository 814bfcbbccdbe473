"""DockerSpawner, with its engine calls made fit for many users and expensive leases. It knows nothing of GPUs.

What it changes: calls go through `dockerd.Engine` (threads and time limits) instead of one thread for everybody; a
container is always made anew, and a dead one is read before it is removed; an engine that does not answer means
"unknown", never "stopped"; the URL of a server that was starting when the Hub was killed is found again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dockerspawner import DockerSpawner
from traitlets import Float, Integer, TraitError, default, observe, validate

from gpuspawner.dockerd import Engine, is_name_conflict
from gpuspawner.errors import EngineTimeout, Refused
from gpuspawner.launch import explain_death
from gpuspawner.probe import server_url
from gpuspawner.status import Running

NAME_CONFLICT_TRIES = 3
STOP_GRACE_SECONDS = 10
ASK_AGAIN_SECONDS = 2.0


class EngineSpawner(DockerSpawner):
    """The part of `GPUSpawner` that talks to the engine about containers that exist already.

    `running` is what the container said of itself when it was last looked at, which every poll does. What raises
    NotImplementedError needs what all spawners share, and is `GPUSpawner`'s (traitlets' metaclass rules out an ABC).
    """

    running: Running | None = None
    _has_ended = False

    engine_timeout = Float(
        15.0,
        min=1.0,
        help="""
        Seconds that one ordinary call to the Docker engine may take (15 by default; pulling an image has no limit).

        Beyond it the student reads that the engine is too slow; whatever the late call still does is undone.
        """,
    ).tag(config=True)

    engine_threads = Integer(
        16,
        min=2,
        help="How many calls to the Docker engine may be under way at once (16 by default); more wait for a thread.",
    ).tag(config=True)

    @default("remove")
    def _default_remove(self) -> bool:
        return True

    @validate("remove")
    def _remove_is_on(self, proposal: Any) -> bool:
        if not proposal["value"]:
            raise TraitError(
                "GPUSpawner.remove must be True: a kept container would be resumed with its old image and old GPUs"
            )
        return True

    @observe("image")
    def _image_changed(self, change: Any) -> None:
        """DockerSpawner renames the container here; our names do not depend on the image."""

    @property
    def engine(self) -> Engine:
        """The engine that all spawners of this Hub share."""
        raise NotImplementedError

    @property
    def being_undone(self) -> bool:
        """Whether an earlier start of this server is still being cleared away."""
        raise NotImplementedError

    def remove_later(self, container_id: str) -> None:
        """Remove a container for as long as it takes; the next start of this server waits for it."""
        raise NotImplementedError

    def died(self, death: Refused) -> None:
        """Called when a running server has ended by itself, before its container is removed."""
        raise NotImplementedError

    @property
    def client(self) -> Any:
        """docker-py's client, for what DockerSpawner asks of it."""
        return self.engine.client

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """DockerSpawner's calls, with docker-py's own errors."""
        return await self.engine.call(method, *args, **kwargs)

    async def get_object(self) -> dict[str, Any] | None:
        """The container as `docker inspect` shows it. A server error is an error, not a container that is gone."""
        inspected = await self.engine.find(self.object_name)
        self.object_id = inspected["Id"] if inspected else ""
        self.running = Running.of(inspected)
        return inspected

    async def poll(self) -> int | None:
        """None while the server runs or nobody can know; its exit code once it has ended, after reading why.

        A Hub that starts asks this once, and takes "nobody can know" for "runs": then it is told only what is known.
        """
        while True:
            try:
                return await self._look()
            except Refused as error:
                self.log.warning("Whether %s runs cannot be known: %s", self._log_name, error.detail or error)
                if not self._check_pending:
                    return None
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def _look(self) -> int | None:
        if self.being_undone:
            return 0
        seen = self.object_id
        inspected = await self.get_object()
        if inspected is None:
            if seen and self.server and not self._start_pending and not self._stop_pending:
                self.log.warning("The container of %s (%s) was removed from outside.", self._log_name, seen)
                self.died(await explain_death(self.engine, None, None))
            return 0
        state = inspected["State"]
        if state["Running"]:
            return None
        if state["Status"] == "exited" and not self._start_pending:
            death = await explain_death(self.engine, inspected, inspected["HostConfig"].get("Memory") or None)
            self.log.warning("%s ended by itself: %s %s", self._log_name, death, death.detail)
            if state["ExitCode"] != 0:  # 0: shut down from inside, which its owner knows
                self.died(death)
            await self.engine.remove(inspected["Id"])
            self.object_id = ""  # by us: the next look must not take it for removed from outside
        return int(state["ExitCode"])

    async def get_url(self) -> str:
        """Where the server is now: the Hub asks after a restart, when its database may hold a made-up address.

        An engine that does not answer is asked until it does: an error here would end the Hub, or leave the server
        "being checked" for ever. Of a server that is over it is the last address: nobody answers there, and the Hub
        clears it away.
        """
        while True:
            try:
                inspected = await self.get_object()
            except Refused as error:
                self.log.warning("Where %s is cannot be known yet: %s", self._log_name, error.detail or error)
                await asyncio.sleep(ASK_AGAIN_SECONDS)
                continue
            if inspected is None or not inspected["State"]["Running"]:
                return str(self.server.host)
            ip, port = await self.get_ip_and_port()
            return server_url(self.server.proto, ip, port)

    async def pull_image(self, image: str) -> None:
        """Nothing: `launch` has made sure of the image before anything was leased."""

    async def create_object(self) -> Any:
        """Create the container. A name that an old one still holds is taken from it."""
        for _ in range(NAME_CONFLICT_TRIES - 1):
            try:
                return await super().create_object()
            except Exception as error:
                if not is_name_conflict(error):
                    raise
                self.log.warning("The name %s is still taken; removing its holder.", self.object_name)
                await self.engine.remove(self.object_name)
        return await super().create_object()

    async def stop_object(self) -> None:
        """Ask the server to end, wait a little, then kill it."""
        try:
            await self.engine.ask(
                "stop",
                self.object_name,
                timeout=STOP_GRACE_SECONDS,
                time_limit=STOP_GRACE_SECONDS + self.engine_timeout,
            )
            self._has_ended = True
        except EngineTimeout as error:
            self.log.warning("%s does not stop (%s); it is removed by force.", self._log_name, error.detail)
        except Refused as error:
            if await self.engine.find(self.object_name) is not None:
                raise error

    async def remove_object(self) -> None:
        """Remove the container, running or not; that it is gone already is fine.

        One that has ended holds no cards and is removed in the background: only its next start has to wait for that.
        """
        ended, self._has_ended = self._has_ended, False
        if ended and self.object_id and not self.being_undone:
            self.remove_later(self.object_id)
        else:
            await self.engine.remove(self.object_name)
