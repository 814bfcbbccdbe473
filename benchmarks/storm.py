#!/usr/bin/env python3
"""A whole class clicks Start: plain DockerSpawner beside this project, on real Hubs and a real engine.

Three Hubs take turns in every round, with the same proxy, network, limits and clients: DockerSpawner with an image that
has jupyterhub and jupyterlab and nothing else, DockerSpawner with this project's `base`, and `GPUSpawner` as
jupyterhub_config.py sets it up, each server with a card of its own. Beside them the floor: as many JupyterLabs of the
same image, started at once by bare calls to the engine, with no Hub at all.

Run it where the engine's containers can be reached and GPU requests are accepted:

    python -m tests.standins.netns_engine exec -- python benchmarks/storm.py
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from contenders import CannotMeasure, Say, Scene
from hubs import KINDS, PLAIN, Containers, Hub, Kind, SlowEngine, hub, proxy_command
from rich.console import Console
from rich.table import Table

from gpuspawner.errors import BuildError

# The stand-ins lie beside the tests.
sys.path.append(str(Path(__file__).parents[1]))
from tests.standins.gpustate import STATE_VARIABLE, Card, GpuState, build_nvml, nvml_environment

HERE = Path(__file__).parent
PROBE_SECONDS, WATCH_SECONDS, SETTLE_SECONDS, SLOW_SECONDS = 0.05, 0.1, 5.0, 3.0
PATIENCE_SECONDS = 300.0
NO_ENGINE = (
    "There is no engine here that takes GPU requests without a GPU. Start one and run this in it: "
    "'python -m tests.standins.netns_engine up', then "
    "'python -m tests.standins.netns_engine exec -- python benchmarks/storm.py'."
)
FLOOR = "bare containers, no Hub"
PLAIN_HUB, BASE_HUB, OURS = (kind.name for kind in KINDS)

Found = Mapping[str, Mapping[str, Sequence[float]]]

# Figure → how it is shown: name, factor, unit.
FIGURES = {
    "one": ("one start", 1, "s"),
    "first": ("all at once, first", 1, "s"),
    "median": ("all at once, median", 1, "s"),
    "last": ("all at once, last", 1, "s"),
    "stops": ("all stops", 1, "s"),
    "health_p50": ("/hub/health p50", 1000, "ms"),
    "health_p99": ("/hub/health p99", 1000, "ms"),
    "health_worst": ("/hub/health, the longest", 1000, "ms"),
    "poll": ("poll beside a slow call", 1000, "ms"),
    "cpu": ("CPU of a server until idle", 1, "s"),
    "memory": ("memory of a server", 1 / 2**20, "MiB"),
    "rest": ("Hub's CPU at rest", 100, "%"),
}


@dataclass(frozen=True)
class Target:
    """`figure` of ours against that of another: at most this ratio, or where there is no other, at most this value."""

    figure: str
    against: str | None
    most: float


TARGETS = (
    Target("one", PLAIN_HUB, 0.33),
    Target("last", PLAIN_HUB, 0.30),
    Target("stops", PLAIN_HUB, 0.25),
    Target("last", FLOOR, 1.25),
    Target("last", BASE_HUB, 0.8),
    Target("stops", BASE_HUB, 0.4),
    Target("poll", None, 0.05),
    Target("health_p99", PLAIN_HUB, 1.0),
    Target("memory", PLAIN_HUB, 0.8),
)


# --- the clients -----------------------------------------------------------------------------------------------------


@dataclass
class Clients:
    """The people of one Hub, over REST: they start as the Hub's pages do it, and look at JupyterLab's first page."""

    hub: Hub
    session: aiohttp.ClientSession
    health: list[float] = field(default_factory=list)

    async def add(self, names: Sequence[str]) -> None:
        """Make accounts."""
        await self._ask("POST", "users", {"usernames": [*names]})

    async def start(self, name: str) -> float:
        """Seconds from the click to the first page of JupyterLab through the proxy."""
        began = time.perf_counter()
        await self._ask("POST", f"users/{name}/server", dict(self.hub.kind.options))
        await self._until_ready(name)
        async with self.session.get(f"{self.hub.url}/user/{name}/lab") as page:
            text = await page.text()
            if page.status != 200 or "jupyter-config-data" not in text:
                raise CannotMeasure(f"The first page of {name} is not JupyterLab: {page.status} {text[:300]}")
        return time.perf_counter() - began

    async def _until_ready(self, name: str) -> None:
        async with self.session.get(f"{self.hub.url}/hub/api/users/{name}/server/progress") as stream:
            async for line in stream.content:
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line[5:])
                if event.get("failed"):
                    raise CannotMeasure(f"{name} could not start: {event}\n{self.hub.log[-3000:]}")
                if event.get("ready"):
                    return
        raise CannotMeasure(f"The Hub has lost the start of {name}.\n{self.hub.log[-3000:]}")

    async def stop(self, names: Sequence[str]) -> float:
        """Seconds until the Hub says of all of them that they are stopped."""
        began = time.perf_counter()
        await asyncio.gather(*(self._ask("DELETE", f"users/{name}/server") for name in names))
        while await self._ask("GET", "users?state=active"):  # noqa: ASYNC110 - another process can set no Event
            await asyncio.sleep(WATCH_SECONDS)
        return time.perf_counter() - began

    async def poll(self, name: str) -> float:
        """Seconds in which the Hub finds out that a server runs: it looks before it refuses a second start."""
        began = time.perf_counter()
        url = f"{self.hub.url}/hub/api/users/{name}/server"
        async with self.session.post(url, json=dict(self.hub.kind.options)) as answer:
            if answer.status != 400 or "already running" not in await answer.text():
                raise CannotMeasure(f"A second start of {name} was not refused: {answer.status}")
        return time.perf_counter() - began

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        async with self.session.request(method, f"{self.hub.url}/hub/api/{path}", json=body) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise CannotMeasure(f"{method} {path}: {answer.status} {text}\n{self.hub.log[-3000:]}")
            return json.loads(text) if text.startswith(("{", "[")) else None

    async def probe(self) -> None:
        """Ask for the Hub's health again and again, until cancelled."""
        while True:
            began = time.perf_counter()
            async with self.session.get(f"{self.hub.url}/hub/health"):
                self.health.append(time.perf_counter() - began)
            await asyncio.sleep(PROBE_SECONDS)


