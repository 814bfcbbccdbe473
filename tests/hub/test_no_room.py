"""Nothing fits: the form comes back with the sentence and the choice, REST answers 409, and nothing is saved."""

from __future__ import annotations

import pytest
import pytest_asyncio

from gpuspawner.texts import Text
from tests.hub.lab import PROFILES, Lab
from tests.hub.people import Answer, Person, until
from tests.standins.engine import EngineSlow

BUSY = (
    "You asked for one whole GPU (RTX 4090), but all 2 are in use. "
    "Choose a profile that is free, or try again when somebody has stopped a server."
)
BUSY_LINE = (
    "You asked for one whole GPU (RTX 4090), but all 2 are in use. "
    "Nobody else is waiting, and nobody can say when a GPU will be free. Press Start to join the line."
)


@pytest_asyncio.fixture(loop_scope="session")
async def full(lab: Lab, alice: Person, bob: Person) -> None:
    """Bob holds both cards, and alice chose the CPU profile last time."""
    alice.choose_last_time({"profile": "cpu"})
    assert (await bob.start({"profile": "two"})).status == 201


def assert_alone(answer: Answer, lab: Lab, alice: Person) -> None:
    """The answer names nobody else and nothing of Python, and nothing was saved, counted or made."""
    for word in ("bob", "SpawnException", "Traceback", "reason="):
        assert word not in answer.text
    assert alice.saved_options == {"profile": "cpu"}
    assert lab.settings["failure_count"] == 0
    assert not alice.containers


async def test_the_form_comes_back_with_the_sentence_and_the_choice(
    full: None, lab: Lab, alice: Person, bob: Person
) -> None:
    """The choice stays checked, can be sent again, and starts as soon as somebody has stopped."""
    answer = await alice.submit("gpu")
    assert (answer.status, answer.form_error, answer.checked) == (409, BUSY_LINE, "gpu")
    assert_alone(answer, lab, alice)
    await bob.stop()
    assert "stand-in notebook" in (await alice.submit("gpu")).text
    assert alice.saved_options == {"profile": "gpu"}


async def test_rest_answers_409_and_the_last_choice_stays(full: None, lab: Lab, alice: Person) -> None:
    """A script reads the same sentence, and the next start without options is the old choice."""
    answer = await alice.start({"profile": "gpu"})
    assert (answer.status, answer.message) == (409, BUSY)
    assert_alone(answer, lab, alice)
    assert (await alice.start({})).status == 201
    assert alice.container().labels["gpuspawner.profile"] == "cpu"


async def test_a_query_brings_the_form_with_the_sentence(full: None, lab: Lab, alice: Person) -> None:
    """A link to a full profile ends at the form."""
    answer = await alice.browse("spawn/alice?opt-profile=gpu")
    assert (answer.status, answer.form_error, answer.checked) == (409, BUSY_LINE, "gpu")
    assert_alone(answer, lab, alice)


async def test_the_form_shows_what_is_taken(full: None, lab: Lab, alice: Person) -> None:
    """Where nobody can wait, full profiles cannot be chosen and say so; the others can."""
    lab.house.queue_timeout = 0
    form = await alice.form()
    assert "taken" in form.card("gpu")
    assert "0 of 2 GPUs free now" in form.card("gpu")
    disabled = {str(radio["value"]) for radio in form.page.select("input[name=profile][disabled]")}
    assert disabled == {"gpu", "two", "share"}
    assert form.checked == "cpu"


