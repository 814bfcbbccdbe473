"""One run over a folder of images: read it, ask the engine what there is, build what is stale.

`recipes` says what is stale and in what order, `builder` builds. `latest` moves only after a build has succeeded, so a
server that starts in the meantime gets the image of before.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from gpuspawner import recipes
from gpuspawner.builder import (
    Builder,
    BuildError,
    BuiltImage,
    Ground,
    Job,
    Say,
    extra_certificates,
    find_ground,
    network_arguments,
)
from gpuspawner.recipes import ContextFile, Fingerprint, Folder, Recipe, Shelf

# The argument by which the lowest image is told what it stands on.
BASE = "BASE"

Result = Literal["unchanged", "built", "tagged", "failed", "stopped"]


@dataclass(frozen=True)
class Options:
    """What was asked for. No names: all images. `base` and `ca_bundle` are looked for where they are None."""

    names: tuple[str, ...] = ()
    base: str | None = None
    ca_bundle: Path | None = None
    no_cache: bool = False


@dataclass(frozen=True)
class Step:
    """One image of a plan: what it is to be, what the engine has, and why the two differ (nothing: they do not)."""

    recipe: Recipe
    fingerprint: Fingerprint
    existing: BuiltImage | None
    reasons: tuple[str, ...]

    @property
    def why(self) -> str:
        return ", ".join(self.reasons)

    @property
    def is_lowest(self) -> bool:
        """Whether it stands on whatever BASE names."""
        return BASE in self.recipe.arguments


@dataclass(frozen=True)
class Outcome:
    """What became of one image. `why`: the reasons for building it, or for not having built it."""

    name: str
    result: Result
    why: str = ""
    seconds: float = 0.0
    size_bytes: int | None = None
    log: Path | None = None


class Show(Protocol):
    """Where progress is shown."""

    def begin(self, name: str, why: str) -> None:
        """The work on an image begins."""

    def line(self, name: str, text: str) -> None:
        """One line of what the work on it prints."""

    def end(self, outcome: Outcome) -> None:
        """It has ended, or there was nothing to do."""


class Refresh:
    """One run. Every method raises BuildError or RecipeError with a sentence where it cannot go on at all."""

    def __init__(self, folder: Path, options: Options, builder: Builder, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._options = options
        self._builder = builder
        self._environ = environ
        self._folders = read_folders(folder)
        self._certificates = extra_certificates(options.ca_bundle)
        self._existing: dict[str, BuiltImage | None] = {}
        self._logs = log_folder(environ)

    def plan(self, base: str | None = None) -> tuple[Step, ...]:
        """What is to be done, parents first.

        `base` is what the lowest image will stand on: by default what was asked for, else what it stands on already.
        """
        shelf = self._shelf(base or self._options.base or self._made_before())
        names = self._options.names or tuple(shelf)
        chosen = recipes.in_order(shelf, names)
        outside = {"this machine's CA bundle": "".join(self._certificates)} if self._certificates else {}
        prints = recipes.fingerprints(shelf, outside=outside)
        steps = []
        for recipe in chosen:
            image = self._image(recipe)
            why = recipes.reasons(prints[recipe.name], image.labels if image else None)
            if not why and self._options.no_cache and recipe.name in names:
                why = ("--no-cache",)
            steps.append(Step(recipe, prints[recipe.name], image, why))
        return tuple(steps)

    def run(self, show: Show) -> tuple[Outcome, ...]:
        """Build what is stale. A failed image stops those that stand on it, and no others."""
        steps = self.plan()
        ground: Ground | BuildError | None = None
        if lowest := next((step for step in steps if step.is_lowest and step.reasons), None):
            ground = self._ground(lowest, show)
            if isinstance(ground, Ground):
                steps = self.plan(ground.name)
        outcomes: dict[str, Outcome] = {}
        for step in steps:
            parents = [outcomes[name] for name in step.recipe.parents]
            outcomes[step.recipe.name] = outcome = self._do(step, parents, ground, show)
            show.end(outcome)
        return tuple(outcomes.values())

    def _do(self, step: Step, parents: list[Outcome], ground: Ground | BuildError | None, show: Show) -> Outcome:
        name = step.recipe.name
        if broken := next((parent for parent in parents if parent.result in ("failed", "stopped")), None):
            return Outcome(name, "stopped", f"{broken.name} was not built")
        anew = next((parent for parent in parents if parent.result == "built"), None)
        if not step.reasons and not anew:
            return Outcome(name, "unchanged", size_bytes=step.existing.size_bytes if step.existing else None)
        why = step.why or f"parent {anew.name if anew else ''} was built anew"
        began = time.monotonic()
        try:
            if step.is_lowest and isinstance(ground, BuildError):
                raise ground
            result = self._build(step, ground if isinstance(ground, Ground) else None, show, why)
            built = self._builder.image(f"{step.recipe.reference}:latest")
        except BuildError as error:
            return Outcome(name, "failed", str(error), time.monotonic() - began, log=self._log(name))
        return Outcome(name, result, why, time.monotonic() - began, built.size_bytes if built else None)

    def _build(self, step: Step, ground: Ground | None, show: Show, why: str) -> Result:
        recipe = step.recipe
        exact = f"{recipe.reference}:{step.fingerprint.tag}"
        result: Result = "built"
        # An image of exactly this content, from before a change that was taken back.
        if self._options.no_cache or not step.reasons or self._builder.image(exact) is None:
            show.begin(recipe.name, why)
            with self._logging(recipe.name, show, append=step.is_lowest) as say:
                self._builder.build(self._job(step, exact, ground, say), say)
        else:
            result = "tagged"
        self._builder.tag(exact, f"{recipe.reference}:latest")
        return result

    def _job(self, step: Step, tag: str, ground: Ground | None, say: Say) -> Job:
        recipe = step.recipe
        given = network_arguments(self._environ, say)
        parent = recipe.parent.reference
        if step.is_lowest and ground:
            given[BASE] = ground.reference
            parent = ground.name
        return Job(
            folder=self._folder / recipe.name,
            tag=tag,
            labels={
                **step.fingerprint.labels(),
                recipes.TITLE_LABEL: recipe.reference,
                recipes.CREATED_LABEL: datetime.now(timezone.utc).isoformat(timespec="seconds"),
                recipes.BASE_NAME_LABEL: parent,
            },
            # Docker knows the proxies without being told; any other argument has to be declared.
            arguments={key: value for key, value in given.items() if key in recipe.arguments or "proxy" in key.lower()},
            no_cache=self._options.no_cache,
            needs_buildkit=recipe.needs_buildkit,
        )

    def _ground(self, lowest: Step, show: Show) -> Ground | BuildError:
        name = lowest.recipe.name
        show.begin(name, lowest.why)
        with self._logging(name, show, append=False) as say:
            try:
                return find_ground(
                    self._builder,
                    wanted=self._options.base,
                    default=self._shelf(None)[name].arguments[BASE] or "",
                    certificates=self._certificates,
                    say=say,
                )
            except BuildError as error:
                say(str(error))
                return error

    def _shelf(self, base: str | None) -> Shelf:
        return recipes.read_shelf(self._folders, {BASE: base} if base else {})

    def _image(self, recipe: Recipe) -> BuiltImage | None:
        if recipe.name not in self._existing:
            self._existing[recipe.name] = self._builder.image(f"{recipe.reference}:latest")
        return self._existing[recipe.name]

    def _made_before(self) -> str | None:
        """A system that was made because no registry answered stays what the images stand on."""
        for recipe in self._shelf(None).values():
            if BASE in recipe.arguments and (image := self._image(recipe)):
                name = image.labels.get(recipes.BASE_NAME_LABEL, "")
                if name.startswith(recipes.PREFIX):
                    return name
        return None

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    @contextmanager
    def _logging(self, name: str, show: Show, *, append: bool) -> Iterator[Say]:
        with self._log(name).open("a" if append else "w", encoding="utf-8") as log:

            def say(line: str) -> None:
                log.write(line + "\n")
                show.line(name, line)

            yield say


def read_folders(folder: Path) -> dict[str, Folder]:
    """What is in each image folder. Times and owners are not read: they make no difference."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    return {path.name: _read_folder(path) for path in found}


def _read_folder(folder: Path) -> Folder:
    found: dict[str, ContextFile] = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root) / name
            if path.is_symlink():
                file = ContextFile(os.fsencode(path.readlink()), is_link=True)
            elif path.is_file():
                file = ContextFile(path.read_bytes(), executable=bool(path.stat().st_mode & 0o111))
            else:
                continue
            found[path.relative_to(folder).as_posix()] = file
    return found


def log_folder(environ: Mapping[str, str]) -> Path:
    """Where the full output of each image's last build is kept."""
    state = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "/root") / ".local/state"
    folder = Path(state) / "gpuspawner/builds"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="gpuspawner-builds-"))
    return folder
