"""How a run is shown: a live line for each image on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpuspawner.build_images.refresh import Outcome, Step
from gpuspawner.builder import BuiltImage, step_of
from gpuspawner.recipes import CREATED_LABEL
from gpuspawner.units import format_bytes, format_duration

LINES_OF_A_FAILURE = 15
LONGEST_STEP = 100
_STYLES = {"built": "green", "tagged": "green", "unchanged": "dim", "failed": "bold red", "stopped": "yellow"}


class PlainShow:
    """A line when a build begins, at each of its steps, and when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, str] = {}

    def __enter__(self) -> PlainShow:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def begin(self, name: str, why: str) -> None:
        """Say that the work on an image begins, once for the same reason."""
        self._print(name, f"building: {why}")

    def line(self, name: str, text: str) -> None:
        """Say which step a line of output begins, if it begins one, and pass on what the program itself says."""
        if step := step_of(text):
            self._print(name, step if len(step) <= LONGEST_STEP else step[: LONGEST_STEP - 1] + "…")
        elif text.startswith(("Pulling ", "Making ")) or " cannot be pulled (" in text or "holds a password" in text:
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

    def begin(self, name: str, why: str) -> None:
        """The clock of this image runs from its first beginning."""
        began = self._rows[name][2]
        self._rows[name] = ("building", why, time.monotonic() if began is None else began)

    def line(self, name: str, text: str) -> None:
        """The step stays until the next one begins."""
        result, step, began = self._rows[name]
        self._rows[name] = (result, step_of(text) or (text if "/" not in step else step), began)

    def end(self, outcome: Outcome) -> None:
        """The line keeps the result."""
        self._rows[outcome.name] = (outcome.result, outcome.why, None)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for column in ({"no_wrap": True}, {"no_wrap": True}, {"justify": "right", "no_wrap": True}):
            table.add_column(**column)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, (result, step, began) in self._rows.items():
            elapsed = str(format_duration(round(time.monotonic() - began))) if began is not None else ""
            table.add_row(name, Text(result, _STYLES.get(result, "")), elapsed, Text(step))
        return table


def outcome_table(outcomes: Iterable[Outcome]) -> Table:
    """What became of each image."""
    table = _headed("image", "result", ">size", ">time", "why")
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            Text(outcome.result, _STYLES[outcome.result]),
            format_bytes(outcome.size_bytes) if outcome.size_bytes is not None else "",
            str(format_duration(round(outcome.seconds))) if outcome.seconds >= 1 else "",
            Text(outcome.why),
        )
    return table


def plan_table(steps: Iterable[Step]) -> Table:
    """What would be done, in order."""
    table = _headed("image", "stands on", "would be", "why")
    for step in steps:
        would_be = Text("built", "green") if step.reasons else Text("left as it is", "dim")
        table.add_row(step.recipe.name, step.recipe.parent.reference, would_be, Text(step.why))
    return table


def shelf_table(steps: Iterable[Step]) -> Table:
    """What there is."""
    table = _headed("image", "stands on", "tag", ">size", "built", "state")
    for step in steps:
        image: BuiltImage | None = step.existing
        table.add_row(
            step.recipe.name,
            step.recipe.parent.reference,
            step.fingerprint.tag if not step.reasons else "",
            format_bytes(image.size_bytes) if image else "",
            image.labels.get(CREATED_LABEL, "")[:16].replace("T", " ") if image else "",
            Text(f"to be built: {step.why}", "yellow") if step.reasons else Text("up to date", "green"),
        )
    return table


def _headed(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def print_failures(console: Console, outcomes: Iterable[Outcome]) -> None:
    """For each image that failed: the last lines of its build, and the file that has them all."""
    for outcome in outcomes:
        if outcome.result != "failed":
            continue
        console.print(
            f"\n{outcome.name}: {outcome.why}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
        if outcome.log and outcome.log.is_file():
            lines = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines[-LINES_OF_A_FAILURE:]:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
            console.print(f"The whole output is in {outcome.log}", markup=False, highlight=False, soft_wrap=True)