async def test_korean_on_the_form_and_by_rest(full: None, alice: Person) -> None:
    """Both doors speak the language of the browser."""
    assert (await alice.start({"profile": "gpu"}, language="ko")).message.startswith("GPU 1장 전체 (RTX 4090): ")
    form = await alice.submit("gpu", language="ko")
    assert form.form_error.startswith("GPU 1장 전체 (RTX 4090): 2장 모두 사용 중입니다.")
    assert "RTX 4090 1장" in form.card("gpu")
    assert "GPU 2장 중 0장 사용 가능" in form.card("gpu")


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        pytest.param("en", BUSY, id="en"),
        pytest.param("ko", "GPU 1장 전체 (RTX 4090): 2장 모두 사용 중입니다.", id="ko"),
    ],
)
async def test_a_card_that_went_while_the_start_was_pending(
    lab: Lab, alice: Person, bob: Person, language: str, sentence: str
) -> None:
    """The form fitted and the start did not: the pending page and its stream say the clean sentence."""
    slow = EngineSlow(60, on="GET /containers/jupyter-alice/json", times=1)
    with lab.engine.faults.during(slow):
        pending = await alice.submit("gpu", language=language)
        assert "spawn-pending" in pending.url
        assert (await bob.start({"profile": "two"})).status == 201
        rest = await alice.follow()
        await until(lambda: slow.struck, "the start is under way")
    events = await rest()
    assert events[-1]["failed"] is True
    assert events[-1]["message"].startswith(f"Spawn failed: {sentence}")
    page = await alice.browse("spawn-pending/alice", language=language)
    assert page.status == 409
    assert sentence in page.page.get_text()
    assert "SpawnException" not in page.text
    assert lab.settings["failure_count"] == 0
    await until(lambda: not alice.containers, "nothing is left")
    assert alice.saved_options == {}


async def test_what_will_never_fit_says_so(lab: Lab, alice: Person) -> None:
    """Three cards of two: refused as too big, and shown as not on this server."""
    lab.configure(profile_list=[*PROFILES, {"display_name": "Three", "image": "pytorch", "gpu": {"count": 3}}])
    answer = await alice.start({"profile": "three"})
    assert answer.status == 409
    assert answer.message == (
        "You asked for 3 whole GPUs, but this server has only 2. Choose another profile, or tell the admin."
    )
    assert "not on this server" in (await alice.form()).card("three")


@pytest.mark.fault(48)
async def test_shares_are_counted(lab: Lab, alice: Person) -> None:
    """Two shares of 8 GiB fit on a card of 24 GiB with a reserve, a third needs the next card, a fifth does not fit."""
    for number in range(4):
        person = await lab.person(f"s{number}")
        assert (await person.start({"profile": "share"})).status == 201
    answer = await alice.start({"profile": "share"})
    assert (answer.status, answer.message.split(". ")[0]) == (
        409,
        "You asked for 8 GiB of one GPU, but no single card has that much left",
    )


async def test_what_cannot_be_known_is_not_leased(lab: Lab, alice: Person) -> None:
    """Without a driver that answers, GPU profiles are refused with the driver's trouble, and CPU profiles start."""
    lab.cards.trouble = Text("The NVIDIA driver does not answer.", "NVIDIA 드라이버가 응답하지 않습니다.")
    answer = await alice.start({"profile": "gpu"})
    assert (answer.status, answer.message) == (503, "The NVIDIA driver does not answer.")
    form = await alice.form()
    assert "cannot be counted" in form.card("gpu")
    assert "The NVIDIA driver does not answer." in form.page.get_text()
    assert (await alice.start({"profile": "cpu"})).status == 201


async def test_a_card_out_of_order_is_left_out(lab: Lab, alice: Person, bob: Person) -> None:
    """A sick card is not given to anybody, whatever is free on it."""
    lab.cards.break_down("GPU-aaaa")
    await alice.start({"profile": "gpu"})
    assert alice.container().gpus == ("GPU-bbbb",)
    answer = await bob.start({"profile": "two"})
    assert answer.status == 409
    assert "1 of 2 GPUs is out of order" in answer.message


async def test_the_spawn_metrics_count_a_refusal_with_its_reason(full: None, lab: Lab, alice: Person) -> None:
    """A full server is a failure with the reason "busy" in the Hub's own metrics, not an error."""
    await alice.start({"profile": "gpu"})
    text = (await lab.admin().browse("metrics")).text
    assert 'jupyterhub_server_spawn_duration_seconds_count{reason="busy",status="failure"}' in text
