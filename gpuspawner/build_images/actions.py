"""What each word of the command line does. Each function says whether all is well; what stops it is a BuildError."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from gpuspawner.build_images import report, show, upkeep
from gpuspawner.build_images.lock import locked
from gpuspawner.build_images.plan import Planner, Step
from gpuspawner.build_images.refresh import BROKEN, Outcome, Refresh, Show, Workshop, log_folder
from gpuspawner.builder.build import Builder, find_tool
from gpuspawner.builder.children import Children
from gpuspawner.builder.ground import REGISTRY_SECONDS, Grounds
from gpuspawner.builder.trial import Trials
from gpuspawner.dockerd.boxes import Boxes
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes import in_order

CONFIG = "jupyterhub_config.py"


@dataclass
class Setting:
    """Where a run happens and how it is shown."""

    folder: Path
    planner: Planner
    as_json: bool = False
    plain: bool = False
    metrics: Path | None = None

    @cached_property
    def console(self) -> Console:
        """The terminal; a file has room for long lines."""
        console = Console()
        return console if console.is_terminal else Console(width=160)

    @cached_property
    def images(self) -> Images:
        """The engine's images."""
        return Images(os.environ)

    @cached_property
    def refresh(self) -> Refresh:
        """The run."""
        children = Children()
        builder = Builder(find_tool(os.environ), os.environ, children)
        grounds = Grounds(self.images, builder, children)
        trials = Trials(Boxes(self.images.connect(120)), hub_version=version("jupyterhub"))
        workshop = Workshop(self.images, builder, grounds, trials, children, os.environ)
        return Refresh(self.folder, self.planner, workshop, log_folder(os.environ))

    def alone(self) -> AbstractContextManager[None]:
        """The lock of this engine."""
        return locked(self.images.engine_id())

    def show_for(self, steps: Iterable[Step]) -> AbstractContextManager[Show]:
        """How progress is shown."""
        if self.as_json:
            return show.NoShow()
        if self.console.is_terminal and not self.plain:
            return show.LiveShow(self.console, [step.name for step in steps])
        return show.PlainShow(self.console)

    def say(self, text: str) -> None:
        """A line for a person."""
        if not self.as_json:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def answer(self, content: dict[str, Any]) -> None:
        """The whole result, for a program."""
        if self.as_json:
            print(json.dumps(content, ensure_ascii=False))


def build(setting: Setting, registry: str | None) -> bool:
    """Build what is stale, and copy it to a registry if one is named."""
    with setting.alone():
        setting.planner.forget()
        with setting.show_for(setting.planner.plan()) as shown:
            outcomes = setting.refresh.run(shown)
        sound = [outcome.name for outcome in outcomes if outcome.result not in BROKEN]
        pushed, refused = _push(setting, registry, sound) if registry else ({}, "")
    setting.answer(report.of_a_run(outcomes, pushed, refused))
    _show_outcomes(setting, outcomes)
    for name, references in pushed.items():
        setting.say(f"{name}: pushed {', '.join(references)}")
    if refused:
        setting.say(refused)
    report.write_metrics(setting.metrics, outcomes, setting.images)
    return len(sound) == len(outcomes) and not refused


def _push(setting: Setting, registry: str, names: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], str]:
    """What was pushed, by image, until one was refused; and why it was."""
    pushed: dict[str, tuple[str, ...]] = {}
    for name in names:
        try:
            pushed[name] = upkeep.push(setting.images, registry, name, lambda _: None)
        except BuildError as error:
            return pushed, f"{name} was not pushed, nor what comes after it. {error}"
    return pushed, ""


def check(setting: Setting) -> bool:
    """Try the images that servers start from now."""
    with setting.alone(), setting.show_for(setting.planner.plan()) as shown:
        outcomes = setting.refresh.check(shown)
    setting.answer(report.of_a_run(outcomes))
    _show_outcomes(setting, outcomes)
    return not any(outcome.result in BROKEN for outcome in outcomes)


def _show_outcomes(setting: Setting, outcomes: tuple[Outcome, ...]) -> None:
    if setting.as_json:
        return
    setting.console.print(show.outcome_table(outcomes))
    show.print_failures(setting.console, outcomes)


def show_plan(setting: Setting) -> bool:
    """What a build would do. With --pull, registries are asked for the digest of what is there now."""
    steps = setting.planner.plan()
    if setting.planner.options.pull:
        fresh: dict[str, str] = {}
        for reference in {step.recipe.parent.reference for step in steps if not step.recipe.parent.recipe}:
            try:
                fresh[reference] = setting.images.remote_digest(reference, answer_within_seconds=REGISTRY_SECONDS)
            except BuildError as error:
                setting.say(f"Whether {reference} has changed cannot be known: {error}")
        steps = setting.planner.plan(fresh=fresh)
    setting.answer({"ok": True, "images": [report.of_a_step(step) for step in steps]})
    if not setting.as_json:
        setting.console.print(show.plan_table(steps))
    return True


def show_shelf(setting: Setting) -> bool:
    """What there is, and what it costs."""
    steps = setting.planner.plan()
    costs, total = upkeep.costs(setting.images, {step.name: step.existing for step in steps if step.existing})
    setting.answer(
        {"ok": True, "images": [report.of_a_step(step, costs.get(step.name)) for step in steps], "bytes": total}
    )
    if not setting.as_json:
        setting.console.print(show.shelf_table(steps, costs, total))
    return True


def roll_back(setting: Setting, name: str) -> bool:
    """Go back to the last good version of one image."""
    shelf = setting.planner.shelf(None)
    in_order(shelf, [name])
    with setting.alone():
        done = upkeep.roll_back(setting.images, name)
    setting.answer({"ok": True, "rolled_back": vars(done)})
    setting.say(
        f"New servers start from {name}:{done.good} again. {done.bad} is remembered as bad: it is not published again "
        f"until its folder changes, or with --no-cache {name}."
    )
    if done.standing_on_it:
        setting.say(
            f"Built on the bad one and still in use: {', '.join(done.standing_on_it)}. The next refresh builds them on "
            f"the good one: images/build_images.py {' '.join(done.standing_on_it)}"
        )
    return True


def prune(setting: Setting, keep: int, config: Path | None) -> bool:
    """Remove what nobody needs any more. `config` is the Hub's, by default the one beside the images, if there is."""
    usual = setting.folder.parent / CONFIG
    named = upkeep.named_in(config or usual) if config or usual.exists() else frozenset()
    with setting.alone():
        removed = upkeep.prune(setting.images, keep=keep, named=named)
    setting.answer({"ok": True, "removed": [entry.reference for entry in removed]})
    for entry in removed:
        setting.say(f"removed {entry.reference}")
    if not removed:
        setting.say("Nothing to remove.")
    return True
