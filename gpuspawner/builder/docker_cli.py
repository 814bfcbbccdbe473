"""The docker command line: which of those on PATH can build what, and one method for each thing that is asked of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from gpuspawner.errors import GPUSpawnerError

Say = Callable[[str], None]

QUICK_SECONDS = 20.0

# BuildKit: "#8 [5/9] RUN ..." or "#8 [build 5/9] RUN ..."; the classic builder: "Step 5/9 : RUN ...".
_STEP = re.compile(r"(?:#\d+ \[(?:\S+ )?\s*(\d+)/(\d+)\]|Step (\d+)/(\d+) :) (.+)")
_VERSION = re.compile(r"Docker version (\d+)\.[^\s,]+")
_UNREACHABLE = ("cannot connect to the docker daemon", "is the docker daemon running", "no such host", "no such file")


class BuildError(GPUSpawnerError):
    """An image cannot be built: a sentence with the reason and what to do now."""


class Kind(str, Enum):
    """How a docker program builds."""

    BUILDX = "buildx"
    BUILDKIT = "the BuildKit of a docker program before 23"
    CLASSIC = "Docker's classic builder"


@dataclass(frozen=True)
class DockerProgram:
    """One docker program on PATH."""

    path: str
    kind: Kind

    def build_command(self) -> tuple[str, ...]:
        """The words that begin a build."""
        if self.kind is Kind.BUILDX:
            # "default" is the engine that DOCKER_HOST or the context names; other builders have their own image store.
            return (self.path, "buildx", "build", "--builder", "default", "--load", "--progress=plain")
        if self.kind is Kind.BUILDKIT:
            return (self.path, "build", "--progress=plain")
        return (self.path, "build")

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment in which it builds as its kind says.

        Attestations are off: an engine without the containerd image store refuses them.
        """
        buildkit = "0" if self.kind is Kind.CLASSIC else "1"
        return {**environ, "DOCKER_BUILDKIT": buildkit, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}


def find_program(environ: Mapping[str, str]) -> DockerProgram:
    """The docker program on PATH that builds best.

    buildx, wherever on PATH a docker program has it; else a program before version 23, which has BuildKit built in (a
    newer one without buildx falls back to the classic builder); else the classic builder.

    Raises:
        BuildError: there is no docker program.
    """
    candidates: list[tuple[str, int]] = []
    seen: set[Path] = set()
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        program = Path(folder or ".") / "docker"
        if program.is_file() and os.access(program, os.X_OK) and program.resolve() not in seen:
            seen.add(program.resolve())
            version = _VERSION.search(_answer([str(program), "--version"], environ) or "")
            candidates.append((str(program), int(version[1]) if version else 0))
    if not candidates:
        raise BuildError(
            "There is no docker program on PATH. Install it with 'apt-get install docker.io' "
            "(on Debian 13: 'apt-get install docker.io docker-cli docker-buildx')."
        )
    for path, _ in candidates:
        if _answer([path, "buildx", "version"], environ) is not None:
            return DockerProgram(path, Kind.BUILDX)
    for path, major in candidates:
        if 18 <= major < 23:
            return DockerProgram(path, Kind.BUILDKIT)
    return DockerProgram(candidates[0][0], Kind.CLASSIC)


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
class BuiltImage:
    """What the engine knows of an image."""

    id: str
    size_bytes: int
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """One image to build from one folder."""

    folder: Path
    tag: str
    labels: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    needs_buildkit: bool = False


