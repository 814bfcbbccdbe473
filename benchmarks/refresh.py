#!/usr/bin/env python3
"""Times `images/build_images.py` beside a plain loop of `docker build` over the same folders, on the same engine.

    benchmarks/refresh.py [NAME...]

Three cases: all built from nothing, nothing changed, one line changed in a leaf. The contenders take turns in every
round, each with a copy of the folders of its own. The loop is what somebody would write without this program: one
`docker build` after another, parents first, once with the builder that this program uses and once with the classic
one. It gets the same base, certificates, mirrors and network, and tries nothing that it has built.

"From nothing" is `--no-cache` for all, not a fresh engine: the base lies there before the clock starts, so neither side
pays for fetching it, and the rest of the engine's content makes no difference to a build that may not look at it.

The engine is left with the images that it had: what servers start from is put back, and the loop's own are removed.
Only the build cache is larger than before.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from contenders import OURS, CannotMeasure, Contender, Say, Scene, Took
from rich.console import Console
from rich.table import Table

from gpuspawner.build_images.plan import Step
from gpuspawner.build_images.upkeep import costs
from gpuspawner.errors import BuildError, RecipeError
from gpuspawner.units import format_bytes

IMAGES = Path(__file__).resolve().parents[1] / "images"
COLD, NOTHING, LEAF = CASES = ("cold", "nothing changed", "leaf changed")
MOST_SECONDS, MOST_OF_THE_LOOP = 1.0, 1 / 5


# --- the rounds -----------------------------------------------------------------------------------------------------


def leaf_of(steps: Sequence[Step]) -> Step:
    """The smallest image that none of the others stands on: the kindest to a small machine."""
    parents = {parent for step in steps for parent in step.recipe.parents}
    leaves = [step for step in steps if step.name not in parents]
    return min(leaves, key=lambda step: step.existing.size_bytes if step.existing else 0)


def change(contender: Contender, step: Step, line: str) -> None:
    """Append a line to a file of the leaf that its build reads: its list of packages, where it has one."""
    files = sorted(path for path in step.recipe.files if path != "Dockerfile" and not path.startswith("."))
    name = "requirements.txt" if "requirements.txt" in files else next(iter(files), "Dockerfile")
    with (contender.folder / step.name / name).open("a", encoding="utf-8") as file:
        file.write(f"# {line}\n" if name != "Dockerfile" else f'LABEL refresh-benchmark="{line}"\n')


def measure(case: str, contenders: Sequence[Contender], rounds: int, leaf: Step, say: Say) -> dict[str, list[Took]]:
    """All runs of one case. Whoever comes first changes, so that a machine that gets slower favours nobody."""
    found: dict[str, list[Took]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            if case == LEAF:
                # A line that nobody else had, or the build cache would know its outcome already.
                change(contender, leaf, f"{contender.name}, round {number + 1}, {time.time_ns()}")
            took = contender.run(from_nothing=case == COLD)
            found[contender.name].append(took)
            say(f"{case}, round {number + 1} of {rounds}: {contender.name} {took.seconds:.2f} s")
    return found


@contextmanager
def left_as_it_was(contenders: Sequence[Contender], say: Say) -> Iterator[None]:
    """Whatever happens: each contender cleans up, also where another one could not."""
    # `kill` and systemd end a run as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for contender in contenders:
            try:
                contender.leave()
            except BuildError as error:
                say(f"{contender.name} could not clean up: {error}")


# --- what came of it ------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Took]) -> dict[str, Any]:
    """The figures of one contender in one case. Seconds."""
    seconds = [took.seconds for took in runs]
    checking = statistics.median(took.checking_seconds for took in runs)
    return {
        "runs": [round(each, 3) for each in seconds],
        "median": round(statistics.median(seconds), 3),
        "min": round(min(seconds), 3),
        "max": round(max(seconds), 3),
        "checking": round(checking, 3),
    }


def ratios(case: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The time of ours as a multiple of each loop's: all of it, and less its checks."""
    ours = case[OURS]
    return {
        name: {
            "all": round(ours["median"] / figures["median"], 3),
            "without_checks": round((ours["median"] - ours["checking"]) / figures["median"], 3),
        }
        for name, figures in case.items()
        if name != OURS
    }


