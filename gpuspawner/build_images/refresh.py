"""One run over a folder of images: build what is stale, try it, and only then let servers start from it.

`plan` says what is stale and in what order, `builder` builds and tries. Until an image has passed, its name is a
candidate's that nothing starts from; a run that is killed leaves the names of before.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from gpuspawner import recipes
from gpuspawner.build_images.plan import BASE, Planner, Step
from gpuspawner.builder.build import Builder, Job
from gpuspawner.builder.children import Children, Say
from gpuspawner.builder.ground import Ground, Grounds
from gpuspawner.builder.settings import network_arguments
from gpuspawner.candidates import Verdict
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes.image import Image
from gpuspawner.recipes.versions import CANDIDATE, FAILED, LATEST, bad_tag, earlier_tag

Result = Literal["unchanged", "built", "tagged", "passed", "held", "failed", "stopped"]
BROKEN = ("failed", "stopped")


@dataclass(frozen=True)
class Outcome:
    """What became of one image. `why`: the reasons for building it, or for not having built it."""

    name: str
    result: Result
    why: str = ""
    seconds: float = 0.0
    size_bytes: int | None = None
    log: Path | None = None
    verdict: Verdict | None = None


class Show(Protocol):
    """Where progress is shown. Called from several threads."""

    def begin(self, name: str, why: str, doing: str = "building") -> None:
        """The work on an image begins, or another part of it."""

    def line(self, name: str, text: str) -> None:
        """One line of what the work on it prints."""

    def end(self, outcome: Outcome) -> None:
        """It has ended, or there was nothing to do."""


class Trial(Protocol):
    """What tries a candidate: `builder.trial.Trials`."""

    def check(
        self, image: str, *, parent: str | None, yardstick: str | None, smoke_tests: Mapping[str, str], say: Say
    ) -> Verdict:
        """Start it as the Hub would, and judge it."""

    def sweep(self) -> None:
        """Remove what a killed run left."""

    def stop(self) -> None:
        """Let a check that runs in another thread end."""


@dataclass(frozen=True)
class Workshop:
    """Everything that a run works with."""

    images: Images
    builder: Builder
    grounds: Grounds
    trials: Trial
    children: Children
    environ: Mapping[str, str]


class Rejected(BuildError):
    """A candidate that did not pass."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