class Builder:
    """One docker program, talking to the engine that DOCKER_HOST or its context names.

    Every method raises BuildError with a sentence where the engine or the program fails.
    """

    def __init__(self, program: DockerProgram, environ: Mapping[str, str]) -> None:
        self.program = program
        self.environment = program.environment(environ)
        self._network: str | None = None

    def check_engine(self) -> None:
        """Ask the engine for its version, so that a missing one is named as such and not as a failed build."""
        self._run("version", "--format", "{{.Server.Version}}")

    def image(self, reference: str) -> BuiltImage | None:
        """An image that the engine has, or None."""
        done = self._call("image", "inspect", reference)
        if done.returncode != 0:
            if "no such image" in done.stderr.lower():
                return None
            raise self._error(done)
        found = json.loads(done.stdout)[0]
        labels = (found.get("Config") or {}).get("Labels") or {}
        return BuiltImage(found["Id"], int(found.get("Size", 0)), labels)

    def tag(self, reference: str, new: str) -> None:
        """Give an image another name."""
        self._run("tag", reference, new)

    def build(self, job: Job, say: Say) -> None:
        """Build one image; `say` gets every line of the output."""
        if job.needs_buildkit and self.program.kind is Kind.CLASSIC:
            raise BuildError(
                f"{job.folder.name}/Dockerfile uses RUN --mount or a heredoc, which {self.program.path} cannot build: "
                "it has no buildx. Install it ('apt-get install docker-buildx' on Debian 13, docker-buildx-plugin from "
                "Docker's own archive), or write the Dockerfile without them."
            )
        argv = [*self.program.build_command(), "--tag", job.tag]
        for name, value in sorted(job.labels.items()):
            argv += ["--label", f"{name}={value}"]
        for name, value in sorted(job.arguments.items()):
            argv += ["--build-arg", f"{name}={value}"]
        argv += ["--no-cache"] if job.no_cache else []
        argv += ["--network", "host"] if self._build_network() == "host" else []
        if self._stream([*argv, str(job.folder)], say) != 0:
            raise BuildError(f"The build of {job.tag} failed.")

    def pull(self, reference: str, say: Say, *, answer_within_seconds: float) -> bool:
        """Pull an image; False where the registry refuses, or gives no answer in time."""
        return self._stream([self.program.path, "pull", reference], say, first_line_within=answer_within_seconds) == 0

    def load_tree(self, root: Path, reference: str) -> None:
        """Make an image of one layer from a folder that holds a whole system."""
        tar = subprocess.Popen(
            ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-c", "."], stdout=subprocess.PIPE
        )
        try:
            done = subprocess.run(
                [self.program.path, "import", "--change", 'CMD ["bash"]', "-", reference],
                stdin=tar.stdout, env=self.environment, capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
        finally:
            assert tar.stdout is not None  # noqa: S101  (asked for above)
            tar.stdout.close()
            packed = tar.wait()
        if done.returncode != 0:
            raise self._error(done)
        if packed != 0:
            raise BuildError(f"The files of {reference} could not be packed: tar ended with {packed}.")

    def _build_network(self) -> str:
        """An engine without the default bridge can only build in the host's network."""
        if self._network is None:
            self._network = "bridge" if self._call("network", "inspect", "bridge").returncode == 0 else "host"
        return self._network

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [self.program.path, *arguments]
        try:
            return subprocess.run(
                argv, env=self.environment, capture_output=True, text=True, errors="replace", timeout=60.0, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"The Docker engine did not answer 'docker {arguments[0]}' within 60 seconds.") from error
        except OSError as error:
            raise BuildError(f"{self.program.path} cannot be run: {error.strerror}.") from error

    def _run(self, *arguments: str) -> str:
        done = self._call(*arguments)
        if done.returncode != 0:
            raise self._error(done)
        return done.stdout

    def _error(self, done: subprocess.CompletedProcess[str]) -> BuildError:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        where = self.environment.get("DOCKER_HOST") or "its usual socket"
        if "permission denied" in done.stderr.lower():
            return BuildError(f"You may not use the Docker engine at {where}: use sudo, or join the group docker.")
        if any(words in done.stderr.lower() for words in _UNREACHABLE):
            return BuildError(f"The Docker engine does not answer at {where}. Start it: 'sudo systemctl start docker'.")
        return BuildError(f"Docker said: {said}")

    def _stream(self, argv: Sequence[str], say: Say, *, first_line_within: float | None = None) -> int:
        return stream(argv, say, environ=self.environment, first_line_within=first_line_within)


def stream(argv: Sequence[str], say: Say, *, environ: Mapping[str, str], first_line_within: float | None = None) -> int:
    """Run a program and hand over each line as it comes; the exit status.

    A program that prints nothing for `first_line_within` seconds is ended. One that is still running when this is left
    early (Ctrl-C) is ended as well.
    """
    try:
        process = subprocess.Popen(
            argv, env=dict(environ), text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{argv[0]} cannot be run: {error.strerror}.") from error
    assert process.stdout is not None  # noqa: S101  (asked for above)
    impatience = threading.Timer(first_line_within, process.terminate) if first_line_within else None
    if impatience:
        impatience.start()
    try:
        for line in process.stdout:
            # What the program says before it has asked anybody is no answer.
            if impatience and not line.startswith("Using default tag"):
                impatience.cancel()
            say(line.rstrip())
        return process.wait()
    finally:
        if impatience:
            impatience.cancel()
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
