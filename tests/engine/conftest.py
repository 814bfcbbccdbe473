"""The engine tier: a private dockerd with the stub hook, the NVML stand-in, real images, a real Hub, a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.engine.lab import Lab, Person, browser
from tests.standins.gpustate import GpuState, build_nvml, nvml_environment
from tests.standins.netns_engine import NAME_VARIABLE, PrivateEngine

SCENES: dict[str, tuple[Lab, list[Person]]] = {}
"""Test module → the lab and the people of it, for the report of a failure."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """When a test fails: what every browser shows, every container's state, and the end of the Hub's log."""
    report = yield
    if report.failed and (scene := SCENES.get(item.nodeid.split("::")[0])):
        lab, people = scene
        for somebody in people:
            somebody.picture(f"failed-{item.name}-{somebody.name}")
        engine = PrivateEngine.from_environment()
        report.sections.append(("containers", engine.docker("ps", "--all", "--no-trunc", check=False)))
        report.sections.append(("the Hub's log", lab.log[-6000:]))
    return report


@pytest.fixture(scope="session")
def engine() -> PrivateEngine:
    """The engine in whose network namespace this process runs."""
    if NAME_VARIABLE not in os.environ:
        pytest.skip("runs inside a private engine's network namespace: start it with `scripts/test engine`")
    return PrivateEngine.from_environment()


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in for NVIDIA's library, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler: install gcc")
    return build_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all people; each has a context of their own."""
    if shutil.which("chromium") is None:
        pytest.skip("there is no Chromium: install the package chromium")
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def gpus(engine: PrivateEngine) -> Iterator[GpuState]:
    """Two RTX 4090s, as the hook and NVML see them."""
    state = GpuState()
    state.write(engine.state_file)
    yield state
    state.write(engine.state_file)


@pytest.fixture(scope="module")
def lab(engine: PrivateEngine, gpus: GpuState, nvml: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Hub that runs; the engine's containers and volumes are those of this module's tests."""
    for image in ("gpuspawner/base:latest", "gpuspawner/scipy:latest"):
        if not engine.docker("images", "--quiet", image):
            pytest.fail(f"The image {image} is not in the test engine: `scripts/test engine` builds it first.")
    sweep(engine)
    made = Lab(
        tmp_path_factory.mktemp("lab"),
        {"DOCKER_HOST": engine.host, "GPUSPAWNER_GPU_IMAGE": "scipy", **nvml_environment(nvml, engine.state_file)},
    )
    made.start()
    yield made
    made.stop()
    sweep(engine)


def sweep(engine: PrivateEngine) -> None:
    """Remove the containers and homes of earlier labs."""
    if containers := engine.docker("ps", "--all", "--quiet", "--filter", "label=gpuspawner.lease").split():
        engine.docker("rm", "--force", "--volumes", *containers)
    if volumes := engine.docker("volume", "ls", "--quiet", "--filter", "label=gpuspawner.home").split():
        engine.docker("volume", "rm", "--force", *volumes)


@pytest.fixture(scope="module")
def person(request: pytest.FixtureRequest, lab: Lab, chromium: Browser) -> Iterator[Callable[..., Person]]:
    """Makes people: `person("kim", locale="ko-KR")`, with a browser context's options."""
    people: list[Person] = []
    SCENES[request.node.nodeid] = (lab, people)

    def make(name: str, **options: object) -> Person:
        context = chromium.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}, **options})
        people.append(Person(lab, context, name))
        return people[-1]

    yield make
    del SCENES[request.node.nodeid]
    for somebody in people:
        somebody.context.close()


@pytest.fixture(scope="module")
def admin(lab: Lab, person: Callable[..., Person]) -> Person:
    """The first admin, logged in with the generated password; the lab gets a token of theirs."""
    somebody = person("admin")
    somebody.log_in(lab.admin_password)
    lab.token = somebody.make_token()
    return somebody


@pytest.fixture(scope="module")
def student(admin: Person, person: Callable[..., Person]) -> Callable[..., Person]:
    """Makes students who have signed up, were approved in the browser, and are logged in."""

    def make(name: str, **options: object) -> Person:
        somebody = person(name, **options)
        somebody.sign_up()
        admin.approve(name)
        somebody.log_in()
        return somebody

    return make
