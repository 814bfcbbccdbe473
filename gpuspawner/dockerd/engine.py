"""The engine as the Hub asks it: asynchronously, with time limits.

It knows Docker and nothing of JupyterHub: calls in an own pool of threads, each with a time limit; leases read from
labels; facts of images; the evidence of a dead container; removal that may be repeated. It decides nothing.

A call that is overdue or cancelled is given up, but its thread goes on: docker-py cannot be interrupted. Whoever has to
undo the effect of such a call collects it with `collecting` and waits with `ended`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env

from gpuspawner import leases
from gpuspawner.container import Evidence, ImageFacts
from gpuspawner.dockerd.looks import SharedLooks
from gpuspawner.dockerd.translate import TELL_ADMIN, TELL_ADMIN_KO, timeout, translate
from gpuspawner.errors import EngineError, ImageMissing, LabelError, Refused
from gpuspawner.leases import CardShare, Held, Lease
from gpuspawner.status import Image
from gpuspawner.texts import Text

LOG = logging.getLogger(__name__)

_COLLECTION: ContextVar[set[Future[Any]] | None] = ContextVar("docker_calls", default=None)

# A container in one of these states holds its lease.
HOLDING_STATES = ("created", "running", "paused", "restarting", "removing")
# In one of these it does not any more.
ENDED_STATES = ("exited", "dead")

LOG_LINE_LIMIT = 2000
REMOVAL_TRIES, REMOVAL_PAUSE_SECONDS = 50, 0.1


@dataclass(frozen=True)
class EngineFacts:
    """What the engine says of itself. `cdi_devices` is empty before engine 28.2, which cannot list them."""

    version: str
    runtimes: tuple[str, ...]
    cdi_devices: tuple[str, ...]


@dataclass(frozen=True)
class LeasedContainer:
    """A container that holds a lease, or has held it.

    `lease` is None where its labels cannot be read; then `cards` are taken whole.
    `image_id` is Docker's id of the image that it was made from, whatever the tag means by now.
    """

    id: str
    name: str
    state: str
    cards: tuple[CardShare, ...]
    lease: Lease | None
    image_id: str = ""


class Engine:
    """One Docker engine, shared by all spawners of a Hub.

    Args:
        client_kwargs: for `docker.APIClient`; what is missing comes from DOCKER_HOST and its relatives.
        threads: how many calls may be under way at once; a pull does not count, it has a pool of its own.
        call_timeout_seconds: the time limit of an ordinary call.
    """

    def __init__(
        self,
        client_kwargs: Mapping[str, Any] | None = None,
        *,
        threads: int = 16,
        call_timeout_seconds: float = 15.0,
    ) -> None:
        self._client_kwargs = dict(client_kwargs or {})
        self._threads = threads
        self.call_timeout_seconds = call_timeout_seconds
        self._calls = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._pulls = ThreadPoolExecutor(2, thread_name_prefix="docker-pull")
        self._facts: tuple[float, EngineFacts] | None = None
        self._looks = SharedLooks(self._leased)

    @cached_property
    def client(self) -> Any:
        """docker-py's low-level client. Its own read timeout ends a hanging thread some time after we gave it up."""
        return self._connect(self.call_timeout_seconds * 2)

    @cached_property
    def _pull_client(self) -> Any:
        return self._connect(3600)

    def _connect(self, timeout: float) -> Any:
        ours = {"version": "auto", "max_pool_size": self._threads, "timeout": max(1, int(timeout))}
        return docker.APIClient(**{**kwargs_from_env(), **ours, **self._client_kwargs})

    def close(self) -> None:
        """Let go of threads and connections. For programs and tests that end before the process does."""
        self._calls.shutdown(cancel_futures=True)
        self._pulls.shutdown(cancel_futures=True)
        for name in ("client", "_pull_client"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    async def call(self, method: str, *args: Any, time_limit: float | None = None, **kwargs: Any) -> Any:
        """Call a method of docker-py's `APIClient` in a thread.

        Raises:
            EngineTimeout: it took longer than `time_limit` seconds (default: `call_timeout_seconds`).
            docker.errors.DockerException, requests.RequestException: as docker-py raises them; see `translate`.
        """
        if method == "pull":
            return await asyncio.wrap_future(self._pulls.submit(lambda: self._pull_client.pull(*args, **kwargs)))
        limit = time_limit if time_limit is not None else self.call_timeout_seconds
        pending: Future[Any] = self._calls.submit(lambda: getattr(self.client, method)(*args, **kwargs))
        if (collection := _COLLECTION.get()) is not None:
            collection.add(pending)
            pending.add_done_callback(collection.discard)
        inner = asyncio.wrap_future(pending)
        inner.add_done_callback(_look_at_error)
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes in the moment when the call ends, and a
        # start that was stopped would go on.
        done, _ = await asyncio.wait([inner], timeout=limit)
        if not done:
            raise timeout(f"{method} took longer than {limit:g} s")
        return inner.result()

    async def ask(self, method: str, *args: Any, time_limit: float | None = None, **kwargs: Any) -> Any:
        """`call` with the errors of our own tree."""
        try:
            return await self.call(method, *args, time_limit=time_limit, **kwargs)
        except (DockerException, requests.RequestException) as error:
            raise translate(error) from error

    async def facts(self) -> EngineFacts:
        """Version, runtimes and CDI names, at most a minute old."""
        if self._facts is None or time.monotonic() - self._facts[0] > 60:
            info = await self.ask("info")
            devices = info.get("DiscoveredDevices") or ()
            facts = EngineFacts(
                version=info.get("ServerVersion", ""),
                runtimes=tuple(info.get("Runtimes") or ()),
                cdi_devices=tuple(device["ID"] for device in devices if device.get("Source") == "cdi"),
            )
            self._facts = (time.monotonic(), facts)
        return self._facts[1]

    async def image_facts(self, reference: str) -> ImageFacts:
        """Raises ImageMissing where the engine does not have it."""
        try:
            image = await self.call("inspect_image", reference)
        except (DockerException, requests.RequestException) as error:
            raise translate(error, image=reference) from error
        config = image.get("Config") or {}
        environment = dict(entry.partition("=")[::2] for entry in config.get("Env") or ())
        return ImageFacts(reference, image["Id"], environment.get("HOME") or "/home/jovyan")

    async def images(self) -> tuple[Image, ...]:
        """Every image of the engine, those included that have lost their tag to a newer one."""
        return tuple(_image(entry) for entry in await self.ask("images"))

    def missing_images(self, references: Iterable[str]) -> frozenset[str]:
        """Those that the engine does not have. Blocks: for the configuration file. A few milliseconds for each.

        Raises:
            Refused: the engine does not tell. That is no proof that anything is missing.
        """
        return frozenset(reference for reference in references if self._lacks(reference))

    def _lacks(self, reference: str) -> bool:
        try:
            self.client.inspect_image(reference)
        except (DockerException, requests.RequestException) as error:
            problem = translate(error, image=reference)
            if isinstance(problem, ImageMissing):
                return True
            raise problem from error
        return False

    async def leased(self) -> tuple[LeasedContainer, ...]:
        """Every container that holds a lease now, of any Hub on this engine; those who ask at once share a call."""
        return await self._looks.look()

    async def _leased(self) -> tuple[LeasedContainer, ...]:
        return await self._labelled(HOLDING_STATES)

    async def finished(self) -> tuple[LeasedContainer, ...]:
        """Every container that held a lease and has ended, of any Hub on this engine."""
        return await self._labelled(ENDED_STATES)

    async def _labelled(self, states: Sequence[str]) -> tuple[LeasedContainer, ...]:
        found = await self.ask("containers", all=True, filters={"label": [leases.LEASE], "status": [*states]})
        return tuple(_leased(entry) for entry in found)

    async def holdings(self, extended: Mapping[str, datetime] | None = None) -> dict[str, Held]:
        """Lease id → what it holds, from the labels: what `ledger.Ledger` counts with.

        `extended`: lease id → new end, of leases that were given more time. A second container of one lease, as of an
        image that was committed from a server, counts by its own id.
        """
        found: dict[str, Held] = {}
        for entry in await self.leased():
            lease = entry.lease
            held = Held(entry.cards, lease.owner, lease.ends_with(extended or {})) if lease else Held(entry.cards)
            found[lease.id if lease and lease.id not in found else entry.id] = held
        return found

    async def find(self, name_or_id: str) -> dict[str, Any] | None:
        """What `docker inspect` says of a container, or None when there is none."""
        try:
            found: dict[str, Any] = await self.call("inspect_container", name_or_id)
            return found
        except NotFound:
            return None
        except (DockerException, requests.RequestException) as error:
            raise translate(error) from error

    async def evidence(self, inspected: Mapping[str, Any], lines: int = 60) -> Evidence:
        """State and last log lines of a container that has ended. A log that cannot be read is left out."""
        state = inspected["State"]
        text, unread = "", ""
        try:
            log = await self.ask("logs", inspected["Id"], tail=lines)
            text = log.decode("utf-8", "replace") if isinstance(log, bytes) else str(log)
        except Refused as error:
            unread = error.detail or str(error)
        return Evidence(
            exit_code=int(state.get("ExitCode", -1)),
            out_of_memory=bool(state.get("OOMKilled")),
            error=str(state.get("Error", "")),
            log_lines=tuple(line[:LOG_LINE_LIMIT] for line in text.splitlines()[-lines:]),
            log_trouble=unread,
        )

    async def run_in(self, container_id: str, argv: Sequence[str], time_limit: float = 20.0) -> str:
        """Run a short command in a running container as its own user; its output, both streams together."""
        created = await self.ask("exec_create", container_id, list(argv))
        output = await self.ask("exec_start", created["Id"], time_limit=time_limit)
        return output.decode("utf-8", "replace") if isinstance(output, bytes) else str(output)

    async def remove(self, name_or_id: str) -> None:
        """Kill and remove a container with its anonymous volumes. One that is gone, or on its way, is fine.

        Returns when the engine no longer knows it, so that its name is free and its cards are let go.
        """
        found = await self.find(name_or_id)
        if found is None:
            return
        for _ in range(REMOVAL_TRIES):
            try:
                # By id: when a slow engine gets to it, the name may be that of a newer container.
                await self.call("remove_container", found["Id"], force=True, v=True)
                return
            except NotFound:
                return
            except APIError as error:
                if error.status_code != 409:  # 409: somebody else removes it at this moment
                    raise translate(error) from error
            except (DockerException, requests.RequestException) as error:
                raise translate(error) from error
            await asyncio.sleep(REMOVAL_PAUSE_SECONDS)
        raise EngineError(
            Text(
                f"The engine does not finish removing an old container. {TELL_ADMIN}",
                f"이전 컨테이너가 정리되지 않습니다. {TELL_ADMIN_KO}",
            ),
            detail=f"container {name_or_id} is still there after repeated removal",
        )

    async def remove_lease(self, lease_id: str) -> None:
        """Remove every container that carries this lease id, whatever its name."""
        label = f"{leases.PREFIX}id={lease_id}"
        for entry in await self.ask("containers", all=True, filters={"label": [label]}):
            await self.remove(entry["Id"])

    async def ensure_volume(self, name: str, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels of a named volume, made where it is missing; one that exists keeps its labels and its content."""
        volume = await self.ask("create_volume", name, labels=dict(labels))
        return dict(volume.get("Labels") or {})

    def ensure_network(self, name: str, *, subnet: str | None = None) -> str:
        """The gateway address of a bridge network, made where it is missing. Blocks: for the configuration file.

        Containers on it reach the world and the gateway, but not each other (`enable_icc=false`).
        """
        try:
            if not any(network["Name"] == name for network in self.client.networks(names=[name])):
                options = {"com.docker.network.bridge.enable_icc": "false"}
                if mtu := _uplink_mtu():
                    options["com.docker.network.driver.mtu"] = str(mtu)
                pool = docker.types.IPAMPool(subnet=subnet, gateway=_first_host(subnet)) if subnet else None
                ipam = docker.types.IPAMConfig(pool_configs=[pool]) if pool else None
                self.client.create_network(name, driver="bridge", options=options, ipam=ipam, check_duplicate=True)
            config = self.client.inspect_network(name)["IPAM"]["Config"][0]
            # Engines before 23 leave out a gateway that they chose themselves: the first address.
            return str(config.get("Gateway") or _first_host(config["Subnet"]))
        except (DockerException, requests.RequestException) as error:
            raise translate(error) from error


def _first_host(subnet: str) -> str:
    return str(next(ipaddress.ip_network(subnet).hosts()))


def _uplink_mtu() -> int | None:
    """The MTU of the interface with the default route, None where it is Docker's own 1500 or cannot be read.

    A bridge with a larger MTU than the way out makes downloads hang (VPNs and clouds often have less than 1500).
    """
    try:
        routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
        interface = next(route[0] for route in routes if route[1] == "00000000")
        mtu = int(Path(f"/sys/class/net/{interface}/mtu").read_text())
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return mtu if mtu < 1500 else None


def _leased(entry: Mapping[str, Any]) -> LeasedContainer:
    labels = entry.get("Labels") or {}
    name = (entry.get("Names") or ["?"])[0].lstrip("/")
    try:
        lease = leases.decode(labels)
        cards = lease.cards if lease else ()
    except LabelError as error:
        LOG.warning("Container %s: %s Its cards are taken as whole.", name, error)
        lease, cards = None, leases.held_cards(labels)
    return LeasedContainer(entry["Id"], name, entry.get("State", ""), cards, lease, entry.get("ImageID", ""))


def _image(entry: Mapping[str, Any]) -> Image:
    references = [*(entry.get("RepoTags") or ()), *(entry.get("RepoDigests") or ())]
    return Image(
        entry["Id"],
        # Engines before 25 call what has lost its tag "<none>".
        tuple(reference for reference in references if "<none>" not in reference),
        datetime.fromtimestamp(entry["Created"], timezone.utc),
    )


@contextmanager
def collecting() -> Iterator[set[Future[Any]]]:
    """Collect the calls that the enclosed code makes; those that have ended drop out of the set by themselves."""
    collection: set[Future[Any]] = set()
    token = _COLLECTION.set(collection)
    try:
        yield collection
    finally:
        _COLLECTION.reset(token)


async def ended(calls: Iterable[Future[Any]]) -> None:
    """Wait until these calls have ended, well or badly."""
    await asyncio.gather(*(asyncio.wrap_future(call) for call in list(calls)), return_exceptions=True)


def _look_at_error(inner: asyncio.Future[Any]) -> None:
    """Keep asyncio from complaining about the error of a call that nobody waits for any more."""
    if not inner.cancelled():
        inner.exception()
