"""How a run is shown: a live line for each image on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpuspawner.build_images.plan import Step
from gpuspawner.build_images.refresh import Outcome
from gpuspawner.build_images.report import state_of
from gpuspawner.builder.build import step_of
from gpuspawner.recipes import CREATED_LABEL
from gpuspawner.recipes.versions import Cost
from gpuspawner.units import format_bytes, format_duration

LINES_OF_A_FAILURE = 15
LONGEST_STEP = 100
_STYLES = {
    "built": "green",
    "tagged": "green",
    "unchanged": "dim",
    "passed": "green",
    "held": "yellow",
    "failed": "bold red",
    "stopped": "yellow",
}
_STATES = {"current": "green", "stale": "yellow", "missing": "yellow", "held": "yellow"}
# What a run itself says in between, and a person without a terminal wants to read.
_WORTH_READING = ("Pulling ", "Making ", "Trying ")


class NoShow:
    """Nothing: the result is for a program."""

    def __enter__(self) -> NoShow:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def begin(self, name: str, why: str, doing: str = "building") -> None:
        """Nothing."""

    def line(self, name: str, text: str) -> None:
        """Nothing."""

    def end(self, outcome: Outcome) -> None:
        """Nothing."""


class PlainShow:
    """A line when a build begins, at each of its steps, and when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, str] = {}

    def __enter__(self) -> PlainShow:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def begin(self, name: str, why: str, doing: str = "building") -> None:
        """Say that the work on an image begins, once for the same reason."""
        self._print(name, f"{doing}: {why}")

    def line(self, name: str, text: str) -> None:
        """Say which step a line of output begins, if it begins one, and pass on what the program itself says."""
        if step := step_of(text):
            self._print(name, step if len(step) <= LONGEST_STEP else step[: LONGEST_STEP - 1] + "…")
        elif text.startswith(_WORTH_READING) or " cannot be pulled: " in text or "holds a password" in text:
            self._print(name, text)

    def end(self, outcome: Outcome) -> None:
        """Say how it ended."""
        took = f" in {format_duration(round(outcome.seconds))}" if outcome.seconds >= 1 else ""
        self._print(outcome.name, outcome.result + took)

    def _print(self, name: str, text: str) -> None:
        if self._last.get(name) != text:
            self._last[name] = text
            self._console.print(f"{name}: {text}", markup=False, highlight=False, soft_wrap=True)


class LiveShow:
    """One line for each image, with its step and the time so far, redrawn in place."""

    def __init__(self, console: Console, names: Iterable[str]) -> None:
        self._rows: dict[str, tuple[str, str, float | None]] = dict.fromkeys(names, ("waiting", "", None))
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveShow:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def begin(self, name: str, why: str, doing: str = "building") -> None:
        """The clock of this image runs from its first beginning."""
        began = self._rows[name][2]
        self._rows[name] = (doing, why, time.monotonic() if began is None else began)

    def line(self, name: str, text: str) -> None:
        """The step stays until the next one begins."""
        result, step, began = self._rows[name]
        self._rows[name] = (result, step_of(text) or (text if "/" not in step else step), began)

    def end(self, outcome: Outcome) -> None:
        """The line keeps the result."""
        self._rows[outcome.name] = (outcome.result, outcome.why, None)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True, min_width=max(map(len, self._rows), default=0))
        table.add_column(no_wrap=True, min_width=len("unchanged"))
        table.add_column(no_wrap=True, min_width=len("12 min"), justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for name, (result, step, began) in self._rows.items():
            elapsed = str(format_duration(round(time.monotonic() - began))) if began is not None else ""
            table.add_row(name, Text(result, _STYLES.get(result, "")), elapsed, Text(step))
        return table


def outcome_table(outcomes: Iterable[Outcome]) -> Table:
    """What became of each image."""
    table = _headed("image", "result", ">size", ">time", ">first answer", "why")
    for outcome in outcomes:
        boot = outcome.verdict.boot if outcome.verdict else None
        table.add_row(
            outcome.name,
            Text(outcome.result, _STYLES[outcome.result]),
            format_bytes(outcome.size_bytes) if outcome.size_bytes is not None else "",
            str(format_duration(round(outcome.seconds))) if outcome.seconds >= 1 else "",
            f"{boot.seconds:.1f} s" if boot else "",
            Text(outcome.why if outcome.result != "failed" else "see below"),
        )
    return table


def plan_table(steps: Iterable[Step]) -> Table:
    """What would be done, in order."""
    table = _headed("image", "stands on", "would be", "why")
    for step in steps:
        if step.held:
            would_be, why = Text("left as it is", "yellow"), "its content was rolled back"
        else:
            would_be = Text("built", "green") if step.reasons else Text("left as it is", "dim")
            would_be = Text("tagged", "green") if step.reasons and step.made else would_be
            why = step.why
        table.add_row(step.name, step.recipe.parent.reference, would_be, Text(why))
    return table


def shelf_table(steps: Iterable[Step], costs: Mapping[str, Cost], total_bytes: int) -> Table:
    """What there is, each image under what it stands on, and what it costs: "own" is what no other one has."""
    table = _headed("image", ">size", ">shared", ">own", "built", "state")
    added_up = 0
    depths: dict[str, int] = {}
    for step in steps:
        image, cost = step.existing, costs.get(step.name)
        added_up += cost.size_bytes if cost else 0
        depths[step.name] = depth = depths.get(step.recipe.parent.recipe or "", -1) + 1
        state = state_of(step)
        words = {
            "current": "up to date",
            "stale": step.why,
            "missing": "never built",
            "held": "rolled back",
        }[state]
        table.add_row(
            "  " * depth + step.name,
            format_bytes(cost.size_bytes) if cost else "",
            format_bytes(cost.shared_bytes) if cost else "",
            format_bytes(cost.own_bytes) if cost else "",
            image.labels.get(CREATED_LABEL, "")[:10] if image else "",
            Text(words, _STATES[state]),
        )
    table.add_section()
    table.add_row("on disk", format_bytes(total_bytes), "", "", "", f"{format_bytes(added_up)} without sharing")
    return table


def _headed(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def print_failures(console: Console, outcomes: Iterable[Outcome]) -> None:
    """For each image that failed: what was found wrong with it, or the last lines of its build; and where all is."""

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for outcome in outcomes:
        if outcome.result != "failed":
            continue
        if outcome.verdict:
            line(f"\n{outcome.name} did not pass. New servers start from what was there before.", "bold red")
            for finding in outcome.verdict.findings:
                line(f"  {finding.check}: {finding.text}")
        else:
            line(f"\n{outcome.name}: {outcome.why}", "bold red")
            if outcome.log and outcome.log.is_file():
                lines = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()
                for last in lines[-LINES_OF_A_FAILURE:]:
                    line(f"  {last}")
        if outcome.log:
            line(f"The whole output is in {outcome.log}")