class Refresh:
    """One run. Raises BuildError or RecipeError with a sentence where it cannot go on at all."""

    def __init__(self, folder: Path, planner: Planner, workshop: Workshop, logs: Path) -> None:
        self._folder = folder
        self._planner = planner
        self._work = workshop
        self._logs = logs
        self._ground: Ground | None = None
        self._no_ground: dict[str, BuildError] = {}
        self._network: str | None = None
        self._revision = revision_of(folder)

    def run(self, show: Show) -> tuple[Outcome, ...]:
        """Build what is stale. A failed image stops those that stand on it, and no others."""
        self._sweep()
        steps = self._on_the_ground(show)
        self._network = self._work.images.build_network()
        return self._in_order(steps, lambda step, parents: self._do(step, parents, show), show)

    def check(self, show: Show) -> tuple[Outcome, ...]:
        """Try the images that servers start from now, one after another, and change nothing."""
        self._work.trials.sweep()
        outcomes = []
        for step in self._planner.plan():
            if step.existing is None:
                outcome = Outcome(step.name, "failed", "never built")
            else:
                began = time.monotonic()
                try:
                    outcome = self._judged(step, step.existing, show)
                except BuildError as error:
                    outcome = Outcome(step.name, "failed", str(error), log=self._log(step.name))
                outcome = replace(outcome, seconds=time.monotonic() - began)
            show.end(outcome)
            outcomes.append(outcome)
        return tuple(outcomes)

    # --- in which order -----------------------------------------------------------------------------------------------

    def _in_order(
        self, steps: tuple[Step, ...], do: Callable[[Step, list[Outcome]], Outcome], show: Show
    ) -> tuple[Outcome, ...]:
        """Each image after its parents, as many side by side as were asked for."""
        done: dict[str, Outcome] = {}
        waiting = list(steps)
        running: dict[Future[Outcome], Step] = {}
        pool = ThreadPoolExecutor(max(1, self._planner.options.jobs), thread_name_prefix="image")
        try:
            while waiting or running:
                for step in [step for step in waiting if all(parent in done for parent in step.recipe.parents)]:
                    waiting.remove(step)
                    running[pool.submit(do, step, [done[name] for name in step.recipe.parents])] = step
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    step = running.pop(future)
                    done[step.name] = future.result()
                    show.end(done[step.name])
        finally:
            # Left early (Ctrl-C): what runs is ended, and not waited for to its own end.
            if running:
                self._work.children.stop()
                self._work.trials.stop()
            pool.shutdown(cancel_futures=True)
        return tuple(done[step.name] for step in steps)

    # --- what images stand on -----------------------------------------------------------------------------------------

    def _on_the_ground(self, show: Show) -> tuple[Step, ...]:
        """The plan, after what comes from elsewhere has been fetched, as far as it is needed."""
        steps = self._planner.plan()
        refresh = self._planner.options.pull
        fresh: dict[str, str] = {}
        for step in steps:
            if step.recipe.parent.recipe or not (step.is_due or refresh):
                continue
            show.begin(step.name, step.why or "a newer base", "building" if step.is_due else "looking for")
            with self._logging(step.name, show, append=False) as say:
                try:
                    fresh.update(self._fetch(step, refresh, say))
                except BuildError as error:
                    say(str(error))
                    self._no_ground[step.name] = error
        self._planner.forget()
        return self._planner.plan(base=self._ground.name if self._ground else None, fresh=fresh)

    def _fetch(self, step: Step, refresh: bool, say: Say) -> dict[str, str]:
        """The digest of what the image stands on, by its reference."""
        if not step.is_lowest:
            reference = step.recipe.parent.reference
            return {reference: self._work.grounds.foreign(reference, refresh=refresh, say=say).digest}
        ground = self._ground = self._work.grounds.lowest(
            wanted=self._planner.options.base,
            default=self._planner.shelf(None)[step.name].arguments[BASE] or "",
            certificates=self._planner.certificates,
            refresh=refresh,
            say=say,
        )
        return {ground.name: ground.digest}

    # --- one image ----------------------------------------------------------------------------------------------------

    def _do(self, step: Step, parents: list[Outcome], show: Show) -> Outcome:
        size = step.existing.size_bytes if step.existing else None
        if broken := next((parent for parent in parents if parent.result in BROKEN), None):
            return Outcome(step.name, "stopped", f"{broken.name} was not built", size_bytes=size)
        if step.held:
            return Outcome(step.name, "held", HELD.format(name=step.name), size_bytes=size)
        if not step.reasons:
            kept = self._work.grounds.kept.get(step.recipe.parent.reference)
            return Outcome(step.name, "unchanged", f"no newer base: {kept}" if kept else "", size_bytes=size)
        began = time.monotonic()
        try:
            if step.name in self._no_ground:
                raise self._no_ground[step.name]
            outcome = self._made(step, show)
        except BuildError as error:
            verdict = error.verdict if isinstance(error, Rejected) else None
            outcome = Outcome(step.name, "failed", str(error), log=self._log(step.name), verdict=verdict)
        return replace(outcome, seconds=time.monotonic() - began)

    def _made(self, step: Step, show: Show) -> Outcome:
        # An image of exactly this content, which has passed: from before a change that was taken back.
        if step.made:
            self._work.images.tag(step.exact, step.latest)
            return Outcome(step.name, "tagged", step.why, size_bytes=step.made.size_bytes)
        show.begin(step.name, step.why)
        candidate = f"{step.recipe.reference}:{CANDIDATE}{step.fingerprint.tag}"
        with self._logging(step.name, show, append=not step.recipe.parent.recipe) as say:
            self._work.builder.build(self._job(step, candidate, say), say)
        image = self._work.images.get(candidate)
        if image is None:
            raise BuildError(f"{candidate} was built and is not in the engine: is its disk full?")
        outcome = self._judged(step, image, show)
        if outcome.result == "failed":
            self._work.images.tag(candidate, f"{step.recipe.reference}:{FAILED}")
            self._work.images.untag(candidate)
            assert outcome.verdict is not None  # noqa: S101  (it is what failed)
            raise Rejected(outcome.why, outcome.verdict)
        self._promote(step, candidate, image)
        return Outcome(step.name, "built", step.why, size_bytes=image.size_bytes, verdict=outcome.verdict)

    def _promote(self, step: Step, candidate: str, image: Image) -> None:
        """From the moment when `latest` moves, servers start from it."""
        before = self._work.images.get(step.exact)
        if before and before.id != image.id:
            # Another build of the same content (--no-cache): there has to be a way back to it.
            earlier = earlier_tag(step.fingerprint.digest, before.id)
            self._work.images.tag(before.id, f"{step.recipe.reference}:{earlier}")
        self._work.images.tag(candidate, step.exact)
        self._work.images.tag(candidate, step.latest)
        self._work.images.untag(candidate)
        bad = f"{step.recipe.reference}:{bad_tag(step.fingerprint.digest)}"
        if self._work.images.get(bad):
            # Moved before it is taken away: no engine takes the last name of an image that a server runs from.
            self._work.images.tag(step.exact, bad)
            self._work.images.untag(bad)

    def _judged(self, step: Step, image: Image, show: Show) -> Outcome:
        show.begin(step.name, "started as the Hub starts it", "checking")
        line = recipes.in_order(self._planner.shelf(None), [step.name])
        smoke_tests = {
            ancestor.name: self._planner.folders[ancestor.name]["smoke_test.py"].content.decode()
            for ancestor in line
            if "smoke_test.py" in self._planner.folders[ancestor.name]
        }
        with self._logging(step.name, show, append=True) as say:
            verdict = self._work.trials.check(
                image.id,
                parent=self._parent(step),
                yardstick=self._yardstick(step),
                smoke_tests=smoke_tests,
                say=say,
            )
            for finding in verdict.findings:
                say(f"{finding.check}: {finding.text}")
        result: Result = "passed" if verdict.ok else "failed"
        why = ", ".join(dict.fromkeys(finding.check for finding in verdict.findings))
        return Outcome(step.name, result, why, size_bytes=image.size_bytes, log=self._log(step.name), verdict=verdict)

    def _parent(self, step: Step) -> str | None:
        """What the image stands on, as far as the engine has it under a name."""
        reference = f"{step.recipe.parent.reference}:{LATEST}" if step.recipe.parent.recipe else self._below(step)
        return reference if reference and self._work.images.get(reference) else None

    def _below(self, step: Step) -> str:
        return self._ground.reference if step.is_lowest and self._ground else step.recipe.parent.reference

    def _yardstick(self, step: Step) -> str | None:
        """The image that a boot is measured against: the lowest of the shelf, for all but itself."""
        lowest = next((recipe for recipe in self._planner.shelf(None).values() if BASE in recipe.arguments), None)
        if lowest is None or step.is_lowest:
            return None
        reference = f"{lowest.reference}:{LATEST}"
        return reference if self._work.images.get(reference) else None

    def _job(self, step: Step, tag: str, say: Say) -> Job:
        recipe = step.recipe
        given = {**network_arguments(self._work.environ, say), **self._planner.options.arguments}
        parent, digest = recipe.parent.reference, ""
        if step.is_lowest and self._ground:
            given[BASE] = self._ground.reference
            parent, digest = self._ground.name, self._ground.digest
        elif below := self._work.images.get(f"{parent}:{LATEST}" if recipe.parent.recipe else parent):
            # Of one that is built here the id: a registry's digest comes and goes with a push.
            digest = below.id if recipe.parent.recipe else below.digest
        labels = {
            **step.fingerprint.labels(),
            recipes.TITLE_LABEL: recipe.reference,
            recipes.CREATED_LABEL: datetime.now(timezone.utc).isoformat(timespec="seconds"),
            recipes.REVISION_LABEL: self._revision,
            recipes.BASE_NAME_LABEL: parent,
            recipes.BASE_DIGEST_LABEL: digest,
        }
        return Job(
            tag=tag,
            files=recipe.files,
            labels={name: value for name, value in labels.items() if value},
            # Docker knows the proxies without being told; any other argument has to be declared.
            arguments={key: value for key, value in given.items() if key in recipe.arguments or "proxy" in key.lower()},
            no_cache=self._planner.options.no_cache,
            network=self._network,
            needs_buildkit=recipe.needs_buildkit,
        )

    def _sweep(self) -> None:
        """Remove what a run left that was killed."""
        self._work.trials.sweep()
        for image in self._work.images.built_here():
            for reference in image.references:
                if reference.rpartition(":")[2].startswith(CANDIDATE):
                    self._work.images.untag(reference)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    @contextmanager
    def _logging(self, name: str, show: Show, *, append: bool) -> Iterator[Say]:
        with self._log(name).open("a" if append else "w", encoding="utf-8") as log:

            def say(line: str) -> None:
                log.write(line + "\n")
                log.flush()
                show.line(name, line)

            yield say


HELD = (
    "this content was rolled back, so what was good before stays in use. Change its folder, or build it anew as it is: "
    "images/build_images.py --no-cache {name}"
)


def revision_of(folder: Path) -> str:
    """The commit that the folder is at, "-dirty" after it where files differ from it; "" outside of a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def log_folder(environ: Mapping[str, str]) -> Path:
    """Where the full output of each image's last build is kept."""
    state = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "/root") / ".local/state"
    folder = Path(state) / "gpuspawner/builds"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="gpuspawner-builds-"))
    return folder
