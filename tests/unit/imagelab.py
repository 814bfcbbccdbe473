"""A folder of small images, a stand-in engine, and the program that an admin types, for the tests of `build_images`.

Real are the program, docker-py, the docker command line as far as it goes, and every image. Only the trial of a
candidate is replaced: what it finds is set by the test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gpuspawner.build_images import SETTINGS, actions, lock
from gpuspawner.build_images.command import program
from gpuspawner.builder import certificates, ground
from gpuspawner.candidates import Boot, Finding, Verdict
from gpuspawner.dockerd.images import Images
from tests.standins.engine import Image, StandinEngine
from tests.unit.fakedocker import FakeDocker

BASE = "debian:12-slim"
DOCKERFILES = {
    "base": f"ARG BASE={BASE}\nFROM ${{BASE}}\nARG PIP_INDEX_URL\nCOPY . /\n",
    "scipy": "FROM gpuspawner/base\nCOPY . /\n",
    "torch": "FROM gpuspawner/base\nCOPY . /\n",
    "vision": "FROM gpuspawner/torch\nCOPY . /\n",
}
_OF_THIS_MACHINE = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "http_proxy", "https_proxy", "no_proxy")
_ROOT = Path(__file__).parents[2]
# A process of its own: as in this one, the machine's certificates and its lock folder are not used.
_MAIN = """
import os
import signal
import sys
from pathlib import Path
from gpuspawner.build_images import main
from gpuspawner.builder import certificates

# As on a terminal: where the tests run in the background, a shell has switched it off.
signal.signal(signal.SIGINT, signal.default_int_handler)
certificates.HOST_BUNDLE = Path("/nowhere")
os._exit = sys.exit
if lock_folder := sys.argv.pop(2):
    from gpuspawner.build_images import lock
    lock._folder = lambda: Path(lock_folder)
try:
    main(Path(sys.argv.pop(1)))
finally:
    if not lock_folder:
        heavy = {"docker", "requests", "typer", "rich", "jupyterhub"} & set(sys.modules)
        print(sorted(heavy), file=sys.stderr)
"""


@dataclass(frozen=True)
class Asked:
    """One question to the trials."""

    name: str
    image: str
    parent: str | None
    yardstick: str | None
    smoke_tests: Mapping[str, str]


@dataclass
class RecordingTrials:
    """Judges every candidate as the test says, by the image's name; without a word, it is well."""

    name_of: Callable[[str], str]
    verdicts: dict[str, Verdict | Exception] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    hub_version: str = ""
    sweeps: int = 0
    holds: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)

    def check(
        self,
        image: str,
        *,
        parent: str | None,
        yardstick: str | None,
        smoke_tests: Mapping[str, str],
        say: Callable[[str], None],
    ) -> Verdict:
        """Note the question; with `holds`, answer only when all is stopped."""
        name = self.name_of(image)
        self.asked.append(Asked(name, image, parent, yardstick, smoke_tests))
        say(f"Trying {name}")
        if self.holds:
            assert self.stopped.wait(20), "nobody stopped this trial"
        found = self.verdicts.get(name, Verdict((), ("starts",), Boot(0.61, 0.5, 100 << 20), Boot(0.6, 0.5, 99 << 20)))
        if isinstance(found, Exception):
            raise found
        return found

    def sweep(self) -> None:
        """Count."""
        self.sweeps += 1

    def stop(self) -> None:
        """Let go of what is held."""
        self.stopped.set()


def bad(*texts: str) -> Verdict:
    """A candidate that does not pass."""
    return Verdict(tuple(Finding("starts", text) for text in texts), ("starts",))


