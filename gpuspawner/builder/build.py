"""Builds one image: with BuildKit through the docker command line, else with the classic builder through docker-py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from gpuspawner.builder.children import Children, Say
from gpuspawner.builder.context import packed
from gpuspawner.dockerd.translate import MAKE_ROOM
from gpuspawner.errors import BuildError
from gpuspawner.recipes import Folder

QUICK_SECONDS = 20.0

# BuildKit: "#8 [5/9] RUN ..." or "#8 [build 5/9] RUN ..."; the classic builder: "Step 5/9 : RUN ...".
_STEP = re.compile(r"(?:#\d+ \[(?:\S+ )?\s*(\d+)/(\d+)\]|Step (\d+)/(\d+) :) (.+)")
_VERSION = re.compile(r"Docker version (\d+)\.[^\s,]+")


class Kind(str, Enum):
    """How images are built."""

    BUILDX = "buildx"
    BUILDKIT = "the BuildKit of a docker program before 23"
    CLASSIC = "Docker's classic builder"


@dataclass(frozen=True)
class Tool:
    """What builds: a docker program on PATH, or none for the classic builder."""

    kind: Kind
    program: str = ""

    def command(self) -> tuple[str, ...]:
        """The words that begin a build."""
        if self.kind is Kind.BUILDX:
            # "default" is the engine that DOCKER_HOST or the context names; other builders have their own image store.
            return (self.program, "buildx", "build", "--builder", "default", "--load", "--progress=plain")
        if self.kind is Kind.BUILDKIT:
            return (self.program, "build", "--progress=plain")
        return (sys.executable, "-m", "gpuspawner.dockerd.classic")


def find_tool(environ: Mapping[str, str]) -> Tool:
    """What builds best on this machine.

    buildx, wherever on PATH a docker program has it; else a program before version 23, which has BuildKit built in;
    else the classic builder, which needs no program at all (a newer one without buildx would only fall back to it).
    """
    candidates: list[tuple[str, int]] = []
    seen: set[Path] = set()
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        program = Path(folder or ".") / "docker"
        if program.is_file() and os.access(program, os.X_OK) and program.resolve() not in seen:
            seen.add(program.resolve())
            version = _VERSION.search(_answer([str(program), "--version"], environ) or "")
            candidates.append((str(program), int(version[1]) if version else 0))
    for path, _ in candidates:
        if _answer([path, "buildx", "version"], environ) is not None:
            return Tool(Kind.BUILDX, path)
    for path, major in candidates:
        if 18 <= major < 23:
            return Tool(Kind.BUILDKIT, path)
    return Tool(Kind.CLASSIC)


def _answer(argv: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """What a quick command prints, None where it fails."""
    try:
        done = subprocess.run(
            argv,
            env=dict(environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QUICK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def step_of(line: str) -> str | None:
    """The step that a line of a build's output begins, as "5/9 RUN pip install", or None."""
    match = _STEP.match(line)
    if not match:
        return None
    number, total = match[1] or match[3], match[2] or match[4]
    return f"{number}/{total} {' '.join(match[5].split())}"


@dataclass(frozen=True)
class Job:
    """One image to build: what goes into it, and the name that it gets."""

    tag: str
    files: Folder = field(repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    network: str | None = None
    needs_buildkit: bool = False


class Builder:
    """Builds with one tool, in the engine that DOCKER_HOST names. From any thread, several at once."""

    def __init__(self, tool: Tool, environ: Mapping[str, str], children: Children) -> None:
        self.tool = tool
        self._children = children
        # Attestations are off: an engine without the containerd image store refuses them.
        self._environment = {**environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}

    def build(self, job: Job, say: Say) -> None:
        """Build one image; `say` gets every line of the output.

        Raises:
            BuildError: it cannot be built.
        """
        if job.needs_buildkit and self.tool.kind is Kind.CLASSIC:
            raise BuildError(
                f"The Dockerfile of {job.tag} uses RUN --mount or a heredoc, which needs BuildKit, and no docker "
                "program on PATH has it. Install it ('apt-get install docker-buildx' on Debian 13, "
                "docker-buildx-plugin from Docker's own archive), or write the Dockerfile without them."
            )
        argv = [*self.tool.command(), "--tag", job.tag]
        for name, value in sorted(job.labels.items()):
            argv += ["--label", f"{name}={value}"]
        for name, value in sorted(job.arguments.items()):
            argv += ["--build-arg", f"{name}={value}"]
        argv += ["--no-cache"] if job.no_cache else []
        argv += ["--network", job.network] if job.network else []
        argv += ["-"] if self.tool.program else []
        disk_full = False

        def listen(line: str) -> None:
            nonlocal disk_full
            disk_full = disk_full or "no space left on device" in line.lower()
            say(line)

        with tempfile.TemporaryFile() as context:
            with packed(job.files) as archive:
                context.write(archive.read())
            context.seek(0)
            full = f", because the disk of the Docker engine is full. {MAKE_ROOM}"
            if self._children.run(argv, listen, environ=self._environment, stdin=context) != 0:
                raise BuildError(f"The build of {job.tag} failed{full if disk_full else '.'}")
