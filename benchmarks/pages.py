#!/usr/bin/env python3
"""Times the pages of a Hub whose machine is full, what it does at rest, and 16 people who start at once.

    benchmarks/pages.py [--rounds 100] [--rest 120]

Everything of the Hub's side is real: `GPUSpawner`, its database, the house, docker-py over a unix socket. The engine is
the stand-in of the tests in a process of its own (`fullhouse`). Times are by the clock on the wall, with the engine's
answers in them; beside them stands the CPU time of the event loop, on which everybody waits, and of this process with
the threads of docker-py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from fullhouse import CARDS, IMAGES, PROFILES, SERVERS, VARIANTS, WAITING, FullHouse, engine, full_house
from rich.console import Console
from rich.table import Table

from gpuspawner import form
from gpuspawner.leases import Owner
from gpuspawner.profiles import GpuRequest
from gpuspawner.terms import Claim

MOST_SECONDS = 0.020
FORM, AGAIN, HOME = "the form", "the form again", "the home page"
AT_ONCE = 16
WARM_UP = 5


@dataclass(frozen=True)
class Took:
    """One round: by the clock, CPU time of the event loop's thread, CPU time of all threads of this process."""

    seconds: float
    loop_seconds: float
    cpu_seconds: float


Look = Callable[[FullHouse], Awaitable[object]]


async def took(look: Callable[[], Awaitable[object]]) -> Took:
    """What a look costs. Nothing else runs on the loop meanwhile but what the house does by itself."""
    began, loop, cpu = time.perf_counter(), time.thread_time(), time.process_time()
    await look()
    return Took(time.perf_counter() - began, time.thread_time() - loop, time.process_time() - cpu)


# --- the pages ------------------------------------------------------------------------------------------------------


async def _first_form(house: FullHouse) -> object:
    """As for somebody who comes when nobody has looked for a while: nothing is known of the images."""
    for image in IMAGES:
        house.house.meanings.forget(f"gpuspawner/{image}:latest")
    return await house.guest._render_form()


async def _offers(house: FullHouse) -> object:
    return await house.house.offers(frozenset({"students"}), user="guest")


async def _render(house: FullHouse) -> object:
    offers, standing, trouble = house.offered
    return form.render(
        form.view(offers, language="ko", simulated=standing.inventory.simulated, trouble=trouble, now=datetime.now())
    )


async def _home(house: FullHouse) -> object:
    return await house.spawner.times(), await house.spawner.newer_environment()


LOOKS: Mapping[str, Look] = {
    FORM: _first_form,
    AGAIN: lambda house: house.guest._render_form(),
    "the engine's list, read": lambda house: house.house.engine.leased(),
    "who holds what": lambda house: house.house.ledger.standing(),
    "the offers": _offers,
    "words and HTML": _render,
    HOME: _home,
    "time left": lambda house: house.spawner.times(),
    "newer environment": lambda house: house.spawner.newer_environment(),
}
"""What is timed; the parts of a page stand below it, and one may hold another."""


async def time_pages(house: FullHouse, rounds: int) -> dict[str, list[Took]]:
    """Each look so many times; they take turns in every round."""
    found: dict[str, list[Took]] = {name: [] for name in LOOKS}
    for number in range(WARM_UP + rounds):
        house.offered = await house.house.offers(frozenset({"students"}), user="guest")
        for name, look in LOOKS.items():
            one = await took(partial(look, house))
            if number >= WARM_UP:
                found[name].append(one)
            # What the house does by itself now and then is not part of the next look.
            await asyncio.sleep(0)
    return found


# --- 16 at once -----------------------------------------------------------------------------------------------------


async def _forms(house: FullHouse) -> object:
    return await asyncio.gather(*(house.guest._render_form() for _ in range(AT_ONCE)))


async def _reservations(house: FullHouse) -> object:
    ledger = house.house.ledger
    claims = [
        Claim(f"start-{n}", GpuRequest.model_validate({"memory": "1G"}), Owner(f"start-{n}"), 3600)
        for n in range(AT_ONCE)
    ]
    try:
        return await asyncio.gather(*(ledger.reserve(claim) for claim in claims))
    finally:
        for claim in claims:
            ledger.release(claim.lease_id)


CROWDS: Mapping[str, Look] = {f"{AT_ONCE} forms": _forms, f"{AT_ONCE} reservations": _reservations}


async def time_crowds(house: FullHouse, rounds: int) -> dict[str, tuple[list[Took], float]]:
    """How long until the last of them has what they want, and how often the engine was asked each time."""
    found: dict[str, tuple[list[Took], float]] = {}
    for name, look in CROWDS.items():
        for _ in range(WARM_UP):
            await look(house)
        house.calls()
        runs = [await took(partial(look, house)) for _ in range(rounds)]
        found[name] = runs, sum(house.calls().values()) / rounds
    return found


# --- at rest --------------------------------------------------------------------------------------------------------


