"""The main job, from an empty state folder to a kernel that sees its GPU. The steps build on each other, in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.engine.lab import Lab, Person, eventually
from tests.standins.gpustate import DEFAULT_CARDS
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

LIST_DEVICES = "import glob; print(sorted(glob.glob('/dev/nvidia[0-9]*')) or 'none')"
KEEP_A_FILE = "open('kept.txt', 'w').write('still here'); " + LIST_DEVICES


class Story:
    """What earlier steps of this module leave for later ones."""

    first: Person
    second: Person
    third: Person
    queued: Person
    first_device: str


@pytest.fixture(scope="module")
def story() -> Story:
    """The people of this module."""
    return Story()


def held(engine: PrivateEngine, user: str) -> str:
    """The cards on the labels of a user's container."""
    return engine.docker("inspect", "--format", '{{index .Config.Labels "gpuspawner.gpus"}}', f"jupyter-{user}")


def test_a_student_signs_up_is_approved_and_works_with_one_gpu(
    lab: Lab, engine: PrivateEngine, student: Callable[..., Person], story: Story
) -> None:
    """Sign-up, approval, form, JupyterLab, and a kernel that lists exactly the leased device."""
    story.first = student("first")
    story.first.see("/hub/spawn")
    story.first.picture("form")
    story.first.start("rtx4090")
    story.first_device = story.first.run(KEEP_A_FILE)
    leased = held(engine, "first")
    minors = {card.uuid: card.minor for card in DEFAULT_CARDS}
    assert story.first_device == f"['/dev/nvidia{minors[leased]}']"
    story.first.picture("lab")


def test_the_second_student_gets_the_other_card(
    engine: PrivateEngine, student: Callable[..., Person], story: Story
) -> None:
    """Whole cards are exclusive."""
    story.second = student("second")
    story.second.start("rtx4090")
    assert story.second.run(LIST_DEVICES) != story.first_device
    assert {held(engine, "first"), held(engine, "second")} == {card.uuid for card in DEFAULT_CARDS}


