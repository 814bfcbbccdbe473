"""Choices that are not offered: through every door a 400 with its own sentence, no container, and nothing saved."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from tests.hub.lab import PROFILES, Lab
from tests.hub.people import Answer, Person

NO_SUCH = "There is no profile {} for you: it may have been renamed or removed, or it belongs to another group."
ONLY_PROFILES = "Only a profile can be chosen here, not {}."
LONG = "x" * 1_000_000

BAD = [
    pytest.param({"profile": "nope"}, NO_SUCH.format("'nope'"), id="unknown profile"),
    pytest.param({"profile": "vision"}, NO_SUCH.format("'vision'"), id="profile of another group"),
    pytest.param({"profile": ["a", "b"]}, NO_SUCH.format("['a', 'b']"), id="list of profiles"),
    pytest.param({"profile": LONG}, "There is no profile 'xxxxxxxx", id="a megabyte"),
    pytest.param({"image": "evil"}, ONLY_PROFILES.format("'image'"), id="an image"),
    pytest.param({"gpu": "99"}, ONLY_PROFILES.format("'gpu'"), id="a gpu"),
    pytest.param({"profile": "gpu", "image": "evil"}, ONLY_PROFILES.format("'image'"), id="profile and image"),
    pytest.param({LONG: "1"}, "Only a profile can be chosen here, not 'xxxxxxxx", id="a megabyte of key"),
    pytest.param({"profile": "<script>alert(1)</script>"}, NO_SUCH.format("'<script>alert(1)</script>'"), id="html"),
    pytest.param({"profile": "100%s %d {0}"}, NO_SUCH.format("'100%s %d {0}'"), id="format signs"),
]
REST_ONLY = [
    pytest.param({"profile": ["a"]}, NO_SUCH.format("['a']"), id="list of one profile"),
    pytest.param({"gpu": 99}, ONLY_PROFILES.format("'gpu'"), id="a number of gpus"),
    pytest.param({"profile": None}, NO_SUCH.format("None"), id="null"),
    pytest.param({"profile": {"slug": "gpu"}}, NO_SUCH.format("{'slug': 'gpu'}"), id="object"),
    pytest.param({"profile": True}, NO_SUCH.format("True"), id="boolean"),
    pytest.param({"user_options": {"image": "evil"}}, ONLY_PROFILES.format("'image'"), id="the Hub's long form"),
]


def creates(lab: Lab) -> int:
    """How many containers the engine was asked for."""
    return sum(call.operation == "create" for call, _ in lab.engine.calls)


@pytest.fixture
def chosen(lab: Lab, alice: Person) -> int:
    """Alice has chosen a GPU profile last time. Gives the number of containers that were asked for until now."""
    alice.choose_last_time({"profile": "gpu"})
    return creates(lab)


def assert_clean(answer: Answer, said: str, sentence: str) -> None:
    """The answer is a 400 that says this sentence, without the Hub's or Python's own words around it."""
    assert answer.status == 400
    assert said.startswith(sentence), said[:300]
    assert len(said) < 400
    for word in ("Invalid user options", "SpawnException", "Traceback", "reason="):
        assert word not in answer.text


async def assert_nothing_happened(lab: Lab, alice: Person, chosen: int) -> None:
    """No container was asked for, nothing is held, and the choice of last time is still the saved one."""
    assert creates(lab) == chosen
    assert alice.saved_options == {"profile": "gpu"}
    assert lab.settings["failure_count"] == 0
    assert not lab.engine.containers
    if "gpuspawner_house" in lab.settings:
        await lab.nothing_is_left(alice)


@pytest.mark.fault(12)
@pytest.mark.parametrize(("options", "sentence"), [*BAD, *REST_ONLY])
async def test_by_rest(lab: Lab, alice: Person, chosen: int, options: dict[str, Any], sentence: str) -> None:
    """The body of the answer holds the sentence alone."""
    answer = await alice.start(options)
    assert_clean(answer, answer.message, sentence)
    await assert_nothing_happened(lab, alice, chosen)
    assert (await alice.start({})).status == 201
    assert alice.container().labels["gpuspawner.profile"] == "gpu"


@pytest.mark.fault(12)
@pytest.mark.parametrize(("options", "sentence"), [each for each in BAD if each.id != "list of profiles"])
async def test_by_form(lab: Lab, alice: Person, chosen: int, options: dict[str, str], sentence: str) -> None:
    """The form comes back with the sentence above it, as text and never as an element."""
    profile = options.get("profile")
    more = {key: value for key, value in options.items() if key != "profile"}
    answer = await alice.submit(profile, **more)
    assert_clean(answer, answer.form_error, sentence)
    assert answer.checked == "gpu"
    assert not [script for script in answer.page.find_all("script") if "alert(1)" in script.get_text()]
    await assert_nothing_happened(lab, alice, chosen)


@pytest.mark.fault(12)
@pytest.mark.parametrize(("options", "sentence"), [each for each in BAD if "megabyte" not in str(each.id)])
async def test_by_query(lab: Lab, alice: Person, chosen: int, options: dict[str, Any], sentence: str) -> None:
    """A link with a bad option ends at the form with the sentence."""
    query = urlencode({f"opt-{key}": value for key, value in options.items()}, doseq=True)
    answer = await alice.browse(f"spawn/alice?{query}")
    assert_clean(answer, answer.form_error, sentence)
    await assert_nothing_happened(lab, alice, chosen)


@pytest.mark.parametrize("body", [b"[1]", b'"gpu"', b"{", b"\xff"], ids=["list", "text", "half", "no utf-8"])
async def test_a_body_that_is_no_object(lab: Lab, alice: Person, chosen: int, body: bytes) -> None:
    """What is not JSON, or no object, never reaches a spawner."""
    answer = await alice.api("POST", "users/alice/server", raw=body)
    assert answer.status == 400
    assert "Traceback" not in answer.text
    await assert_nothing_happened(lab, alice, chosen)


async def test_a_profile_that_was_removed_since_the_last_choice(lab: Lab, alice: Person, chosen: int) -> None:
    """The start without options says so, the form offers the others, and a second start takes the default."""
    lab.configure(profile_list=[entry for entry in PROFILES if entry["slug"] != "gpu"])
    answer = await alice.start({})
    assert_clean(answer, answer.message, NO_SUCH.format("'gpu'"))
    assert creates(lab) == chosen
    assert (await alice.form()).checked == "cpu"
    assert (await alice.start({})).status == 201
    assert alice.container().labels["gpuspawner.profile"] == "cpu"


@pytest.mark.fault(12)
async def test_options_that_were_stored_without_starting_are_validated_when_used(lab: Lab, alice: Person) -> None:
    """Options set by PATCH are refused at the start, and do not stay in the way of the next one."""
    alice.choose_last_time({"profile": "cpu"})
    before = creates(lab)
    assert (await alice.api("PATCH", "users/alice/server", {"user_options": {"image": "evil"}})).status == 200
    answer = await alice.start()
    assert_clean(answer, answer.message, ONLY_PROFILES.format("'image'"))
    assert creates(lab) == before
    assert (await alice.start()).status == 201


async def test_who_is_offered_nothing_reads_it(lab: Lab, alice: Person) -> None:
    """With profiles for other groups only, the form and REST say whom to ask."""
    lab.configure(profile_list=[PROFILES[-1]])
    answer = await alice.start({})
    assert_clean(answer, answer.message, "No profile is offered to you: each belongs to a group that you are not in.")
    assert "No profile is offered to you" in (await alice.form()).page.get_text()


async def test_a_group_is_asked_for_at_each_start(lab: Lab) -> None:
    """Who has left a group cannot start its profile again from memory."""
    member = await lab.person("mia", "vision")
    member.choose_last_time({"profile": "vision"})
    member.user.groups.clear()
    lab.app.db.commit()
    answer = await member.start({})
    assert_clean(answer, answer.message, NO_SUCH.format("'vision'"))


@pytest.mark.parametrize("door", ["rest", "form"])
async def test_in_korean_for_who_reads_korean(alice: Person, door: str) -> None:
    """The language of the browser decides about the sentence."""
    if door == "rest":
        said = (await alice.start({"profile": "nope"}, language="ko-KR,ko;q=0.9,en;q=0.5")).message
    else:
        said = (await alice.submit("nope", language="ko-KR,ko;q=0.9,en;q=0.5")).form_error
    assert said.startswith("사용할 수 있는 프로필 중에 'nope' 프로필이 없습니다.")
