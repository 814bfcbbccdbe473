"""A Hub whose machine is full, for `pages.py`: 8 cards, 20 profiles, 40 servers that run, 8 people in the line.

The spawners, the database, docker-py and the house are the real ones. The engine is the stand-in of the tests, in a
process of its own: what it costs is waited for, and is not in the CPU time of this process. There are no cards, as with
`FakeGPUs`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jupyterhub import orm
from jupyterhub.user import User
from traitlets.config import Config

from gpuspawner import GPUSpawner
from gpuspawner.container import object_name
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.form import Offer
from gpuspawner.gpus import Gpu
from gpuspawner.house import House
from gpuspawner.leases import CardShare, Lease, Limits, Owner, encode
from gpuspawner.ledger import Standing
from gpuspawner.profiles import GpuRequest
from gpuspawner.terms import Claim
from gpuspawner.texts import Text
from gpuspawner.units import GIB

# The stand-in engine lies beside the tests.
sys.path.append(str(Path(__file__).resolve().parent.parent))

CARDS, WHOLE, SERVERS, WAITING = 8, 4, 40, 8
IMAGES = ("scipy", "pytorch", "tensorflow", "cuda", "base")
HOUR = 3600
PLAIN, RULED = VARIANTS = ("no limits", "limits and a reservation")

PROFILES: list[dict[str, Any]] = [
    *(
        {"display_name": f"CPU, {size} GiB", "image": IMAGES[size % 5], "mem_limit": f"{size}G", "cpu_limit": 2}
        for size in (2, 4, 8, 16)
    ),
    *(
        {
            "display_name": {"en": f"{size} GiB of a card", "ko": f"GPU 메모리 {size} GiB"},
            "description": "A share of one card, for exercises and small models.",
            "slug": f"share-{size}",
            "image": IMAGES[size % 5],
            "gpu": {"memory": f"{size}G"},
            "mem_limit": "8G",
            "time_limit": "4h",
            "idle_timeout": "30m",
        }
        for size in (1, 2, 4, 5, 6, 8, 12, 16)
    ),
    *(
        {
            "display_name": {"en": f"{count} RTX 4090, {hours} h", "ko": f"RTX 4090 {count}장, {hours}시간"},
            "description": "Whole cards, for training.",
            "slug": f"whole-{count}-{hours}",
            "image": IMAGES[count % 5],
            "gpu": {"count": count, "model": "RTX 4090"},
            "mem_limit": "32G",
            "time_limit": f"{hours}h",
            "idle_timeout": "1h",
        }
        for count in (1, 2, 4, 8)
        for hours in (4, 12)
    ),
]


def rules() -> dict[str, Any]:
    """The settings of the second variant: limits of people and groups, hours, and a class in two hours."""
    now = datetime.now(timezone.utc)
    return {
        "limits": {
            "user": {"gpus": 2, "gpu_memory": "40G", "waiting": 1},
            "groups": {"staff": {"gpus": 4}},
            "groups_total": {"students": {"gpus": 8}},
        },
        "gpu_hours": {"user": "40h/7d"},
        "reservations": [
            {
                "group": "vision",
                "gpus": 2,
                "from": (now + timedelta(hours=2)).strftime("%Y-%m-%d %H:%M"),
                "until": (now + timedelta(hours=4)).strftime("%Y-%m-%d %H:%M"),
                "timezone": "UTC",
            }
        ],
    }


def _serve(pipe: Connection) -> None:
    """The engine's process: its address, then what it was asked since the last time, for each word that comes."""
    from tests.standins.engine import StandinEngine

    with StandinEngine() as engine:
        for image in IMAGES:
            engine.add_image(f"gpuspawner/{image}", env={"HOME": "/home/jovyan"})
        pipe.send(engine.url)
        told = 0
        with suppress(EOFError):
            while pipe.recv():
                calls = engine.calls
                pipe.send(Counter(call.operation for call, _ in calls[told:]))
                told = len(calls)


