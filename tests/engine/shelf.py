"""A folder of images of its own on the private engine, and the program over it as an admin runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.standins.netns_engine import PrivateEngine

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "images/build_images.py"


@dataclass(frozen=True)
class Done:
    """How a run ended."""

    status: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """What `--json` printed."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    def results(self) -> dict[str, str]:
        """What became of each image."""
        assert "images" in self.answer, self
        return {image["name"]: image["result"] for image in self.answer["images"]}

    def image(self, name: str) -> dict[str, Any]:
        """Everything that was said about one image."""
        found: dict[str, Any] = next(image for image in self.answer["images"] if image["name"] == name)
        return found


@dataclass
class Shelf:
    """Image folders under `root`, built in `engine`. Their names begin with t-, but for copies of the project's own."""

    root: Path
    engine: PrivateEngine
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the image folders are."""
        return self.root / "images"

    def copy(self, name: str, new: str | None = None) -> None:
        """One of the project's own images, under another name if there is one; on `t-base` instead of `base` then."""
        target = self.folder / (new or name)
        shutil.copytree(ROOT / "images" / name, target)

    def write(self, image: str, **files: str) -> None:
        """Files of an image; `_` stands for the dot of a name."""
        (self.folder / image).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / image / name.replace("_", ".")).write_text(text)

    def command(self, *arguments: str) -> list[str]:
        """The words that start the program over these folders."""
        starter = self.root / "build_images.py"
        if not starter.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            starter.write_text(
                "import signal\nfrom pathlib import Path\nfrom gpuspawner.build_images import main\n"
                # As on a terminal: where the tests run in the background, a shell has switched it off.
                "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                f"main(Path({str(self.folder)!r}))\n"
            )
        return [sys.executable, str(starter), *arguments]

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the program: this engine, and a state folder of its own."""
        state = {"XDG_STATE_HOME": str(self.root / "state"), "DOCKER_HOST": self.engine.host}
        return {**os.environ, **state, **self.environment}

    def run(self, *arguments: str, seconds: float = 400) -> Done:
        """Run the program to its end."""
        done = subprocess.run(
            self.command(*arguments), env=self.environ, capture_output=True, text=True, timeout=seconds, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start the program and go on; at the end it is over in any case."""
        with subprocess.Popen(
            self.command(*arguments), env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            try:
                yield running
            finally:
                running.kill()

    def id(self, reference: str) -> str | None:
        """The id of an image, None where there is none of that name."""
        found = self.engine.docker("image", "inspect", "--format", "{{.Id}}", reference, check=False)
        return found if found.startswith("sha256:") else None

    def tags(self, name: str) -> set[str]:
        """The tags that an image of the shelf has in the engine."""
        return set(self.engine.docker("images", "--format", "{{.Tag}}", f"gpuspawner/{name}").split())

    def labels(self, reference: str) -> dict[str, str]:
        """The labels of an image."""
        found: dict[str, str] = json.loads(
            self.engine.docker("image", "inspect", "--format", "{{json .Config.Labels}}", reference)
        )
        return found

    def sweep(self, names: Sequence[str]) -> None:
        """Remove all that these images have left in the engine."""
        references = [f"gpuspawner/{name}:{tag}" for name in names for tag in self.tags(name)]
        if references:
            self.engine.docker("rmi", "--force", *references, check=False)
