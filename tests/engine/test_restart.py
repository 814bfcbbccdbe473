"""The Hub is killed, starts are cancelled, cards fail: nothing is lost, nothing is given twice, and people read why."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import docker
import pytest
import requests
from playwright.sync_api import expect

from tests.engine.lab import Lab, Person, eventually
from tests.standins.gpustate import DEFAULT_CARDS, GpuState
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

UUIDS = {card.uuid for card in DEFAULT_CARDS}


@pytest.fixture(scope="module", autouse=True)
def accounts(lab: Lab, admin: Person) -> None:
    """Users made over REST: this module is about servers, not about signing up."""
    for name in ("ada", "bob", "cho", "dan", "eve"):
        assert lab.api("POST", f"users/{name}").status_code == 201


@pytest.fixture(autouse=True)
def tidy(lab: Lab, engine: PrivateEngine) -> Iterator[None]:
    """A test that fails does not spoil the next one: cards and servers are as they were."""
    yield
    GpuState().write(engine.state_file)
    for user in leases(engine):
        stop(lab, user)


def freeze(engine: PrivateEngine, container: str) -> None:
    """Pause a container in the moment it runs, before anything in it can answer."""
    client = docker.APIClient(engine.host)
    deadline = time.monotonic() + 20
    try:
        while True:
            try:
                return client.pause(container)
            except docker.errors.APIError:
                assert time.monotonic() < deadline, f"{container} did not start"
    finally:
        client.close()


def leases(engine: PrivateEngine) -> dict[str, str]:
    """User → the cards on the label of their container, for every container that holds a lease."""
    form = '{{.Label "gpuspawner.user"}} {{.Label "gpuspawner.gpus"}}'
    lines = engine.docker("ps", "--all", "--format", form, "--filter", "label=gpuspawner.lease").splitlines()
    return {user: cards for user, _, cards in (line.partition(" ") for line in lines)}


def start(lab: Lab, user: str, profile: str = "rtx4090") -> requests.Response:
    """Start a server over REST; waits until the Hub has answered."""
    return lab.api("POST", f"users/{user}/server", json={"profile": profile})


def begin(lab: Lab, user: str, *, seconds: float) -> None:
    """Ask for a server and wait for the Hub's answer no longer than `seconds`: the start goes on."""
    with suppress(requests.Timeout):
        requests.post(
            f"{lab.url}/hub/api/users/{user}/server",
            headers={"Authorization": f"token {lab.token}"},
            json={"profile": "rtx4090"},
            timeout=seconds,
        )


def ready(lab: Lab, user: str) -> bool:
    """Whether the Hub says that a user's server is ready."""
    return bool(lab.server_state(user).get("ready"))


def answers(lab: Lab, user: str) -> bool:
    """Whether a user's server answers through the proxy."""
    return requests.get(f"{lab.url}/user/{user}/api", timeout=10).status_code == 200


def stop(lab: Lab, user: str) -> None:
    """Stop a server and wait until the Hub has forgotten it."""
    lab.api("DELETE", f"users/{user}/server")
    eventually(lambda: lab.server_state(user) == {}, f"{user}'s server still runs", 40)


@pytest.mark.fault(2, 22, 33)
def test_a_killed_hub_finds_both_leases_again(lab: Lab, engine: PrivateEngine) -> None:
    """`kill -9` with two students running and a third start under way: adopted, nothing twice, nothing left behind."""
    for user in ("ada", "bob"):
        start(lab, user)
        eventually(lambda user=user: ready(lab, user), f"{user} did not start", 60)
    before = leases(engine)
    assert set(before.values()) == UUIDS
    # A CPU start that is pending at the very moment.
    lab.api("POST", "users/cho/server", json={"profile": "cpu"}, stream=True)
    lab.kill()
    began = time.monotonic()
    lab.start()
    for user in ("ada", "bob"):
        eventually(lambda user=user: ready(lab, user) and answers(lab, user), f"{user}'s server was not adopted", 20)
    assert time.monotonic() - began < 30
    assert {user: leases(engine)[user] for user in before} == before
    refused = start(lab, "dan")
    assert refused.status_code == 409
    assert "all 2 are in use" in refused.json()["message"]
    assert lab.server_state("dan") == {}
    stop(lab, "cho")
    eventually(lambda: "cho" not in leases(engine), "the pending start left a container behind")
    stop(lab, "ada")
    stop(lab, "bob")
    assert leases(engine) == {}


@pytest.mark.fault(2)
@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4], ids=["at once", "while creating", "while booting"])
def test_a_start_that_is_pending_when_the_hub_is_killed(lab: Lab, engine: PrivateEngine, delay: float) -> None:
    """It leaves nothing behind or is adopted whole; its card is never given to a second server meanwhile."""
    begin(lab, "cho", seconds=0.1 + delay)
    lab.kill()
    lab.start()
    eventually(lambda: not lab.server_state("cho").get("pending"), "the start hangs", 30)
    for user in ("dan", "eve"):
        start(lab, user)
    held = [cards for cards in leases(engine).values() if cards]
    assert len(held) == len(set(held)) == 2
    if ready(lab, "cho"):
        assert answers(lab, "cho")
    else:
        eventually(lambda: "cho" not in leases(engine), "a dead start keeps its container")
    for user in ("cho", "dan", "eve"):
        stop(lab, user)
    eventually(lambda: leases(engine) == {}, "a container is left")