def test_the_third_student_reads_why_not(lab: Lab, student: Callable[..., Person], story: Story) -> None:
    """The form says that it is taken; a choice from before it was taken is refused in words."""
    story.third = student("third", locale="ko-KR", viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = story.third.see("/hub/spawn")
    taken = page.locator("input[name=profile][value=rtx4090]")
    expect(page.locator("input[name=profile][value=cpu]")).to_be_checked()
    expect(page.locator("label", has=taken)).to_contain_text("대기 중인 사람이 없습니다. 예상 차례는")
    story.third.picture("form-full-phone-korean-dark")
    # Somebody was quicker between the form and the click: the page had shown it as free.
    page.locator("input[name=wait-for][value=rtx4090]").evaluate("field => field.remove()")
    taken.check()
    page.get_by_role("button", name="Start").click()
    refusal = page.locator(".spawn-error-msg")
    expect(refusal).to_contain_text("2장 모두 사용 중입니다")
    expect(page.locator("input[name=profile][value=rtx4090]")).to_be_checked()
    story.third.picture("refusal-phone-korean-dark")
    answer = lab.api("POST", "users/third/server", json={"profile": "rtx4090"})
    assert answer.status_code == 409
    assert "all 2 are in use" in answer.json()["message"]
    assert lab.server_state("third") == {}


def test_the_third_and_the_fourth_student_wait_in_the_line(
    lab: Lab, student: Callable[..., Person], story: Story
) -> None:
    """The form that came back joins with one click; each sees the place on the Hub's own pending page."""
    page = story.third.page
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#progress-message")).to_contain_text("다음 차례입니다.")
    story.third.picture("waiting-phone-korean-dark")
    story.queued = student("queued")
    story.queued.pick("rtx4090")
    expect(story.queued.page.locator("#progress-message")).to_contain_text("You are number 2 in the line; a GPU")
    story.queued.picture("waiting")
    assert [lab.server_state(name)["pending"] for name in ("third", "queued")] == ["spawn", "spawn"]


def test_the_admin_stops_the_first_server_and_the_third_student_gets_its_card(
    lab: Lab, admin: Person, engine: PrivateEngine, story: Story
) -> None:
    """The Hub's own panel shows the profile and stops the server; JupyterLab of the one who waited opens by itself."""
    freed = held(engine, "first")
    page = admin.see("/hub/admin")
    row = page.locator("tr", has=page.get_by_text("first", exact=True)).first
    expect(row).to_contain_text("rtx4090")
    admin.picture("admin")
    row.get_by_role("button", name="Stop Server").click()
    eventually(lambda: lab.server_state("first") == {}, "the first server still runs")
    # JupyterLab shows no notebook on a phone's width.
    story.third.page.set_viewport_size({"width": 1280, "height": 900})
    story.third.wait_for_lab()
    assert held(engine, "third") == freed
    assert story.third.run(LIST_DEVICES) == story.first_device


def test_the_fourth_student_presses_stop_and_the_line_is_empty(
    lab: Lab, engine: PrivateEngine, student: Callable[..., Person], story: Story
) -> None:
    """After moving up: nothing of the wait is left, and a newcomer finds nobody waiting."""
    page = story.queued.page
    expect(page.locator("#progress-message")).to_contain_text("You are next in the line")
    page.get_by_role("button", name="Stop Server").click()
    eventually(lambda: lab.server_state("queued") == {}, "the fourth student still waits")
    assert engine.docker("ps", "--all", "--quiet", "--filter", "name=jupyter-queued") == ""
    form = story.queued.see("/hub/spawn")
    taken = form.locator("label", has=form.locator("input[name=profile][value=rtx4090]"))
    expect(taken).to_contain_text("Nobody else is waiting")


def test_a_student_sees_the_time_left_and_gets_more(story: Story) -> None:
    """On the Hub's home page, with one click; the page says the new end."""
    page = story.second.see("/hub/home")
    time_left = page.locator(".gpuspawner-time")
    before = time_left.locator("span").inner_text()
    assert before.startswith("Your server may run until ")
    promised = time_left.get_by_role("button").inner_text().removeprefix("Extend until ")
    story.second.picture("home-time")
    time_left.get_by_role("button").click()
    expect(time_left.locator("span")).to_contain_text(f"Your server may run until {promised} (12 h")
    story.third.page.set_viewport_size({"width": 360, "height": 740})
    story.third.see("/hub/home")
    story.third.picture("home-time-phone-korean-dark")


def test_the_admin_starts_a_students_server_with_the_last_profile(lab: Lab, admin: Person, story: Story) -> None:
    """ "Start Server" of the panel sends no options: the last choice counts, and here it is full, so it says why."""
    page = admin.see("/hub/admin")
    row = page.locator("tr", has=page.get_by_text("first", exact=True)).first
    row.get_by_role("button", name="Start Server").click()
    expect(page.locator(".alert").first).to_be_visible()
    assert lab.server_state("first") == {}
    lab.api("DELETE", "users/second/server")
    eventually(lambda: lab.server_state("second") == {}, "the second server still runs")
    page = admin.see("/hub/admin")
    row = page.locator("tr", has=page.get_by_text("first", exact=True)).first
    row.get_by_role("button", name="Start Server").click()
    eventually(lambda: lab.server_state("first").get("ready"), "the server did not start", 40)
    assert lab.server_state("first")["user_options"] == {"profile": "rtx4090"}


def test_the_home_lasts(engine: PrivateEngine, story: Story) -> None:
    """The file of the first session is there in the next one, in another container."""
    story.first.see("/user/first/lab?reset")
    story.first.wait_for_lab()
    assert story.first.run("print(open('kept.txt').read())") == "still here"


def test_a_cpu_profile_sees_no_gpu(engine: PrivateEngine, lab: Lab, student: Callable[..., Person]) -> None:
    """`{}` over REST is the default profile, and it has no device."""
    somebody = student("fourth")
    assert lab.api("POST", "users/fourth/server", json={}).status_code in (201, 202)
    somebody.see("/user/fourth/lab")
    somebody.wait_for_lab()
    assert somebody.run(LIST_DEVICES) == "none"
    assert "NVIDIA_VISIBLE_DEVICES=void" in engine.docker("inspect", "--format", "{{.Config.Env}}", "jupyter-fourth")
