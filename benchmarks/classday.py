#!/usr/bin/env python3
"""Plays class days with the project's own waiting line, with fixed cards and with no line; times one decision.

    benchmarks/classday.py [--cards 2 --cards 8] [--rounds 20]

The days are drawn from the seed before anybody is served, so all three ways meet the same people, and the figures of
the days are the same on every machine. The rules are not copied here: `queueing` decides and forecasts, `placement`
places, for the other two as well. What a decision costs is measured, with a real clock, after the days.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import decisions
import typer
from rich.console import Console
from rich.table import Table
from simulation import CLOSES, MIXES, POLICY, WAYS, Mix, Spell, draw_day, inventory_of, run_day

from gpuspawner.gpus import Inventory
from gpuspawner.placement import budget

CARDS = (2, 4, 8, 64)


# --- the days -------------------------------------------------------------------------------------------------------


def play(seed: int, cards: int, rounds: int, mix: Mix) -> dict[str, list[list[Spell]]]:
    """How each day goes, by way."""
    inventory = inventory_of(cards)
    days = [draw_day(f"{seed}/{mix.name}/{cards}/{number}", cards, mix) for number in range(rounds)]
    return {way.name: [run_day(day, inventory, way()) for day in days] for way in WAYS}


def card_hours(spells: Sequence[Spell], inventory: Inventory) -> float:
    """What was held until the doors close; a share counts by its part of the budget."""
    budgets = {gpu.uuid: budget(gpu, POLICY) for gpu in inventory.gpus}
    total = 0.0
    for spell in spells:
        held = sum((card.memory_bytes or budgets[card.uuid]) / budgets[card.uuid] for card in spell.cards)
        total += held * (max(0, min(spell.left, CLOSES) - spell.began) if spell.began is not None else 0)
    return total / 3600


def most_passed(spells: Sequence[Spell]) -> int:
    """By how many who came later somebody was passed at most. Every card could serve everybody, so all compete."""
    worst = 0
    begun: list[int] = []
    for spell in reversed(spells):
        until = spell.left if spell.began is None else spell.began
        # Who begins at the same moment passes nobody.
        worst = max(worst, bisect_right(begun, until - 1))
        if spell.began is not None:
            begun.insert(bisect_right(begun, spell.began), spell.began)
    return worst


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all have the same, 1/n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def summary(days: Sequence[Sequence[Spell]], cards: int) -> dict[str, Any]:
    """The figures of one way over all its days. Minutes; whoever gave up counts as having waited until then."""
    inventory = inventory_of(cards)
    spells = [spell for day in days for spell in day]
    served = [spell for spell in spells if spell.began is not None]
    waited = sorted(spell.waited / 60 for spell in spells)
    kinds: dict[str, list[bool]] = {}
    for spell in spells:
        kinds.setdefault(spell.visit.offer.name, []).append(spell.began is not None)
    told = [spell.began - spell.estimate for spell in served if spell.began is not None and spell.estimate is not None]
    return {
        "visits": len(spells),
        "waited_p50": round(statistics.median(waited), 1),
        "waited_p95": round(waited[min(len(waited) - 1, int(0.95 * len(waited)))], 1),
        "waited_most": round(max((spell.waited / 60 for spell in served), default=0.0), 1),
        "served": round(len(served) / len(spells), 3),
        "served_by_kind": {name: round(sum(kinds[name]) / len(kinds[name]), 3) for name in sorted(kinds)},
        "in_use": round(card_hours(spells, inventory) * 3600 / (len(days) * cards * CLOSES), 3),
        "jain": round(jain([_part_of_the_stay(spell) for spell in spells]), 3),
        "most_passed": max(most_passed(day) for day in days),
        "estimates": len(told),
        # A minute more, as rule 7 of the line has it.
        "estimates_kept": round(sum(late <= 60 for late in told) / len(told), 3) if told else None,
    }


def _part_of_the_stay(spell: Spell) -> float:
    """How much of the time between coming and going one had cards: what Jain's index compares."""
    return 0.0 if spell.began is None else (spell.left - spell.began) / (spell.left - spell.visit.arrives)