def targets(case: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What "nothing changed" has to keep to, and whether it does."""
    median = case[OURS]["median"]
    found = [{"target": f"nothing changed: less than {MOST_SECONDS:g} s", "got": f"{median:.3f} s"}]
    held = [median < MOST_SECONDS]
    for name, ratio in ratios(case).items():
        found.append({"target": f"nothing changed: at most a fifth of the {name}", "got": f"{ratio['all']:.3f}"})
        held.append(ratio["all"] <= MOST_OF_THE_LOOP)
    return [{**entry, "holds": holds} for entry, holds in zip(found, held, strict=True)]


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """For people."""
    about = report["machine"]
    console.print(
        f"{about['cores']} cores, {format_bytes(about['memory_bytes'])}, load {about['load']} at the start; Docker "
        f"{about['engine']}, client {about['client']}, {about['builder']}; Python {about['python']}\n"
        f"images: {', '.join(report['images'])}; the leaf is {report['leaf']}; {report['rounds']} rounds",
        highlight=False,
    )
    names = next(iter(report["cases"].values()))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    table.add_column("median (min-max), seconds")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("its checks" if name == OURS else "ours / loop (less checks)", justify="right")
    for case, contenders in report["cases"].items():
        row = [case]
        for name, figures in contenders.items():
            row.append("{median:.2f} ({min:.2f}-{max:.2f})".format(**figures))
            ratio = report["ratios"][case].get(name)
            row.append(f"{ratio['all']:.2f} ({ratio['without_checks']:.2f})" if ratio else f"{figures['checking']:.2f}")
        table.add_row(*row)
    console.print(table)
    on_disk, added_up = report["bytes"]["on_disk"], report["bytes"]["added_up"]
    console.print(
        f"disk: {format_bytes(on_disk)} for all; {format_bytes(added_up)} is the sum of the images "
        f"({on_disk / added_up:.0%})",
        highlight=False,
    )
    if report["targets"] and not report["whole_shelf"]:
        console.print("The targets are meant for the whole shelf; this is a part of it, so the loop is a short one.")
    for entry in report["targets"]:
        word = "[green]holds[/green]" if entry["holds"] else "[bold red]MISSED[/bold red]"
        console.print(f"{word}  {entry['target']}: {entry['got']}", highlight=False)


# --- the command line -----------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Images, with what they stand on. Default: all.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each case is run.")] = 5,
    cold_rounds: Annotated[int, typer.Option(metavar="N", min=1, help="The same for the case 'cold'.")] = 3,
    case: Annotated[
        list[str] | None, typer.Option(metavar="CASE", help=f"Only this one of: {', '.join(CASES)}.")
    ] = None,
    no_classic: Annotated[
        bool, typer.Option("--no-classic", help="Leave out the loop with the classic builder.")
    ] = False,
    images_folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The image folders and their build_images.py.")
    ] = IMAGES,
    json_: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")] = False,
) -> None:
    """Time build_images.py beside a plain loop of docker build, on the engine that DOCKER_HOST names.

    What is stale is built first, before the clock starts. Exit status: 0 with figures, whatever they are; 2 without.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if unknown := sorted(set(case or ()) - set(CASES)):
        raise typer.BadParameter(f"there is no case '{unknown[0]}', only {', '.join(CASES)}", param_hint="--case")
    try:
        scene = Scene.find(images_folder, names or ())
        chosen = [each for each in CASES if each in (case or CASES)]
        report = compare(scene, {each: cold_rounds if each == COLD else rounds for each in chosen}, not no_classic, say)
    except (CannotMeasure, BuildError, RecipeError) as error:
        say(f"{Path(sys.argv[0]).name}: {error}")
        raise typer.Exit(2) from error
    if json_:
        print(json.dumps(report))
    else:
        print_report(console, report)


def compare(scene: Scene, rounds: Mapping[str, int], classic: bool, say: Say) -> dict[str, Any]:
    """Every case, and what the images cost on disk."""
    with tempfile.TemporaryDirectory(prefix="refresh-benchmark-") as temporary:
        ours = scene.ours(Path(temporary) / "ours")
        say("Before the clock starts: what is stale is built")
        ours.prepare(say)
        steps = scene.planner().plan()
        leaf = leaf_of(steps)
        in_use = {step.name: step.existing for step in steps if step.existing}
        own, on_disk = costs(scene.images, in_use)
        loops = list(scene.loops(Path(temporary), classic=classic))
        contenders: list[Contender] = [ours, *loops]
        about = scene.about()
        cases: dict[str, dict[str, Any]] = {}
        with left_as_it_was(contenders, say):
            for case, number in rounds.items():
                if case != COLD:
                    for loop in loops:
                        say(f"Before the clock starts: {loop.name}")
                        loop.run(from_nothing=False)
                found = measure(case, contenders, number, leaf, say)
                cases[case] = {name: summary(runs) for name, runs in found.items()}
    return {
        "machine": about,
        "images": [step.name for step in steps],
        "whole_shelf": not scene.arguments,
        "leaf": leaf.name,
        "rounds": "/".join(str(number) for number in rounds.values()),
        "cases": cases,
        "ratios": {case: ratios(figures) for case, figures in cases.items()},
        "targets": targets(cases[NOTHING]) if NOTHING in cases else [],
        "bytes": {"on_disk": on_disk, "added_up": sum(cost.size_bytes for cost in own.values())},
    }


if __name__ == "__main__":
    app()
