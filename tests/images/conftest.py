"""Tests inside the built images, on the engine that DOCKER_HOST names.

A module says with `FAMILY = "base"` (or with several names) whose tests it holds: they run against that image and every
image built on it, as smoke_test.py does. What is not built, or cannot be reached, is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from gpuspawner.build_images.plan import read_folders
from gpuspawner.recipes import Recipe, in_order, read_shelf

IMAGES = Path(__file__).parents[2] / "images"
SHELF = read_shelf(read_folders(IMAGES))
AS_THE_HUB_DOES = {
    "init": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "mem_limit": "1g",
    "pids_limit": 512,
}


def line_of(recipe: Recipe) -> list[str]:
    """The image and all that it stands on."""
    return [ancestor.name for ancestor in in_order(SHELF, [recipe.name])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`image`: every image of the module's family. `smoke`: every image with each smoke_test.py of its line."""
    if "smoke" in metafunc.fixturenames:
        pairs = [(recipe.name, script) for recipe in SHELF.values() for script in line_of(recipe)]
        pairs = [(name, script) for name, script in pairs if (IMAGES / script / "smoke_test.py").is_file()]
        metafunc.parametrize(("image", "smoke"), pairs, indirect=["image"], ids=[f"{n}-{s}" for n, s in pairs])
    elif "image" in metafunc.fixturenames:
        family = metafunc.module.FAMILY
        family = {family} if isinstance(family, str) else set(family)
        names = [recipe.name for recipe in SHELF.values() if family & set(line_of(recipe))]
        metafunc.parametrize("image", names, indirect=True)


@dataclass(frozen=True)
class Done:
    """What a command in a container printed, and its exit status."""

    status: int
    output: str


class Box:
    """A container that stays until the test ends."""

    def __init__(self, container: Any) -> None:
        self.container = container

    def run(self, *argv: str, check: bool = True, **environment: str) -> Done:
        """Run a command in it as its user; fails the test where the command fails."""
        status, output = self.container.exec_run(list(argv), environment=environment)
        done = Done(status, output.decode(errors="replace"))
        assert not check or status == 0, f"{' '.join(argv)} ended with {status}:\n{done.output}"
        return done

    def put(self, name: str, content: bytes) -> str:
        """A file under /tmp, readable by everyone; its path."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
        self.container.put_archive("/tmp", packed.getvalue())
        return f"/tmp/{name}"

    def serve(self) -> float:
        """Start JupyterLab in it and wait for its first answer; the seconds that took."""
        return self.start(["jupyter", "lab", "--no-browser", "--ServerApp.token=x"], "/api?token=x")

    def start(self, argv: list[str], path: str, seconds: float = 60.0, **environment: str) -> float:
        """Start a server in it and wait until it answers a path with 200; the seconds that took."""
        began = time.monotonic()
        self.container.exec_run(argv, detach=True, environment=environment)
        while time.monotonic() - began < seconds:
            if self.status(path) == 200:
                return time.monotonic() - began
        processes = self.run("ps", "aux", check=False).output
        raise AssertionError(f"{argv[0]} did not answer within {seconds:g} seconds.\n{processes}")

    def status(self, path: str, *options: str, port: int = 8888) -> int:
        """The HTTP status of what it answers."""
        argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *options, f"http://127.0.0.1:{port}{path}"]
        return int(self.run(*argv, check=False).output or 0)

    def get(self, path: str) -> str:
        """What the server in it answers."""
        return self.run("curl", "-sfL", f"http://127.0.0.1:8888{path}?token=x").output


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """The engine that DOCKER_HOST names."""
    client = docker.from_env(timeout=120)
    try:
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        client.close()
        pytest.skip(f"no Docker engine answers (DOCKER_HOST): {error}")
    yield client
    client.close()


@pytest.fixture
def image(engine: Any, request: pytest.FixtureRequest) -> Any:
    """One built image of the shelf."""
    reference = SHELF[request.param].reference
    try:
        return engine.images.get(f"{reference}:latest")
    except docker.errors.ImageNotFound:
        pytest.skip(f"{reference} is not built: images/build_images.py {request.param}")


@pytest.fixture
def tidy() -> Iterator[contextlib.ExitStack]:
    """What has to be removed after the test, the newest first: a volume can only go after its containers."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def open_box(engine: Any, image: Any, tidy: contextlib.ExitStack) -> Callable[..., Box]:
    """Opens containers of the image, limited as the Hub limits them, without a network."""

    def open_one(**options: Any) -> Box:
        settings = {**AS_THE_HUB_DOES, "network_mode": "none", **options}
        container = engine.containers.run(image.id, ["sleep", "600"], detach=True, name=_name(), **settings)
        tidy.callback(container.remove, force=True)
        return Box(container)

    return open_one


@pytest.fixture
def home(engine: Any, tidy: contextlib.ExitStack) -> dict[str, dict[str, str]]:
    """A home volume, in the form that `open_box(volumes=...)` takes."""
    volume = engine.volumes.create(_name())
    tidy.callback(volume.remove, force=True)
    return {volume.name: {"bind": "/home/jovyan", "mode": "rw"}}


def _name() -> str:
    return f"gpuspawner-test-images-{uuid.uuid4().hex[:8]}"
