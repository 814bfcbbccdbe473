"""Named faults of engine, image and cards: each a sentence, nothing left behind, and a start that works afterwards."""

from __future__ import annotations

import logging

import pytest

from gpuspawner import launch
from tests.hub.lab import PROFILES, Lab
from tests.hub.people import Answer, Person, until
from tests.standins.engine import (
    CreateConflict,
    DiesOnBoot,
    DiskFull,
    EngineDown,
    EngineSlow,
    Fault,
    GpuNodeMissing,
    HookFails,
    Http500,
    ImageHasNoHub,
    NeverAnswers,
    NoDeviceDriver,
    NoSuchImage,
    RemovalInProgress,
    StartFails,
)

TRY_AGAIN = " Try again in a minute; if it stays so, tell the admin."
DOWN = "The Docker engine of this server does not answer." + TRY_AGAIN
FAILED = "The Docker engine could not start your server." + TRY_AGAIN
SLOW = "The Docker engine is too slow to answer at the moment." + TRY_AGAIN
FULL = "The disk of this server is full, so no server can start. Please tell the admin."
DEVICE = "The GPU that was leased for you could not be attached to your server: it may have failed a moment ago."
UNFIT = "The image of this profile cannot run a notebook server (jupyterhub-singleuser is missing in it)."
MISSING = (
    "The image 'pytorch' of this profile is not on this server yet. "
    "Choose another profile, or ask the admin to run: images/build_images.py pytorch"
)
OUT_OF_MEMORY = "Your server ran out of memory (16 GiB) and was stopped."
DIED = "Your server ended by itself with exit code 1. Its last words were: “ImportError: no kernel”."

FAULTS = [
    pytest.param(EngineDown(), 503, DOWN, id="engine down"),
    pytest.param(EngineDown(how="close"), 503, DOWN, id="engine hangs up"),
    pytest.param(EngineSlow(60, on="create"), 503, SLOW, id="create too slow"),
    pytest.param(EngineSlow(60, on="start"), 503, SLOW, id="start too slow"),
    pytest.param(CreateConflict(times=None), 503, FAILED, id="name always taken"),
    pytest.param(StartFails(), 503, FAILED, id="start fails"),
    pytest.param(DiskFull("create"), 503, FULL, id="disk full at create"),
    pytest.param(DiskFull("start"), 503, FULL, id="disk full at start"),
    pytest.param(HookFails(), 503, DEVICE, id="hook fails"),
    pytest.param(NoDeviceDriver(), 503, DEVICE, id="no toolkit"),
    pytest.param(NoSuchImage(), 503, MISSING, id="image never built"),
    pytest.param(ImageHasNoHub(), 503, UNFIT, id="image without a hub"),
    pytest.param(DiesOnBoot(127), 503, UNFIT, id="command not found in the image"),
    pytest.param(DiesOnBoot(1, logs=["Traceback", "ImportError: no kernel"]), 500, DIED, id="dies"),
    pytest.param(
        DiesOnBoot(1, logs=["ImportError: no kernel"], after_seconds=0.4), 500, DIED, id="dies a little later"
    ),
    pytest.param(DiesOnBoot(oom=True), 500, OUT_OF_MEMORY, id="out of memory"),
    pytest.param(
        GpuNodeMissing(),
        503,
        "The GPU did not arrive in your server: the device /dev/nvidia0 is missing in the container.",
        id="card did not arrive",
    ),
    *(
        pytest.param(Http500(on=operation), 503, FAILED, id=f"500 at {operation}")
        for operation in (
            "inspect_image",
            "list",
            "info",
            "create_volume",
            "create",
            "start",
            "inspect",
            "exec",
            "exec_start",
        )
    ),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a sick engine waits a part of a second only."""
    monkeypatch.setattr(launch, "WAIT_FOR_UNDOING_SECONDS", 0.3)
    monkeypatch.setattr(launch, "RETRY_REMOVAL_SECONDS", (0.1,))


def assert_clean(answer: Answer, sentence: str) -> None:
    """The sentence reaches REST alone, without the engine's, the Hub's or Python's words."""
    assert answer.message.startswith(sentence), answer.message
    for word in ("SpawnException", "Traceback (", "the engine failed", "overlay2", "nvidia-container-cli", "OCI"):
        assert word not in answer.text


@pytest.mark.fault(14, 27)
@pytest.mark.parametrize(("fault", "status", "sentence"), FAULTS)
async def test_a_fault_is_a_sentence_and_leaves_nothing(
    lab: Lab, alice: Person, fault: Fault, status: int, sentence: str
) -> None:
    """Each fault has its sentence; then no container, no lease and no reservation is left, and a start works."""
    lab.configure(engine_timeout=1.0)
    with lab.engine.faults.during(fault):
        answer = await alice.start({"profile": "gpu"})
    assert answer.status == status, answer.text
    assert_clean(answer, sentence)
    await lab.nothing_is_left(alice)
    assert (await alice.start({"profile": "gpu"})).status == 201
    assert alice.container().gpus == ("GPU-aaaa",)


@pytest.mark.fault(36)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(CreateConflict(times=1), id="name taken once"),
        pytest.param(CreateConflict(times=2), id="name taken twice"),
        pytest.param(RemovalInProgress(times=2), id="removal under way"),
    ],
)
async def test_what_passes_by_itself_is_waited_for(lab: Lab, alice: Person, fault: Fault) -> None:
    """The name of a container that is just being removed is not the student's trouble."""
    with lab.engine.faults.during(fault):
        assert (await alice.start({"profile": "gpu"})).status == 201