class FullHouse:
    """The Hub's side of it. `spawner` is that of somebody whose server runs, `guest` of somebody who looks at the form.

    One for each variant; all of it is used on one event loop. `offered` is what `house.offers` said last.
    """

    offered: tuple[list[Offer], Standing, Text | None]

    def __init__(self, url: str, folder: Path, pipe: Connection, settings: dict[str, Any]) -> None:
        self._pipe = pipe
        self._queue: list[asyncio.Task[Any]] = []
        self._db = orm.new_session_factory(f"sqlite:///{folder / 'hub.sqlite'}")()
        config = Config()
        config.GPUSpawner = Config(
            client_kwargs={"base_url": url},
            profile_list=PROFILES,
            gpus=FakeGPUs(f"{CARDS}x24GiB"),
            state_path=str(folder),
            queue_timeout=HOUR,
            max_extension=HOUR,
            use_internal_ip=True,
            **settings,
        )
        self._settings = {"spawner_class": GPUSpawner, "config": config, "subdomain_host": ""}
        self.people = [self._person(f"student-{number}") for number in range(SERVERS)]
        self.spawner: Any = self.people[0].spawner
        self.guest: Any = self._person("guest").spawner
        self.house: House = self.guest.house

    def _person(self, name: str) -> User:
        students = orm.Group.find(self._db, "students") or orm.Group(name="students")
        person = orm.User(name=name, groups=[students])
        self._db.add(person)
        self._db.commit()
        return User(person, self._settings, self._db)

    async def fill(self) -> None:
        """Start a server for each of the people, and let others join the line."""
        cards = (await self.house.gpus.inventory()).gpus
        await asyncio.to_thread(self._start_servers, list(_leases(self.house, cards)))
        for person in self.people:
            person.spawner.orm_spawner.server = orm.Server(proto="http", ip="127.0.0.1", port=8888, base_url="/")
            self._db.commit()
            if await person.spawner.poll() is not None:
                raise RuntimeError(f"The server of {person.name} does not run.")
        await self.house.ready()

    def _start_servers(self, leases: Sequence[Lease]) -> None:
        client = self.house.engine.client
        for person, lease in zip(self.people, leases, strict=True):
            name = object_name(lease.owner)
            prefix = f"/user/{person.name}/"
            client.create_container(
                lease.image,
                name=name,
                labels=encode(lease),
                environment={"JUPYTERHUB_SERVICE_PREFIX": prefix, "JUPYTERHUB_SERVICE_URL": f"http://:8888{prefix}"},
                ports=["8888/tcp"],
                host_config=client.create_host_config(binds={f"home-{person.name}": "/home/jovyan"}),
            )
            client.start(name)

    async def queue_up(self) -> None:
        """Let so many wait for two cards that the line is what it is on a busy morning."""
        ledger = self.house.ledger
        joined = asyncio.Event()
        for number in range(WAITING):
            claim = Claim(
                f"waits-{number}",
                GpuRequest.model_validate({"count": 1 + number % 2}),
                Owner(f"waits-{number}"),
                4 * HOUR,
                frozenset({"students"}),
            )
            self._queue.append(
                asyncio.ensure_future(
                    ledger.reserve(claim, wait_seconds=HOUR, on_wait=lambda place: joined.set() if place else None)
                )
            )
            await asyncio.wait([asyncio.ensure_future(joined.wait()), self._queue[-1]], return_when="FIRST_COMPLETED")
            if self._queue[-1].done():
                raise RuntimeError("Somebody was refused a place in the line.")
            joined.clear()

    async def leave_the_line(self) -> None:
        """Nobody waits any more."""
        for task in self._queue:
            task.cancel()
        await asyncio.gather(*self._queue, return_exceptions=True)
        self._queue.clear()

    def calls(self) -> Counter[str]:
        """What the engine was asked since the last time, by operation."""
        self._pipe.send(True)
        found: Counter[str] = self._pipe.recv()
        return found

    async def close(self) -> None:
        """End everything but the engine."""
        await self.leave_the_line()
        for person in self.people:
            person.spawner.stop_polling()
        await self.house.close()
        for entry in await asyncio.to_thread(self.house.engine.client.containers, all=True):
            await self.house.engine.remove(entry["Id"])
        self.house.engine.close()
        self._db.close()
        self._db.get_bind().dispose()


def _leases(house: House, cards: Sequence[Gpu]) -> Iterator[Lease]:
    """Four cards whole, four in shares of 2 GiB: nine people on each."""
    started = datetime.now(timezone.utc) - timedelta(minutes=90)
    profiles = {profile.slug: profile for profile in house.catalogue.profiles}
    for number in range(SERVERS):
        whole = number < WHOLE
        profile = profiles["whole-1-4" if whole else "share-2"]
        card = cards[number if whole else WHOLE + number % (CARDS - WHOLE)]
        yield Lease(
            id=f"lease-{number}",
            owner=Owner(f"student-{number}", hub=house.hub),
            profile=profile.slug,
            cards=(CardShare(card.uuid, None if whole else 2 * GIB),),
            started=started - timedelta(seconds=number),
            limits=Limits(profile.mem_limit_bytes, profile.cpu_limit, profile.time_limit_seconds, 1800),
            image=profile.image_reference,
            image_id="sha256:0",
        )


@contextmanager
def engine() -> Iterator[tuple[str, Connection]]:
    """The stand-in engine in its own process: its address, and the pipe that it answers."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv(), ours
    finally:
        ours.send(False)
        process.join(20)


@asynccontextmanager
async def full_house(url: str, pipe: Connection, folder: Path, variant: str) -> AsyncIterator[FullHouse]:
    """Everything in its place: servers run, and people wait."""
    found = FullHouse(url, folder, pipe, rules() if variant == RULED else {})
    try:
        await found.fill()
        await found.queue_up()
        yield found
    finally:
        await found.close()