@asynccontextmanager
async def clients(made: Hub) -> AsyncIterator[Clients]:
    """With a connection for each."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"token {made.token}"}
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        yield Clients(made, session)


# --- one turn --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all turns share."""

    users: int
    singles: int
    rest_seconds: float
    environment: Mapping[str, str]
    proxy: str
    containers: Containers


async def storm(made: Hub, setting: Setting) -> dict[str, list[float]]:
    """The figures of one Hub, in seconds, bytes, and parts of a core."""
    names = [f"student{number}" for number in range(setting.users)]
    async with clients(made) as people:
        await people.add(names)
        await people.start(names[0])  # what only the first start pays for is not measured
        await people.stop(names[:1])
        singles = []
        for _ in range(setting.singles):
            singles.append(await people.start(names[0]))
            await people.stop(names[:1])
        probe = asyncio.ensure_future(people.probe())
        ready = sorted(await asyncio.gather(*(people.start(name) for name in names)))
        probe.cancel()
        await asyncio.sleep(SETTLE_SECONDS)
        used = await asyncio.to_thread(setting.containers.usage)
        before = made.cpu_seconds()
        await asyncio.sleep(setting.rest_seconds)
        rest = (made.cpu_seconds() - before) / setting.rest_seconds
        probe = asyncio.ensure_future(people.probe())
        stops = await people.stop(names)
        probe.cancel()
    health = statistics.quantiles(people.health, n=100)
    return {
        "one": singles,
        "first": [ready[0]],
        "median": [statistics.median(ready)],
        "last": [ready[-1]],
        "stops": [stops],
        "health_p50": [health[49]],
        "health_p99": [health[98]],
        "health_worst": [max(people.health)],
        "cpu": [each.cpu_seconds for each in used],
        "memory": [float(each.resident_bytes) for each in used],
        "rest": [rest],
    }


async def beside_a_slow_call(kind: Kind, folder: Path, setting: Setting) -> float:
    """Seconds that one user's poll takes while another user's call to the engine takes its time."""
    async with SlowEngine(folder / "slow.sock", SLOW_SECONDS) as slow:
        slowly = {**setting.environment, "DOCKER_HOST": f"unix://{slow.path}"}
        # In a thread: the Hub's calls come through this loop while it is waited for.
        running = ExitStack()
        made = await asyncio.to_thread(running.enter_context, hub(kind, folder / "slow", slowly, setting.proxy))
        try:
            async with clients(made) as people:
                await people.add(["quick", "slow"])
                await people.start("quick")
                slow.arm()
                starting = asyncio.ensure_future(people.start("slow"))
                await asyncio.wait_for(slow.held.wait(), PATIENCE_SECONDS)
                took = await people.poll("quick")
                await starting
                await people.stop(["quick", "slow"])
        finally:
            await asyncio.to_thread(running.close)
    return took


def turns(round_number: int) -> Iterator[Kind]:
    """Everybody begins a round once."""
    shift = round_number % len(KINDS)
    yield from KINDS[shift:] + KINDS[:shift]