async def test_the_log_holds_the_whole_record_of_a_death(
    lab: Lab, alice: Person, caplog: pytest.LogCaptureFixture
) -> None:
    """Exit code and the last log lines are in the Hub's log before the container is removed."""
    caplog.set_level(logging.WARNING)
    with lab.engine.faults.during(DiesOnBoot(3, logs=["first line", "last line"])):
        await alice.start({"profile": "gpu"})
    (record,) = [r.getMessage() for r in caplog.records if "could not start" in r.getMessage()]
    assert "alice" in record
    assert "exit code 3" in record
    assert "first line\n    last line" in record


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        pytest.param(Http500(on="create", message="the engine's own words"), "the engine's own words", id="500"),
        pytest.param(HookFails("nvidia-container-cli: oops"), "nvidia-container-cli: oops", id="hook"),
        pytest.param(GpuNodeMissing(), "the container printed", id="arrival"),
    ],
)
async def test_the_log_holds_the_engines_own_words(
    lab: Lab, alice: Person, caplog: pytest.LogCaptureFixture, fault: Fault, detail: str
) -> None:
    """What the student does not read, the admin does."""
    caplog.set_level(logging.WARNING)
    with lab.engine.faults.during(fault):
        await alice.start({"profile": "gpu"})
    assert any("could not start" in r.getMessage() and detail in r.getMessage() for r in caplog.records)


async def test_no_traceback_is_logged_for_a_refusal(lab: Lab, alice: Person, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is an event of everyday life, not an error of the program."""
    with lab.engine.faults.during(StartFails()):
        await alice.start({"profile": "gpu"})
    await alice.start({"profile": "nope"})
    assert not [record for record in caplog.records if record.exc_info and record.name != "tornado.access"]


@pytest.mark.fault(40)
async def test_a_server_that_never_answers_is_given_up_in_time(lab: Lab, alice: Person) -> None:
    """Before the Hub's own limit, which has no words, the student reads how far the start came."""
    lab.configure(start_timeout=4)
    with lab.engine.faults.during(NeverAnswers()):
        answer = await alice.start({"profile": "gpu"})
    assert answer.status == 504
    assert answer.message == (
        "Your server did not start within 1 seconds (last step: JupyterLab is starting). "
        "Try again; if it happens twice, tell the admin."
    )
    await lab.nothing_is_left(alice)


async def test_a_card_lost_between_choice_and_start(lab: Lab, alice: Person) -> None:
    """The engine does not find the card any more: a sentence, and the next start takes the other one."""
    cards = lab.engine.gpus
    lab.engine.gpus = {"GPU-bbbb": 1}
    try:
        answer = await alice.start({"profile": "gpu"})
        assert_clean(answer, DEVICE)
        await lab.nothing_is_left(alice)
        lab.cards.lose("GPU-aaaa")
        assert (await alice.start({"profile": "gpu"})).status == 201
        assert alice.container().gpus == ("GPU-bbbb",)
    finally:
        lab.engine.gpus = cards


async def test_a_card_that_drops_off_while_the_server_starts(lab: Lab, alice: Person) -> None:
    """The driver does not list the leased card any more when the container runs: it is stopped with a sentence."""
    lab.answer_at_once()
    slow = EngineSlow(60, on="start")
    with lab.engine.faults.during(slow):
        await alice.start({"profile": "gpu"})
        await until(lambda: slow.struck, "the container is being started")
        lab.cards.lose("GPU-aaaa")
    events = await alice.events()
    assert events[-1]["message"].startswith(
        "Spawn failed: The GPU that was leased for you has dropped off this server."
    )
    await lab.nothing_is_left(alice)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        pytest.param(EngineDown(), "서버의 Docker 엔진이 응답하지 않습니다.", id="engine down"),
        pytest.param(DiesOnBoot(oom=True), "메모리 (16 GiB)가 부족하여 서버가 종료되었습니다.", id="out of memory"),
        pytest.param(NoSuchImage(), "이 프로필의 이미지 'pytorch'가 아직 서버에 없습니다.", id="no image"),
        pytest.param(DiskFull(), "서버의 디스크가 가득 차서 시작할 수 없습니다.", id="disk full"),
    ],
)
async def test_faults_speak_korean(lab: Lab, alice: Person, fault: Fault, sentence: str) -> None:
    """The sentence of a fault is in the language of the request."""
    with lab.engine.faults.during(fault):
        answer = await alice.start({"profile": "gpu"}, language="ko")
    assert answer.message.startswith(sentence)