class Lab:
    """The place. `with` an engine that has BASE in its registry."""

    def __init__(self, root: Path, engine: StandinEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.folder, self.engine = root, root / "lab/images", engine
        self.docker = FakeDocker.make(root / "bin")
        self.trials = RecordingTrials(self._name_of)
        self._clients: list[Any] = []
        self._seen = 0
        engine.add_image(BASE, size=1000, remote=True)
        for name, text in DOCKERFILES.items():
            self.write(name, "Dockerfile", text)
        for name in (*_OF_THIS_MACHINE, *map(str.upper, _OF_THIS_MACHINE), *SETTINGS, "GPUSPAWNER_CONFIG"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.docker.environ(engine.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_STATE_HOME", str(root / "state"))
        monkeypatch.setattr(certificates, "HOST_BUNDLE", root / "no bundle")
        monkeypatch.setattr(ground, "REGISTRY_SECONDS", 0.3)
        monkeypatch.setattr(actions, "REGISTRY_SECONDS", 0.3)
        monkeypatch.setattr(lock, "_folder", lambda: root)
        monkeypatch.setattr(actions, "Trials", self._trials_of_a_run)
        connect = Images.connect

        def connect_and_note(images: Images, timeout_seconds: float) -> Any:
            self._clients.append(connect(images, timeout_seconds))
            return self._clients[-1]

        monkeypatch.setattr(Images, "connect", connect_and_note)

    def _trials_of_a_run(self, boxes: object, *, hub_version: str) -> RecordingTrials:
        self.trials.hub_version = hub_version
        return self.trials

    def _name_of(self, image_id: str) -> str:
        found = [image.ref for image in self.engine.images if image.id == image_id]
        return found[0].removeprefix("gpuspawner/").partition(":")[0]

    # --- the folder ---------------------------------------------------------------------------------------------------

    def write(self, image: str, name: str, text: str) -> None:
        """A file of an image folder."""
        (self.folder / image / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / image / name).write_text(text)

    def remove(self, image: str, name: str) -> None:
        """The same, taken away."""
        (self.folder / image / name).unlink()

    # --- the program --------------------------------------------------------------------------------------------------

    def run(self, *argv: str, status: int | None = 0) -> Result:
        """The program, in this process; `status` None: whatever it ends with."""
        before = signal.getsignal(signal.SIGTERM)
        try:
            result = CliRunner().invoke(program(self.folder), argv, env={"COLUMNS": "200"})
        finally:
            signal.signal(signal.SIGTERM, before)
            for client in self._clients:
                client.close()
            self._clients.clear()
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert status is None or result.exit_code == status, result.output
        return result

    @contextmanager
    def running(self, *argv: str) -> Iterator[Future[Result]]:
        """The program in another thread, where no signal reaches it; it has to end well after the block."""
        with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
            # Only the main thread may say what a signal does.
            patch.setattr(signal, "signal", lambda *_: None)
            future = pool.submit(self.run, *argv)
            yield future
            future.result(20)

    def json(self, *argv: str, status: int = 0) -> dict[str, Any]:
        """What the program says with --json: one line and nothing else."""
        (line,) = self.run("--json", *argv, status=status).stdout.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found

    def results(self, *argv: str, status: int = 0) -> dict[str, str]:
        """What became of each image."""
        return {image["name"]: image["result"] for image in self.json(*argv, status=status)["images"]}

    @contextmanager
    def started(self, *argv: str) -> Iterator[subprocess.Popen[str]]:
        """The program as a process of its own, with the real trials, which would fail here; killed at the end."""
        with subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(self.folder), str(self.root), *argv],
            env={**os.environ, "PYTHONPATH": str(_ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def watch(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """The same to its end; the last line of its errors tells what it has imported. Only for what takes no lock."""
        environ = {**os.environ, "PYTHONPATH": str(_ROOT)}
        command = [sys.executable, "-c", _MAIN, str(self.folder), "", *argv]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)

    @property
    def engine_id(self) -> str:
        """What the lock of the engine is called by."""
        images = Images({"DOCKER_HOST": self.engine.url})
        try:
            return images.engine_id()
        finally:
            images.client.close()

    # --- what came of it ----------------------------------------------------------------------------------------------

    def built(self) -> list[str]:
        """The images that were built, in order, since this was last asked."""
        calls, seen = self.docker.builds(), self._seen
        self._seen = len(calls)
        return [call.values("--tag")[0].split(":")[0].removeprefix("gpuspawner/") for call in calls[seen:]]

    @property
    def ids(self) -> dict[str, str]:
        """The images of the engine: name and tag → id."""
        return {image.ref: image.id for image in self.engine.images}

    def image(self, name: str, tag: str = "latest") -> Image:
        """One image of the shelf."""
        return next(image for image in self.engine.images if image.ref == f"gpuspawner/{name}:{tag}")

    def tags(self, name: str) -> set[str]:
        """All tags of one image of the shelf."""
        found = {image.ref.partition(":")[::2] for image in self.engine.images}
        return {tag for repository, tag in found if repository == f"gpuspawner/{name}"}

    def digest(self, name: str) -> str:
        """The beginning of the hash of what servers start from."""
        return self.image(name).labels["gpuspawner.context-hash"][:12]