# --- what came of it ------------------------------------------------------------------------------------------------


def report(seed: int, cards: Sequence[int], rounds: int, timings: int) -> dict[str, Any]:
    """Everything that is printed."""
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()}
    days = {
        mix.name: {
            str(number): {way: summary(found, number) for way, found in play(seed, number, rounds, mix).items()}
            for number in cards
        }
        for mix in MIXES
    }
    found: dict[str, Any] = {
        "machine": machine,
        "seed": seed,
        "rounds": rounds,
        "days": days,
    }
    if timings:
        found["decisions"] = decisions.report(str(seed), timings)
    return found


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _print_days(console: Console, mix: str, by_cards: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    kinds = list(next(iter(next(iter(by_cards.values())).values()))["served_by_kind"])
    kinds = kinds if len(kinds) > 1 else []
    table = _table(mix, "cards", "waits p50", "p95", "most", "served", *kinds, "in use", "Jain", "passed", "kept")
    for cards, ways in by_cards.items():
        for way, row in ways.items():
            kept = row["estimates_kept"]
            table.add_row(
                way,
                cards,
                f"{row['waited_p50']:.0f}",
                f"{row['waited_p95']:.0f}",
                f"{row['waited_most']:.0f}",
                f"{row['served']:.0%}",
                *(f"{row['served_by_kind'].get(kind, 0):.0%}" for kind in kinds),
                f"{row['in_use']:.0%}",
                f"{row['jain']:.2f}",
                str(row["most_passed"]),
                "" if kept is None else f"{kept:.0%} of {row['estimates']}",
            )
    console.print(table)
    console.print()


def _print_decisions(console: Console, found: Mapping[str, Any]) -> None:
    console.print(
        f"One call, {found['cards']} cards, {found['rounds']} rounds: median (min-max; CPU) in ms", highlight=False
    )
    figures = found["figures"]
    sizes = list(next(iter(figures.values()))["decide"]["milliseconds"])
    table = _table("leases and waiting, each", *sizes, "grows", "n log n")
    for name, calls in figures.items():
        for call, row in calls.items():
            cells = [
                "{median:.1f} ({min:.1f}-{max:.1f}; {cpu_median:.1f})".format(**row["milliseconds"][size])
                for size in sizes
            ]
            table.add_row(f"{call}, {name}", *cells, f"{row['growth']['times']:.1f}", f"{row['growth']['n_log_n']:.1f}")
    console.print(table)
    for entry in found["targets"]:
        word = "[green]holds[/green]" if entry["holds"] else "[bold red]MISSED[/bold red]"
        console.print(f"{word}  {entry['target']}: {entry['got']}", highlight=False)


def print_report(console: Console, found: Mapping[str, Any]) -> None:
    """For people."""
    about = found["machine"]
    console.print(
        f"{about['cores']} cores, load {about['load']} at the start; Python {about['python']}\n"
        f"seed {found['seed']}, {found['rounds']} days; minutes\n",
        highlight=False,
    )
    for mix, by_cards in found["days"].items():
        _print_days(console, mix, by_cards)
    if "decisions" in found:
        _print_decisions(console, found["decisions"])


# --- the command line -----------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    seed: Annotated[int, typer.Option(metavar="N", help="Which days are drawn.")] = 1,
    cards: Annotated[
        list[int] | None, typer.Option(metavar="N", min=2, max=64, help="Only so many cards. Default: 2, 4, 8 and 64.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How many days are played.")] = 20,
    timings: Annotated[
        int, typer.Option(metavar="N", min=0, help="How often each decision is timed; 0: not at all.")
    ] = 30,
    json_: Annotated[bool, typer.Option("--json", help="One line of JSON instead of tables.")] = False,
) -> None:
    """Play class days with the line, with fixed cards and with no line, and time one decision.

    Exit status: 0, whatever the figures are.
    """
    found = report(seed, cards or CARDS, rounds, timings)
    if json_:
        print(json.dumps(found))
    else:
        print_report(Console(width=None if sys.stdout.isatty() else 160), found)


if __name__ == "__main__":
    app()