def measure(rounds: int, setting: Setting, cards: Sequence[Card], say: Say) -> dict[str, dict[str, list[float]]]:
    """Contender → figure → all values."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in (*(k.name for k in KINDS), FLOOR)}
    setting.containers.sweep()
    with tempfile.TemporaryDirectory(prefix="storm-") as temporary:
        folder = Path(temporary)
        for number in range(rounds):
            for kind in turns(number):
                say(f"round {number + 1} of {rounds}: {kind.name}")
                with hub(kind, folder / f"{number}-{KINDS.index(kind)}", setting.environment, setting.proxy) as made:
                    for figure, values in asyncio.run(storm(made, setting)).items():
                        found[kind.name][figure] += values
                setting.containers.sweep()
            say(f"round {number + 1} of {rounds}: {FLOOR}")
            ready = setting.containers.bare(setting.users, [card.uuid for card in cards])
            for figure, value in {"first": ready[0], "median": statistics.median(ready), "last": ready[-1]}.items():
                found[FLOOR][figure].append(value)
            setting.containers.sweep()
        for kind in KINDS:
            say(f"a slow call: {kind.name}")
            for number in range(rounds):
                place = folder / f"slow-{number}-{KINDS.index(kind)}"
                place.mkdir()
                found[kind.name]["poll"].append(asyncio.run(beside_a_slow_call(kind, place, setting)))
                setting.containers.sweep()
    return found


# --- what is said ----------------------------------------------------------------------------------------------------


def judge(found: Found) -> list[dict[str, Any]]:
    """Each target with what came of it."""
    judged = []
    for target in TARGETS:
        value = statistics.median(found[OURS][target.figure])
        if target.against is not None:
            value /= statistics.median(found[target.against][target.figure])
        judged.append(
            {"figure": target.figure, "against": target.against, "most": target.most, "value": value,
             "holds": value <= target.most}
        )  # fmt: skip
    return judged


def print_report(
    console: Console, found: Mapping[str, Mapping[str, Sequence[float]]], about: Mapping[str, Any]
) -> None:
    """A table for people, and a line for each target."""
    console.print(f"{about['users']} users, {about['rounds']} rounds; {about['cores']} cores, load {about['load']}; "
                  f"Docker {about['engine']}, Python {about['python']}. Median (lowest to highest).")  # fmt: skip
    table = Table("", *found)
    for figure, (name, factor, unit) in FIGURES.items():
        table.add_row(f"{name}, {unit}", *(_cell(of.get(figure), factor) for of in found.values()))
    console.print(table)
    for each in judge(found):
        name, factor, unit = FIGURES[each["figure"]]
        what = (
            f"{each['value']:.2f} of {each['against']}" if each["against"] else f"{each['value'] * factor:.0f} {unit}"
        )
        most = f"{each['most']:g}" if each["against"] else f"{each['most'] * factor:.0f} {unit}"
        console.print(f"{name}: {what}, at most {most}: {'holds' if each['holds'] else 'MISSED'}")


def _cell(values: Sequence[float] | None, factor: float) -> str:
    if not values:
        return ""
    low, middle, high = (value * factor for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})" if middle < 20 else f"{middle:.0f} ({low:.0f}-{high:.0f})"


def build_plain(containers: Containers, say: Say) -> None:
    """The peer's image, from the same Debian, by the same builder, with the arguments that ours gets."""
    if containers.client.images(PLAIN):
        return
    say("building the plain image")
    with tempfile.TemporaryDirectory(prefix="storm-plain-") as temporary:
        for loop in Scene.find(HERE, ["plain"]).loops(Path(temporary), classic=False):
            loop.run(from_nothing=False)
            containers.client.tag(f"{loop.prefix}/plain", PLAIN.partition(":")[0], "latest")
            containers.client.remove_image(f"{loop.prefix}/plain:latest")


def main(
    users: Annotated[int, typer.Option(min=2, help="How many start at once.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody has a turn.")] = 3,
    singles: Annotated[int, typer.Option(min=1, help="Starts of one server alone, in each turn.")] = 3,
    rest: Annotated[float, typer.Option(min=1, help="Seconds in which the Hub is watched at rest.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of the table.")] = False,
) -> None:
    """Starts and stops of a whole class, by plain DockerSpawner and by this project."""
    console, errors = Console(), Console(stderr=True)
    say = errors.print
    if STATE_VARIABLE not in os.environ:
        say(NO_ENGINE, markup=False)
        raise typer.Exit(2)
    containers = Containers()
    cards = [Card(f"GPU-{n:08x}-0000-4000-8000-000000000000", n, f"00000000:{n + 1:02x}:00.0") for n in range(users)]
    state_file = Path(os.environ[STATE_VARIABLE])
    try:
        build_plain(containers, say)
        GpuState(tuple(cards)).write(state_file)
        with tempfile.TemporaryDirectory(prefix="storm-nvml-") as nvml:
            environment = nvml_environment(build_nvml(Path(nvml)), state_file)
            setting = Setting(users, singles, rest, environment, proxy_command(), containers)
            found = measure(rounds, setting, cards, say)
    except (CannotMeasure, BuildError, subprocess.SubprocessError) as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from None
    finally:
        GpuState().write(state_file)
    about = {
        "users": users,
        "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "engine": containers.client.version()["Version"],
        "python": sys.version.split()[0],
    }
    if as_json:
        print(json.dumps({"about": about, "found": found, "targets": judge(found)}))
    else:
        print_report(console, found, about)


if __name__ == "__main__":
    typer.run(main)
