"""The contenders of `refresh.py`: the program as an admin starts it, and loops of `docker build`.

Nothing here decides what is measured, how often, or what comes of it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpuspawner.build_images.plan import BASE, Options, Planner, Step
from gpuspawner.builder import glance
from gpuspawner.builder.build import Builder, Kind, Tool, find_tool
from gpuspawner.builder.certificates import extra_certificates
from gpuspawner.builder.children import Children
from gpuspawner.builder.ground import Grounds
from gpuspawner.builder.settings import network_arguments
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes import PREFIX, in_order
from gpuspawner.recipes.versions import LATEST

OURS = "build_images.py"
LINES_OF_A_FAILURE = 15

Say = Callable[[str], None]
Listen = Callable[[str, float], None]


class CannotMeasure(Exception):
    """A contender did not get through, so there is nothing to compare."""


@dataclass(frozen=True)
class Took:
    """Wall time of one run; `checking_seconds` of it, nothing was built and some image was tried."""

    seconds: float
    checking_seconds: float = 0.0


class Contender(Protocol):
    """One way to get the same images."""

    name: str
    folder: Path

    def run(self, *, from_nothing: bool) -> Took:
        """Bring the images up to date."""

    def leave(self) -> None:
        """Put the engine back as it was."""


# --- the two of them ----------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """The program, started as an admin starts it."""

    folder: Path
    names: tuple[str, ...]
    arguments: tuple[str, ...]
    images: Images
    name: str = OURS
    _before: Mapping[str, str] | None = None
    _made: set[str] = field(default_factory=set)

    def prepare(self, say: Say) -> None:
        """Build what is stale, and remember what all names stand for from then on."""
        argv = [sys.executable, str(self.folder / "build_images.py"), *self.arguments]
        run(argv, os.environ, lambda line, when: say(line))
        self._before = self._references()

    def run(self, *, from_nothing: bool) -> Took:
        """The images are found and changed under the names that servers start from: `leave` gives those back."""
        names = self.names if from_nothing else self.arguments
        argv = [sys.executable, str(self.folder / "build_images.py"), *(["--no-cache"] if from_nothing else []), *names]
        clock = CheckClock()
        seconds = run(argv, os.environ, clock.line)
        self._made |= {image.id for name in self.names if (image := self.images.get(f"{PREFIX}{name}:{LATEST}"))}
        self._made -= set((self._before or {}).values())
        remove(self.images, self._made - set(self._references().values()))
        return Took(seconds, clock.seconds)

    def leave(self) -> None:
        """Each name back to the image that had it, and no image of the benchmark's own left."""
        if self._before is None:
            return
        now = self._references()
        for reference, identity in self._before.items():
            if now.get(reference) != identity:
                self.images.tag(identity, reference)
        for reference in now.keys() - self._before.keys():
            self.images.untag(reference)
        remove(self.images, self._made)

    def _references(self) -> dict[str, str]:
        repositories = {f"{PREFIX}{name}" for name in self.names}
        return {
            reference: image.id
            for image in self.images.built_here()
            for reference in image.references
            if reference.rpartition(":")[0] in repositories
        }


@dataclass
class Loop:
    """`docker build` for one folder after another, parents first."""

    name: str
    folder: Path
    command: tuple[str, ...]
    environ: Mapping[str, str]
    prefix: str
    arguments: Mapping[str, Mapping[str, str]]
    network: str | None
    images: Images
    _made: set[str] = field(default_factory=set)

    def run(self, *, from_nothing: bool) -> Took:
        """Under names of its own."""
        seconds = 0.0
        for name, arguments in self.arguments.items():
            argv = [*self.command, "--tag", f"{self.prefix}/{name}"]
            for key, value in sorted(arguments.items()):
                argv += ["--build-arg", f"{key}={value}"]
            argv += ["--no-cache"] if from_nothing else []
            argv += ["--network", self.network] if self.network else []
            seconds += run([*argv, str(self.folder / name)], self.environ, lambda line, when: None)
        here = {image.id for name in self.arguments if (image := self.images.get(f"{self.prefix}/{name}:{LATEST}"))}
        remove(self.images, self._made - here)
        self._made |= here
        return Took(seconds)

    def leave(self) -> None:
        """Its images go, children first: the classic builder's keep their parents."""
        for name in reversed(tuple(self.arguments)):
            self.images.untag(f"{self.prefix}/{name}:{LATEST}")
        remove(self.images, self._made)


class CheckClock:
    """Reads from the lines of our program how long nothing was built and something was tried."""

    _EVENT = re.compile(r"(\S+): (building|checking|built|tagged|failed|stopped|unchanged)\b")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._doing: dict[str, str] = {}
        self._last = 0.0

    def line(self, text: str, when: float) -> None:
        """One line, and how many seconds after the start it came."""
        if not (event := self._EVENT.match(text)):
            return
        busy = set(self._doing.values())
        if "checking" in busy and "building" not in busy:
            self.seconds += when - self._last
        self._last = when
        self._doing[event[1]] = event[2]


