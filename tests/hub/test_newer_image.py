"""A server of an older image than a restart would give: said on the home page, to its owner only, while it is true."""

from __future__ import annotations

import time

import pytest

from gpuspawner import house
from tests.hub.lab import PROFILES, Lab
from tests.hub.people import Person
from tests.standins.engine import EngineDown, EngineSlow, Http500, NoSuchImage
from tests.standins.engine.state import Image

LEAD = "A newer environment is ready."


@pytest.fixture(autouse=True)
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an image means is not remembered between two pages."""
    monkeypatch.setattr(house, "MEANING_SECONDS", 0.0)


def build_again(lab: Lab, name: str = "scipy") -> None:
    """Let the tag of an image of the shelf move to another one, as a refresh does."""
    lab.engine.add_image(f"gpuspawner/{name}", env={"HOME": "/home/jovyan"})


def roll_back(lab: Lab, image: Image) -> None:
    """Let a tag mean again what it meant before."""
    lab.engine._do(lambda: lab.engine._store.images.__setitem__(image.ref, image))


async def notice(person: Person, language: str = "") -> str:
    """The words above the home page, in one line; "" where there are none."""
    answer = await person.browse("home", language=language)
    assert answer.status == 200
    assert answer.page.select_one("#start"), "the Hub's own page is there"
    boxes = answer.page.select(".gpuspawner-newer-environment")
    assert len(boxes) <= 1
    return " ".join(boxes[0].get_text().split()) if boxes else ""


async def test_nothing_is_said_while_the_tag_has_not_moved(lab: Lab, alice: Person) -> None:
    """Neither without a server, nor about one of the newest image, nor when another image was built."""
    assert await notice(alice) == ""
    await alice.start({"profile": "cpu"})
    assert await notice(alice) == ""
    build_again(lab, "pytorch")
    assert await notice(alice) == ""


async def test_the_default_server_runs_an_older_image(lab: Lab, alice: Person) -> None:
    """What is ready, which server is meant, what to do, and what stays."""
    await alice.start({"profile": "cpu"})
    build_again(lab)
    assert await notice(alice) == (
        f"{LEAD} My Server still runs the older one. "
        "Restart to get it: save your work, stop the server, start it again. "
        "The files in your home folder stay; running kernels end."
    )


async def test_named_servers_are_named(lab: Lab, alice: Person) -> None:
    """Each with the name that its owner gave it, as text; those of another image are not in the list."""
    await alice.start({"profile": "cpu"}, "first")
    await alice.start({"display_name": "Vision <b>&", "user_options": {"profile": "cpu"}}, "second")
    await alice.start({"profile": "gpu"}, "third")
    assert await notice(alice) == ""
    build_again(lab)
    for spawner in alice.user.spawners.values():
        await spawner.poll()
    said = await notice(alice)
    assert "“first”, “Vision <b>&” still run the older one." in said
    assert "third" not in said
    assert "My Server" not in said


async def test_it_is_said_in_korean(lab: Lab, alice: Person) -> None:
    """In the language of this browser, whatever the form was opened in; and marked as such for a screen reader."""
    await alice.form(language="en")
    await alice.start({"profile": "cpu"})
    build_again(lab)
    said = await notice(alice, "ko-KR,ko;q=0.9,en;q=0.8")
    assert said.startswith("새 실행 환경이 준비되었습니다. 이전 환경으로 실행 중인 서버: 기본 서버(My Server).")
    assert "홈 폴더의 파일은 그대로 남고" in said
    page = await alice.browse("home", language="ko")
    assert page.page.select_one(".gpuspawner-newer-environment[lang=ko]")
    assert (await notice(alice, "en-US")).startswith(LEAD)


async def test_it_is_gone_after_a_restart(lab: Lab, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: what was heard of the image before the restart is not held against the new server."""
    await alice.start({"profile": "cpu"})
    assert await notice(alice) == ""
    monkeypatch.setattr(house, "MEANING_SECONDS", 3600.0)
    build_again(lab)
    await alice.stop()
    await alice.start({"profile": "cpu"})
    assert await notice(alice) == ""
    assert alice.container().image.id == next(i.id for i in lab.engine.images if i.ref == "gpuspawner/scipy:latest")


async def test_it_is_gone_after_a_rollback(lab: Lab, alice: Person) -> None:
    """When the tag means again what runs, there is nothing to restart for."""
    before = next(image for image in lab.engine.images if image.ref == "gpuspawner/scipy:latest")
    await alice.start({"profile": "cpu"})
    build_again(lab)
    assert (await notice(alice)).startswith(LEAD)
    roll_back(lab, before)
    assert await notice(alice) == ""