@pytest.mark.parametrize("moment", ["at once", "while it boots"])
def test_a_cancelled_start_is_over_within_a_second_or_so(lab: Lab, engine: PrivateEngine, moment: str) -> None:
    """REST DELETE while the server starts: an answer at once, no phantom server, the card free in the end."""
    begin(lab, "ada", seconds=0.05)
    if moment == "while it boots":
        freeze(engine, "jupyter-ada")
    eventually(lambda: lab.server_state("ada").get("pending"), "the start is not under way", 5)
    began = time.monotonic()
    answer = lab.api("DELETE", "users/ada/server")
    took = time.monotonic() - began
    assert answer.status_code == 204
    # The Hub itself waits a second for the start to end; the rest is this machine's load.
    assert took < 3
    assert lab.server_state("ada") == {}
    eventually(lambda: leases(engine) == {}, "the cancelled start left a container")
    assert start(lab, "ada").status_code in (201, 202)
    eventually(lambda: ready(lab, "ada"), "the next start did not work", 60)
    stop(lab, "ada")


def test_the_stop_button_of_the_pending_page(lab: Lab, engine: PrivateEngine, student: Callable[..., Person]) -> None:
    """A student who changes their mind on the pending page is back at once and can choose again."""
    somebody = student("flo")
    somebody.pick("cpu", wait=False)
    # A frozen container never answers, so that the start is pending for as long as it takes.
    freeze(engine, "jupyter-flo")
    somebody.page.wait_for_url(re.compile("spawn-pending"))
    expect(somebody.page.locator("body")).to_contain_text("JupyterLab is starting")
    somebody.picture("pending")
    somebody.page.get_by_role("button", name=re.compile("Stop|Cancel")).or_(
        somebody.page.get_by_role("link", name=re.compile("Stop|Cancel"))
    ).first.click()
    eventually(lambda: lab.server_state("flo") == {}, "the server is still there", 10)
    eventually(lambda: "flo" not in leases(engine), "the stopped start left a container", 30)
    somebody.see("/hub/spawn")
    expect(somebody.page.locator("input[name=profile][value=cpu]")).to_be_enabled()


def test_a_gpu_that_does_not_arrive_is_a_sentence_and_nothing_stays(
    lab: Lab, engine: PrivateEngine, student: Callable[..., Person]
) -> None:
    """The toolkit ignores the request in silence: the student reads on the page which part failed."""
    somebody = student("gus")
    GpuState(hook="ignore").write(engine.state_file)
    try:
        somebody.pick("rtx4090")
        expect(somebody.page.locator("body")).to_contain_text("did not arrive", timeout=40_000)
        expect(somebody.page.locator("body")).to_contain_text("/dev/nvidia")
        expect(somebody.page.locator("body")).not_to_contain_text("SpawnException")
        somebody.picture("gpu-not-arrived")
    finally:
        GpuState().write(engine.state_file)
    eventually(lambda: leases(engine) == {}, "a container is left")
    assert start(lab, "gus").status_code in (201, 202)
    eventually(lambda: ready(lab, "gus"), "the start does not work once the toolkit does", 60)
    stop(lab, "gus")


def test_a_card_that_is_lost_between_choice_and_start(lab: Lab, engine: PrivateEngine) -> None:
    """NVIDIA's hook refuses the card: a sentence, no container, no lease."""
    GpuState(hook_error="nvidia-container-cli: device error: GPU-x: unknown device").write(engine.state_file)
    try:
        answer = start(lab, "ada")
        assert answer.status_code == 503
        assert "could not be attached" in answer.json()["message"]
    finally:
        GpuState().write(engine.state_file)
    eventually(lambda: leases(engine) == {}, "a container is left")


def test_a_card_that_falls_off_the_bus_is_left_out(lab: Lab, engine: PrivateEngine, admin: Person) -> None:
    """NVML says lost: the other card is still given, and the lost one is not."""
    lost, well = (card.uuid for card in DEFAULT_CARDS)
    GpuState().with_card(lost, lost=True).write(engine.state_file)
    try:
        eventually(
            lambda: "1 of 1 GPU" in admin.see("/hub/spawn/ada").locator("form").inner_text(),
            "the form still counts the lost card",
        )
        admin.picture("form-lost-card")
        start(lab, "ada")
        eventually(lambda: ready(lab, "ada"), "ada did not start", 60)
        assert leases(engine) == {"ada": well}
        assert start(lab, "bob").status_code == 409
    finally:
        GpuState().write(engine.state_file)
    stop(lab, "ada")


def test_a_server_that_is_killed_has_last_words(
    lab: Lab, engine: PrivateEngine, student: Callable[..., Person]
) -> None:
    """The dead container is read before it is removed: the next form says why, and the log has the record."""
    somebody = student("hal")
    start(lab, "hal", "cpu")
    eventually(lambda: ready(lab, "hal"), "hal did not start", 60)
    engine.docker("kill", "jupyter-hal")
    somebody.see("/hub/home")
    eventually(lambda: lab.server_state("hal") == {}, "the Hub did not notice", 60)
    expect(somebody.see("/hub/spawn").locator("body")).to_contain_text("exit code 137")
    somebody.picture("last-words")
    assert "out of memory: False" in lab.log
    assert "hal" not in leases(engine)