def run(argv: Sequence[str], environ: Mapping[str, str], listen: Listen) -> float:
    """Run a program to its end and hand over its lines as they come, each with the seconds so far; its wall time.

    Raises:
        CannotMeasure: it failed; its last lines are in the text.
    """
    lines: list[str] = []
    began = time.perf_counter()
    with subprocess.Popen(
        argv, env=dict(environ), text=True, errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None  # noqa: S101  (asked for above)
        try:
            for line in process.stdout:
                listen(line.rstrip(), time.perf_counter() - began)
                lines.append(line.rstrip())
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    seconds = time.perf_counter() - began
    if status != 0:
        shown = "\n".join(f"  {line}" for line in lines[-LINES_OF_A_FAILURE:])
        raise CannotMeasure(f"'{' '.join(argv[:4])} …' ended with status {status}:\n{shown}")
    return seconds


def remove(images: Images, identities: Iterable[str]) -> None:
    """Remove images without a name, in whatever order the engine allows."""
    left = set(identities)
    while left:
        for identity in sorted(left):
            try:
                images.untag(identity)
            except BuildError:
                continue
            left.remove(identity)
            break
        else:
            return


# --- what they start from -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """One folder of images on one engine."""

    folder: Path
    arguments: tuple[str, ...]
    images: Images
    tool: Tool
    docker: str

    @classmethod
    def find(cls, folder: Path, names: Sequence[str]) -> Scene:
        """Raises CannotMeasure where no docker program is there to make the loop with."""
        tool = find_tool(os.environ)
        docker = tool.program or shutil.which("docker")
        if docker is None:
            raise CannotMeasure("There is no docker program on PATH, so there is no loop to compare with.")
        return cls(folder, tuple(names), Images(os.environ), tool, docker)

    def planner(self) -> Planner:
        """Reads the folders as they are now, as the program does."""
        bundle = os.environ.get("GPUSPAWNER_CA_BUNDLE")
        options = Options(self.arguments, base=os.environ.get("GPUSPAWNER_BASE"))
        return Planner(self.folder, options, extra_certificates(Path(bundle) if bundle else None), glance.look_or_ask)

    def ours(self, folder: Path) -> Ours:
        """The program with its copy of the folders."""
        planner = self.planner()
        shutil.copytree(self.folder, folder)
        shelf = planner.shelf(None)
        names = tuple(recipe.name for recipe in in_order(shelf, self.arguments or tuple(shelf)))
        return Ours(folder, names, self.arguments, self.images)

    def loops(self, folder: Path, *, classic: bool) -> Iterator[Loop]:
        """With the same builder as ours, and with the classic one; where that is the same, only once."""

        def say(line: str) -> None:
            """What is said here, the program has said when the images were built."""

        planner = self.planner()
        steps = planner.plan()
        children = Children()
        grounds = Grounds(self.images, Builder(self.tool, os.environ, children), children)
        base = next((step for step in steps if step.is_lowest), None)
        ground = base and grounds.lowest(
            wanted=planner.options.base,
            default=planner.shelf(None)[base.name].arguments[BASE] or "",
            certificates=planner.certificates,
            refresh=False,
            say=say,
        )
        given = network_arguments(os.environ, say)
        arguments = {step.name: arguments_of(step, given, ground.reference if ground else "") for step in steps}
        network = self.images.build_network()
        ways: list[tuple[str, tuple[str, ...], str]] = [("classic", (self.docker, "build"), "0")]
        if self.tool.kind is not Kind.CLASSIC:
            ways = [("BuildKit", self.tool.command(), "1"), *(ways if classic else [])]
        for word, command, buildkit in ways:
            prefix = f"refresh-loop-{word.lower()}"
            copy = folder / prefix
            copy_for_a_loop(self.folder, copy, steps, prefix)
            environ = {**os.environ, "DOCKER_BUILDKIT": buildkit, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
            yield Loop(f"loop, {word}", copy, command, environ, prefix, arguments, network, self.images)

    def about(self) -> dict[str, Any]:
        """The machine and what builds on it; neither names nor paths."""
        client = subprocess.run([self.docker, "--version"], capture_output=True, text=True, check=False).stdout
        return {
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load": round(os.getloadavg()[0], 1),
            "engine": self.images.client.version()["Version"],
            "client": client.removeprefix("Docker version ").partition(",")[0],
            "builder": self.tool.kind.value,
            "python": platform.python_version(),
        }


def arguments_of(step: Step, given: Mapping[str, str], ground: str) -> dict[str, str]:
    """The build arguments that the program would give this image."""
    found = {key: value for key, value in given.items() if key in step.recipe.arguments or "proxy" in key.lower()}
    return {**found, BASE: ground} if step.is_lowest else found


def copy_for_a_loop(folder: Path, copy: Path, steps: Iterable[Step], prefix: str) -> None:
    """The folders, with the names of the shelf's images replaced by the loop's own.

    The modes are those that the program gives its files, so that its build cache serves the loop as well.
    """
    steps = tuple(steps)
    known = "|".join(re.escape(step.name) for step in steps)
    for step in steps:
        shutil.copytree(folder / step.name, copy / step.name, symlinks=True)
        for path in (copy / step.name).rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)
        dockerfile = copy / step.name / "Dockerfile"
        text = dockerfile.read_text(encoding="utf-8")
        dockerfile.write_text(re.sub(rf"\b{PREFIX}({known})(?![\w.-])", rf"{prefix}/\1", text), encoding="utf-8")