async def time_rest(house: FullHouse, seconds: float) -> dict[str, Any]:
    """What the Hub asks of the engine and takes of a CPU in a minute in which nobody does anything.

    The Hub's own polls are on: it asks after each server every 30 seconds, whatever the spawner.
    """
    for person in house.people:
        person.spawner.start_polling()
    house.calls()
    one = await took(lambda: asyncio.sleep(seconds))
    calls, minutes = house.calls(), one.seconds / 60
    return {
        "seconds": round(one.seconds, 1),
        "calls_a_minute": {name: round(count / minutes, 1) for name, count in sorted(calls.items())},
        "cpu_seconds_a_minute": round(one.cpu_seconds / minutes, 3),
        "loop_seconds_a_minute": round(one.loop_seconds / minutes, 3),
    }


# --- what came of it ------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Took]) -> dict[str, float]:
    """Milliseconds."""
    walls = sorted(1000 * one.seconds for one in runs)
    return {
        "median": round(statistics.median(walls), 2),
        "min": round(walls[0], 2),
        "p95": round(walls[min(len(walls) - 1, int(0.95 * len(walls)))], 2),
        "max": round(walls[-1], 2),
        "loop_median": round(1000 * statistics.median(one.loop_seconds for one in runs), 2),
        "cpu_median": round(1000 * statistics.median(one.cpu_seconds for one in runs), 2),
    }


async def measure(rounds: int, rest: float) -> dict[str, Any]:
    """Everything that is printed."""
    about = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()}
    about |= {name: version(name) for name in ("jupyterhub", "docker", "requests", "sqlalchemy", "jinja2")}
    found: dict[str, Any] = {"machine": about, "rounds": rounds, "pages": {}, "at_once": {}, "targets": []}
    with engine() as (url, pipe):
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory(prefix="pages-") as folder:
                async with full_house(url, pipe, Path(folder), variant) as house:
                    pages = {name: summary(runs) for name, runs in (await time_pages(house, rounds)).items()}
                    found["pages"][variant] = pages
                    found["targets"].append(_target(variant, pages[FORM]["median"]))
                    if variant != VARIANTS[0]:
                        continue
                    await house.leave_the_line()
                    for name, (runs, calls) in (await time_crowds(house, max(1, rounds // 5))).items():
                        found["at_once"][name] = {**summary(runs), "calls": round(calls, 1)}
                    if rest:
                        found["rest"] = await time_rest(house, rest)
    return found


def _target(variant: str, median: float) -> dict[str, Any]:
    aim = f"{FORM}, {variant}: in less than {1000 * MOST_SECONDS:g} ms"
    return {"target": aim, "got": f"{median:.1f} ms", "holds": median < 1000 * MOST_SECONDS}


def _print_times(console: Console, title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    for number, column in enumerate((title, "median", "min", "p95", "max", "CPU of the loop", "CPU in all", "calls")):
        table.add_column(column, justify="right" if number else "left")
    for name, row in rows.items():
        keys = ("median", "min", "p95", "max", "loop_median", "cpu_median", "calls")
        part = "" if name in (FORM, AGAIN, HOME, *CROWDS) else "  "
        table.add_row(part + name, *(f"{row[key]:.1f}" if key in row else "" for key in keys))
    console.print(table)
    console.print()


def print_report(console: Console, found: Mapping[str, Any]) -> None:
    """For people."""
    about = dict(found["machine"])
    console.print(
        f"{about.pop('cores')} cores, load {about.pop('load')} at the start; "
        + ", ".join(f"{name} {number}" for name, number in about.items())
        + f"\n{CARDS} cards, {len(PROFILES)} profiles, {SERVERS} servers, {WAITING} in the line; "
        f"{found['rounds']} rounds; milliseconds\n",
        highlight=False,
    )
    for variant, rows in found["pages"].items():
        _print_times(console, variant, rows)
    _print_times(console, "at once, until the last", found["at_once"])
    if rest := found.get("rest"):
        calls = ", ".join(f"{name} {count:g}" for name, count in rest["calls_a_minute"].items())
        console.print(
            f"At rest, a minute ({rest['seconds']:g} s were watched): calls of the engine: {calls or 'none'}; "
            f"CPU {rest['cpu_seconds_a_minute']:.2f} s, of it the event loop {rest['loop_seconds_a_minute']:.2f} s\n",
            highlight=False,
        )
    for entry in found["targets"]:
        word = "[green]holds[/green]" if entry["holds"] else "[bold red]MISSED[/bold red]"
        console.print(f"{word}  {entry['target']}: {entry['got']}", highlight=False)


# --- the command line -----------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each page is timed.")] = 100,
    rest: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long the Hub is watched at rest; 0: not at all.")
    ] = 120.0,
    json_: Annotated[bool, typer.Option("--json", help="One line of JSON instead of tables.")] = False,
) -> None:
    """Time the pages of a Hub whose machine is full, 16 people at once, and what it does at rest.

    Exit status: 0, whatever the figures are.
    """
    # The spawners say at each start of a Hub what they have been configured with.
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    found = asyncio.run(measure(rounds, rest))
    if json_:
        print(json.dumps(found))
    else:
        print_report(Console(width=None if sys.stdout.isatty() else 160), found)


if __name__ == "__main__":
    app()
