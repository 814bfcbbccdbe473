"""A newer image while servers run: the home page tells the student, `gpuspawner status` the admin, a restart ends it.

The steps build on each other, in order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from tests.engine.conftest import sweep
from tests.engine.lab import Lab, Person, eventually
from tests.standins.gpustate import GpuState, nvml_environment
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

# A name of our own, on the image of the shelf: other tests use that one.
IMAGE = "newer-image-test/lab:1"
PHONE = {"viewport": {"width": 360, "height": 740}}


class Story:
    """What earlier steps of this module leave for later ones."""

    student: Person
    on_the_phone: Person


@pytest.fixture(scope="module")
def story() -> Story:
    """The people of this module."""
    return Story()


@pytest.fixture(scope="module")
def lab(engine: PrivateEngine, gpus: GpuState, nvml: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Hub whose GPU profiles use an image that this module may replace."""
    if not engine.docker("images", "--quiet", "gpuspawner/scipy:latest"):
        pytest.fail("The image gpuspawner/scipy is not in the test engine: `scripts/test engine` builds it first.")
    sweep(engine)
    engine.docker("tag", "gpuspawner/scipy:latest", IMAGE)
    environment = {"DOCKER_HOST": engine.host, **nvml_environment(nvml, engine.state_file)}
    made = Lab(tmp_path_factory.mktemp("lab"), {**environment, "GPUSPAWNER_GPU_IMAGE": IMAGE})
    made.start()
    yield made
    made.stop()
    sweep(engine)
    engine.docker("rmi", "--force", IMAGE)


def build_again(engine: PrivateEngine) -> None:
    """Move the tag to another image, as a refresh does: a child with nothing more than a label."""
    engine.docker("build", "--tag", IMAGE, "-", stdin=b"FROM gpuspawner/scipy:latest\nLABEL newer=yes\n")


def notice(person: Person) -> Locator:
    """The sentence above the home page, on a page that was just opened."""
    return person.see("/hub/home").locator(".gpuspawner-newer-environment")


def status(lab: Lab, *arguments: str, columns: int = 80) -> str:
    """What `gpuspawner status` prints for the admin of this machine, without the Hub's help."""
    done = subprocess.run(
        [Path(sys.executable).parent / "gpuspawner", "status", *arguments],
        env={**os.environ, **lab.environment, "COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def server_of(lab: Lab, user: str, server: str = "") -> dict[str, Any]:
    """One server in the JSON of `gpuspawner status`."""
    servers = json.loads(status(lab, "--json"))["servers"]
    (found,) = [each for each in servers if (each["user"], each["server"]) == (user, server)]
    return dict(found)


def test_nothing_is_said_about_the_newest_image(lab: Lab, student: Callable[..., Person], story: Story) -> None:
    """A server that was just started."""
    story.student = student("park")
    story.student.start("rtx4090")
    expect(notice(story.student)).to_have_count(0)
    assert server_of(lab, "park")["environment"] == "current"


def test_the_student_reads_that_a_newer_environment_is_ready(
    lab: Lab, engine: PrivateEngine, person: Callable[..., Person], story: Story
) -> None:
    """As soon as the tag has moved, for the server that runs and not for one that starts now; in both languages."""
    build_again(engine)
    eventually(lambda: notice(story.student).count(), "no notice", 30)
    assert lab.api("POST", "users/park/servers/exp-1", json={"profile": "rtx4090-8g"}).status_code in (201, 202)
    eventually(lambda: lab.server_state("park", "exp-1").get("ready"), "the second server did not start", 40)
    expect(notice(story.student)).to_contain_text("My Server still runs the older one. Restart to get it")
    story.student.picture("newer-environment")
    story.on_the_phone = person("park", locale="ko-KR", color_scheme="dark", **PHONE)
    story.on_the_phone.log_in()
    expect(notice(story.on_the_phone)).to_contain_text("새 실행 환경이 준비되었습니다.")
    width = story.on_the_phone.page.evaluate("document.querySelector('.gpuspawner-newer-environment').scrollWidth")
    assert width <= PHONE["viewport"]["width"]
    story.on_the_phone.picture("newer-environment-phone-korean-dark")


def test_the_admin_sees_it_in_the_status(lab: Lab) -> None:
    """On a narrow terminal and a wide one, without losing a name."""
    assert server_of(lab, "park")["environment"] == "older"
    assert server_of(lab, "park", "exp-1")["environment"] == "current"
    for columns in (80, 200):
        printed = status(lab, columns=columns)
        assert all(len(line) <= columns for line in printed.splitlines())
        for word in ("park/exp-1", "rtx4090-8g", "8 GiB of #", "older", "1 server runs an older image"):
            assert word in printed


def test_it_is_still_known_after_the_hub_was_killed(lab: Lab, story: Story) -> None:
    """The facts are on the container and in the engine."""
    lab.kill()
    lab.start()
    eventually(lambda: notice(story.student).count(), "no notice after the restart", 30)


def test_a_restart_of_the_server_ends_it(lab: Lab, story: Story) -> None:
    """Stop on the home page, start, and nothing is left to say."""
    page = story.student.see("/hub/home")
    page.locator("#stop").click()
    eventually(lambda: lab.server_state("park") == {}, "the server still runs")
    story.student.start("rtx4090")
    expect(notice(story.student)).to_have_count(0)
    expect(notice(story.on_the_phone)).to_have_count(0)
    assert server_of(lab, "park")["environment"] == "current"
