"""A profile whose image was never built: the Hub starts all the same, and log, form and REST name the command."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from traitlets.config import Config

from gpuspawner import config as config_module
from gpuspawner.config import report_missing_images
from gpuspawner.dockerd import Engine
from tests.hub.lab import PROFILES, Lab
from tests.hub.people import Person
from tests.hub.process import REPOSITORY, HubProcess, ports_in_a_row, running
from tests.standins.engine import EngineDown, Fault, Http500, NoSuchImage, StandinEngine

COMMAND = "images/build_images.py pytorch"
LINE = (
    "The image 'pytorch' was never built, so nobody can start 'One RTX 4090' and '8 GiB of an RTX 4090'. "
    f"Build it with: {COMMAND}"
)

SHIPPED = f"load_subconfig({str(REPOSITORY / 'jupyterhub_config.py')!r})\nc = get_config()\n"


async def test_the_hub_starts_and_says_it_once(tmp_path: Path) -> None:
    """The shipped configuration on an engine without pytorch: one line in the log, and the CPU profile works."""
    port = ports_in_a_row(1, 81)
    with StandinEngine() as engine:
        engine.add_image("gpuspawner/scipy")
        environment = {
            "DOCKER_HOST": engine.url,
            "GPUSPAWNER_PORT": str(port),
            "GPUSPAWNER_STATE": str(tmp_path / "state"),
            "GPUSPAWNER_FAKE_GPUS": "2x24GiB",
            "GPUSPAWNER_GPU_IMAGE": "pytorch",
            "GPUSPAWNER_SUBNET": "127.31.224.0/20",
        }
        hub = HubProcess(tmp_path, SHIPPED, port, environment)
        async with running(hub):
            (line,) = [line for line in hub.log.splitlines() if "never built" in line]
            assert line.startswith("[W ")
            assert line.endswith(LINE)
            await hub.api("POST", "users/alice")
            assert (await hub.api("POST", "users/alice/server", {"profile": "cpu"})).status in (201, 202)
            refused = await hub.api("POST", "users/alice/server", {"profile": "rtx4090"})
            assert refused.status == 400  # it runs already
            await hub.api("POST", "users/bob")
            refused = await hub.api("POST", "users/bob/server", {"profile": "rtx4090"})
            assert refused.status == 503
            assert refused.message.endswith(f"Choose another profile, or ask the admin to run: {COMMAND}")
            # Built while the Hub runs: no restart is needed.
            engine.add_image("gpuspawner/pytorch")
            assert (await hub.api("POST", "users/bob/server", {"profile": "rtx4090"})).status in (201, 202)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the Hub's logger says, whichever Hub of this process is the last one."""
    monkeypatch.setattr(config_module, "get_logger", lambda: logging.getLogger("a-hub"))
    return caplog


def lines(said: pytest.LogCaptureFixture) -> list[str]:
    """The warnings so far."""
    return [record.getMessage() for record in said.records if record.levelno >= logging.WARNING]


async def test_only_images_of_the_shelf_are_looked_for(lab: Lab, said: pytest.LogCaptureFixture) -> None:
    """A foreign image is fetched when it is wanted; one that is built is not talked about."""
    profiles = [*PROFILES, {"display_name": "Foreign", "image": "registry.example.org/lab/nb:1"}]
    config = Config({"GPUSpawner": {"profile_list": profiles}})
    engine = Engine({"base_url": lab.engine.url})
    report_missing_images(config, engine)
    engine.close()
    assert not lines(said)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(EngineDown(), id="engine down"),
        pytest.param(EngineDown(how="close"), id="engine hangs up"),
        pytest.param(Http500(on="inspect_image"), id="500"),
    ],
)
async def test_an_engine_that_does_not_tell_proves_nothing(
    lab: Lab, said: pytest.LogCaptureFixture, fault: Fault
) -> None:
    """Then the log says that, and no image is called missing."""
    engine = Engine({"base_url": lab.engine.url})
    engine.client.ping()
    with lab.engine.faults.during(fault):
        report_missing_images(Config({"GPUSpawner": {"profile_list": PROFILES}}), engine)
    engine.close()
    (line,) = lines(said)
    assert line.startswith("Whether every image is built cannot be known now: ")


async def test_the_form_says_who_can_help(lab: Lab, alice: Person, admin: Person) -> None:
    """A student reads whom to ask, an admin the command; nobody can choose the profile, and the others can be."""
    with lab.engine.faults.during(NoSuchImage("gpuspawner/pytorch*")):
        student, korean, boss = await alice.form(), await alice.form(language="ko"), await admin.form()
    for form in (student, boss):
        assert "image not built" in form.card("gpu")
        assert form.page.select_one("input[value=gpu][disabled]")
        assert form.checked == "cpu"
    assert "The admin has to build it first; choose another profile until then." in student.card("gpu")
    assert COMMAND not in student.text
    assert "관리자가 먼저 이미지를 만들어야 합니다." in korean.card("gpu")
    assert f"Build it with: {COMMAND}" in boss.card("gpu")


async def test_a_form_that_is_sent_all_the_same_is_refused(lab: Lab, alice: Person) -> None:
    """With the sentence above the form, and nothing is made."""
    with lab.engine.faults.during(NoSuchImage("gpuspawner/pytorch*")):
        answer = await alice.submit("gpu")
    assert answer.form_error == (
        "The image 'pytorch' of this profile is not on this server yet. "
        f"Choose another profile, or ask the admin to run: {COMMAND}"
    )
    await lab.nothing_is_left(alice)
