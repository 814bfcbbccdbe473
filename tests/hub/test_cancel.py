"""A start that is cancelled is over within a second, whatever it waits for, and nothing of it stays."""

from __future__ import annotations

import time

import pytest

from gpuspawner import launch
from gpuspawner.leases import Owner
from tests.hub.lab import Lab
from tests.hub.people import Person, until
from tests.standins.engine import EngineSlow, Fault, SlowBoot

# The Hub itself waits for one second between cancelling a start and stopping the server. The rest is room for a
# machine that is busy with other things.
ANSWERED_WITHIN_SECONDS = 3.0

OF_ALICE = "/containers/jupyter-alice"
STEPS = [
    pytest.param(EngineSlow(60, on="DELETE /containers/*", times=1), id="remove"),
    pytest.param(EngineSlow(60, on="inspect_image", times=1), id="inspect_image"),
    pytest.param(EngineSlow(60, on="list", times=1), id="list"),
    pytest.param(EngineSlow(60, on="info", times=1), id="info"),
    pytest.param(EngineSlow(60, on="create_volume", times=1), id="create_volume"),
    pytest.param(EngineSlow(60, on="create", times=1), id="create"),
    pytest.param(EngineSlow(60, on="start", times=1), id="start"),
    pytest.param(EngineSlow(60, on="inspect", container="jupyter-alice", times=1), id="inspect"),
    pytest.param(EngineSlow(60, on="exec", times=1), id="exec"),
    pytest.param(EngineSlow(60, on="exec_start", times=1), id="exec_start"),
    pytest.param(SlowBoot(60, times=1), id="boot"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean-up that fails is tried again soon."""
    monkeypatch.setattr(launch, "RETRY_REMOVAL_SECONDS", (0.1,))


def leave_something(lab: Lab) -> None:
    """A container with alice's name that an earlier Hub has left, so that there is something to remove first."""
    client = lab.house.engine.client
    client.create_container("gpuspawner/scipy", name="jupyter-alice")


@pytest.mark.fault(14)
@pytest.mark.parametrize("step", STEPS)
async def test_a_start_is_cancelled_at_each_step(lab: Lab, alice: Person, step: Fault) -> None:
    """DELETE answers 204 at once; model and stream say stopped; container and card are gone; the next start works."""
    lab.answer_at_once()
    await alice.form()  # makes the house, and waits for what it looks at in the beginning
    leave_something(lab)
    with lab.engine.faults.during(step):
        assert (await alice.start({"profile": "gpu"})).status == 202
        stream = lab.background(alice.events())
        await until(lambda: step.struck, "the start has come to the slow step")
        began = time.monotonic()
        answer = await alice.stop()
        assert (answer.status, answer.text) == (204, "")
        assert time.monotonic() - began < ANSWERED_WITHIN_SECONDS
        assert await alice.model() == {}
        events = await stream
        assert (events[-1]["message"], events[-1]["failed"]) == ("Spawn cancelled", True)
        assert not any("ready" in event for event in events)
    await lab.nothing_is_left(alice)
    lab.answer_when_done()
    assert (await alice.start({"profile": "gpu"})).status == 201
    assert alice.container().gpus == ("GPU-aaaa",)


@pytest.mark.fault(4)
async def test_the_card_is_held_until_the_late_container_is_gone(lab: Lab, alice: Person, bob: Person) -> None:
    """A create call that is still under way after the cancel keeps its card, and what it makes is removed."""
    lab.answer_at_once()
    slow = EngineSlow(60, on="create", container="jupyter-alice", times=1)
    with lab.engine.faults.during(slow):
        await alice.start({"profile": "two"})
        await until(lambda: slow.struck, "the create call is under way")
        await alice.stop()
        assert set(await lab.leased()) == {"GPU-aaaa", "GPU-bbbb"}
        lab.answer_when_done()
        assert (await bob.start({"profile": "gpu"})).status == 409
    await lab.nothing_is_left(alice)
    assert (await bob.start({"profile": "gpu"})).status == 201


async def test_a_start_right_after_a_cancel_waits_for_the_clean_up(lab: Lab, alice: Person) -> None:
    """Cancel and start again while the engine still works on the first: one container in the end, and it is ready."""
    lab.answer_at_once()
    slow = EngineSlow(60, on="create", times=1)
    with lab.engine.faults.during(slow):
        await alice.start({"profile": "two"})
        await until(lambda: slow.struck, "the create call is under way")
        assert (await alice.stop()).status == 204
        assert Owner("alice") in lab.house.undoing
        await alice.start({"profile": "two"})
        model = await alice.model()
        assert (model["pending"], model["ready"]) == ("spawn", False)
    events = await alice.events()
    assert events[-1]["ready"] is True
    assert alice.container().running


async def test_the_stop_button_of_the_pending_page(lab: Lab, alice: Person) -> None:
    """The browser's DELETE, with a cookie and not a token, does the same."""
    slow = SlowBoot(60)
    with lab.engine.faults.during(slow):
        page = await alice.submit("gpu")
        assert "spawn-pending" in page.url
        await until(lambda: slow.struck, "the server boots")
        answer = await alice.browse(f"api/users/alice/server?_xsrf={alice._xsrf()}", "DELETE")
        assert answer.status == 204
        await lab.nothing_is_left(alice)
    assert (await alice.form()).checked == "gpu"


async def test_a_named_server_is_cancelled_alone(lab: Lab, alice: Person) -> None:
    """The default server of the same person runs on."""
    await alice.start({"profile": "gpu"})
    lab.answer_at_once()
    slow = SlowBoot(60, container="*--exp")
    with lab.engine.faults.during(slow):
        await alice.start({"profile": "gpu"}, server="exp")
        await until(lambda: slow.struck, "the second server boots")
        assert (await alice.stop("exp")).status == 204
        await until(lambda: len(alice.containers) == 1, "one container is left")
    assert (await alice.model())["ready"] is True
    assert await lab.leased() == {"GPU-aaaa": None}


async def test_an_engine_that_is_down_when_the_cancel_comes(lab: Lab, alice: Person) -> None:
    """The answer does not wait for the engine; the container goes as soon as the engine is back."""
    lab.answer_at_once()
    boot = SlowBoot(60)
    with lab.engine.faults.during(boot):
        await alice.start({"profile": "gpu"})
        await until(lambda: boot.struck, "the server boots")
        # The engine's calls hang: an engine that is down would end the start by itself.
        with lab.engine.faults.during(EngineSlow(60)):
            began = time.monotonic()
            assert (await alice.stop()).status == 204
            assert time.monotonic() - began < ANSWERED_WITHIN_SECONDS
            assert alice.containers
        await lab.nothing_is_left(alice)