async def test_a_failed_start_is_told_on_the_page_of_the_server(lab: Lab, alice: Person) -> None:
    """The page that says "Spawn failed" says why."""
    with lab.engine.faults.during(StartFails()):
        await alice.start({"profile": "gpu"})
    page = await alice.browse("spawn-pending/alice")
    assert FAILED in page.page.get_text()


async def test_the_form_says_what_is_not_built(lab: Lab, alice: Person) -> None:
    """A profile whose image is not there cannot be chosen, and says why; one of a sick engine can be tried."""
    with lab.engine.faults.during(NoSuchImage("gpuspawner/pytorch*")):
        form = await alice.form()
    assert "image not built" in form.card("gpu")
    assert form.page.select_one("input[value=gpu][disabled]")
    with lab.engine.faults.during(EngineDown()):
        form = await alice.form()
    assert "image not built" not in form.text
    assert "The Docker engine of this server does not answer." in form.page.get_text()
    assert "cannot be counted" in form.card("gpu")


async def test_a_foreign_image_is_pulled_once(lab: Lab, alice: Person) -> None:
    """An image with a tag of its own that is missing is pulled; the pending page says that this takes a while."""
    lab.configure(profile_list=[{"display_name": "Foreign", "image": "registry.example.org/lab/nb:1"}])
    lab.engine.add_image("registry.example.org/lab/nb:1", remote=True)
    assert (await alice.start({})).status == 201
    assert alice.container().config["Image"] == "registry.example.org/lab/nb:1"


async def test_a_foreign_image_that_cannot_be_pulled(lab: Lab, alice: Person) -> None:
    """The admin is told which command fetches it."""
    lab.configure(profile_list=[{"display_name": "Foreign", "image": "registry.example.org/lab/gone:1"}])
    answer = await alice.start({})
    assert answer.status == 503
    assert "docker pull registry.example.org/lab/gone:1" in answer.message
    await lab.nothing_is_left(alice)


async def test_an_image_of_the_shelf_is_never_pulled(lab: Lab, alice: Person) -> None:
    """A missing shelf image is built by the admin; its name is not looked for in a public registry."""
    lab.configure(profile_list=[{**PROFILES[0], "image": "tensorflow"}])
    answer = await alice.start({})
    assert "images/build_images.py tensorflow" in answer.message
    assert not [call for call, _ in lab.engine.calls if call.operation == "pull" and "tensorflow" in call.image]


async def test_an_unknown_network_is_a_sentence(lab: Lab, alice: Person) -> None:
    """DockerSpawner's bare exception about a network does not reach the student."""
    lab.configure(network_name="nowhere")
    answer = await alice.start({"profile": "gpu"})
    assert_clean(answer, FAILED)
    await lab.nothing_is_left(alice)