async def test_any_tag_can_move(lab: Lab, alice: Person) -> None:
    """An image that is not of the shelf, pulled again by the admin."""
    lab.configure(profile_list=[{"display_name": "Foreign", "image": "registry.example.org/lab/nb:1"}])
    lab.engine.add_image("registry.example.org/lab/nb:1")
    await alice.start({})
    assert await notice(alice) == ""
    lab.engine.add_image("registry.example.org/lab/nb:1")
    assert (await notice(alice)).startswith(LEAD)


async def test_a_profile_that_has_another_image_now(lab: Lab, alice: Person) -> None:
    """The profile counts, not the tag that the server was started from; one that is gone promises nothing."""
    await alice.start({"profile": "cpu"})
    home = alice.spawner.house
    home.catalogue = type(home.catalogue).parse([{**PROFILES[0], "image": "pytorch"}])
    assert (await notice(alice)).startswith(LEAD)
    home.catalogue = type(home.catalogue).parse([{**PROFILES[0], "slug": "other"}])
    assert await notice(alice) == ""


async def test_nobody_reads_it_about_the_server_of_somebody_else(lab: Lab, alice: Person, bob: Person) -> None:
    """Neither another student nor the admin."""
    await alice.start({"profile": "cpu"})
    build_again(lab)
    await bob.start({"profile": "cpu"})
    assert (await notice(alice)).startswith(LEAD)
    assert await notice(bob) == ""
    assert await notice(lab.admin()) == ""


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(EngineDown(), id="engine down"),
        pytest.param(EngineDown(how="close"), id="engine hangs up"),
        pytest.param(Http500(on="inspect_image"), id="500"),
        pytest.param(NoSuchImage(), id="image removed"),
    ],
)
async def test_what_cannot_be_known_is_not_said(lab: Lab, alice: Person, fault: EngineDown) -> None:
    """The home page comes all the same, without the notice; with it again when the engine is back."""
    await alice.start({"profile": "cpu"})
    build_again(lab)
    assert (await notice(alice)).startswith(LEAD)
    with lab.engine.faults.during(fault):
        assert await notice(alice) == ""
    assert (await notice(alice)).startswith(LEAD)


async def test_an_image_look_up_that_hangs_delays_neither_poll_nor_home_page(
    lab: Lab, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll never asks for images; the page waits a moment, and however often it is reloaded there is one call."""
    monkeypatch.setattr(house, "MEANING_PATIENCE_SECONDS", 0.2)
    await alice.start({"profile": "cpu"})
    build_again(lab)
    with lab.engine.faults.during(EngineSlow(60, on="inspect_image")) as slow:
        began = time.monotonic()
        for _ in range(4):
            assert await notice(alice) == ""
        assert await alice.spawner.poll() is None
        assert time.monotonic() - began < 5
        assert slow.struck == 1


async def test_many_servers_ask_for_their_image_once(
    lab: Lab, alice: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tag means is heard once for everybody who looks within a few seconds."""
    monkeypatch.setattr(house, "MEANING_SECONDS", 3600.0)
    await alice.start({"profile": "cpu"})
    await alice.start({"profile": "cpu"}, "second")
    await bob.start({"profile": "cpu"})
    build_again(lab)
    before = len([call for call, _ in lab.engine.calls if call.operation == "inspect_image"])
    for person in (alice, bob, alice):
        assert (await notice(person)).startswith(LEAD)
    assert len([call for call, _ in lab.engine.calls if call.operation == "inspect_image"]) == before + 1


async def test_it_is_known_after_a_restart_of_the_hub(lab: Lab, alice: Person) -> None:
    """The facts are the container's: a spawner made anew knows them after the poll that every Hub begins with."""
    await alice.start({"profile": "cpu"})
    build_again(lab)
    alice.user.spawners.pop("")
    lab.configure()
    assert await alice.spawner.poll() is None
    assert (await notice(alice)).startswith(LEAD)


async def test_a_hub_with_another_spawner_has_its_own_home_page(
    lab: Lab, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template is for every spawner: one that knows nothing of images is not asked."""
    monkeypatch.delattr("gpuspawner.spawner.GPUSpawner.newer_environment")
    await alice.start({"profile": "cpu"})
    build_again(lab)
    assert await notice(alice) == ""
