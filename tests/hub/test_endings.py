"""How servers end: by themselves, by somebody's hand, or not at all. A lease ends with its container, not before."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from gpuspawner import engine_spawner, launch
from gpuspawner.leases import Owner
from tests.hub.lab import Lab
from tests.hub.people import Person, until
from tests.standins.engine import EngineDown, EngineSlow, HangsOnStop, Http500


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean-up that fails is tried again soon."""
    monkeypatch.setattr(launch, "RETRY_REMOVAL_SECONDS", (0.1,))


async def test_a_server_that_died_is_read_before_it_is_removed(
    lab: Lab, alice: Person, caplog: pytest.LogCaptureFixture
) -> None:
    """The poll sees it, the log has the record, container and card are gone, and the form says what happened."""
    caplog.set_level(logging.WARNING)
    await alice.start({"profile": "gpu"})
    lab.engine.die(alice.container().name, 3, logs=["Segmentation fault"])
    assert await lab.leased() == {}
    spawner = alice.user.spawners[""]
    assert await spawner.poll_and_notify() == 3
    assert not alice.containers
    assert any("exit code 3" in r.getMessage() and "Segmentation fault" in r.getMessage() for r in caplog.records)
    form = await alice.form()
    assert "Your server ended by itself with exit code 3. Its last words were: “Segmentation fault”." in (
        form.page.get_text()
    )
    assert (await alice.start({})).status == 201
    await alice.stop()
    assert "ended by itself" not in (await alice.form()).text


async def test_out_of_memory_is_called_by_its_name(lab: Lab, alice: Person) -> None:
    """Exit code 137 alone tells a student nothing; the form names the limit, in Korean too."""
    await alice.start({"profile": "gpu"})
    lab.engine.die(alice.container().name, oom=True)
    await alice.user.spawners[""].poll_and_notify()
    assert "Your server ran out of memory (16 GiB)" in (await alice.form()).page.get_text()
    assert "메모리 (16 GiB)가 부족하여" in (await alice.form(language="ko")).page.get_text()


async def test_a_clean_end_is_no_accident(lab: Lab, alice: Person) -> None:
    """A server that was shut down from inside (File, Shut Down) leaves its card, and the next start works."""
    await alice.start({"profile": "gpu"})
    lab.engine.die(alice.container().name, 0)
    assert await alice.user.spawners[""].poll_and_notify() == 0
    await lab.nothing_is_left(alice)
    for words in ("ended by itself", "removed from outside"):
        assert words not in (await alice.form()).text
    assert (await alice.start({})).status == 201


@pytest.mark.fault(34, 37)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(EngineDown(), id="down"),
        pytest.param(EngineDown(how="close"), id="hangs up"),
        pytest.param(Http500(), id="500"),
        pytest.param(EngineSlow(60), id="hangs"),
    ],
)
async def test_an_engine_that_does_not_answer_is_no_proof_of_a_stop(
    lab: Lab, alice: Person, fault: EngineDown | Http500 | EngineSlow
) -> None:
    """What cannot be known is "still running": the Hub forgets nothing, and the card stays held."""
    lab.configure(engine_timeout=1.0)
    await alice.start({"profile": "gpu"})
    with lab.engine.faults.during(fault):
        assert await alice.user.spawners[""].poll_and_notify() is None
        assert (await alice.model())["ready"] is True
    assert await lab.leased() == {"GPU-aaaa": None}
    assert await alice.user.spawners[""].poll_and_notify() is None


@pytest.mark.fault(34)
async def test_where_a_server_is_waits_for_the_engine(lab: Lab, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that starts asks for it: an error would end that Hub. A server that is over is where it was."""
    monkeypatch.setattr(engine_spawner, "ASK_AGAIN_SECONDS", 0.05)
    await alice.start({"profile": "gpu"})
    spawner = alice.user.spawners[""]
    fault = lab.engine.faults.add(Http500(on="inspect"))
    asking = lab.background(spawner.get_url())
    await until(lambda: fault.struck > 2, "it is asked again and again")
    assert not asking.done()
    lab.engine.faults.remove(fault)
    assert await asking == spawner.server.host
    lab.engine.die(alice.container().name, 1)
    assert await spawner.get_url() == spawner.server.host
    lab.engine.remove(alice.container().name)
    assert await spawner.get_url() == spawner.server.host


@pytest.mark.fault(21)
async def test_a_container_removed_from_outside_ends_the_lease(lab: Lab, alice: Person, bob: Person) -> None:
    """`docker rm -f` by an admin: the card is free at once, the Hub notices at its next look, and the owner is told."""
    await alice.start({"profile": "two"})
    assert (await bob.start({"profile": "gpu"})).status == 409
    lab.engine.remove(alice.container().name)
    assert (await bob.start({"profile": "gpu"})).status == 201
    assert await alice.user.spawners[""].poll_and_notify() == 0
    assert await alice.model() == {}
    assert "The container of your server was removed from outside." in (await alice.form()).page.get_text()


@pytest.mark.fault(3)
async def test_a_paused_server_holds_its_card(lab: Lab, alice: Person, bob: Person) -> None:
    """Somebody's `docker pause` frees nothing."""
    await alice.start({"profile": "two"})
    lab.house.engine.client.pause(alice.container().name)
    assert await alice.user.spawners[""].poll() is None
    assert (await bob.start({"profile": "gpu"})).status == 409


@pytest.mark.fault(19)
async def test_stopping_twice_is_harmless(lab: Lab, alice: Person) -> None:
    """Two stops at once, and more of them afterwards, end the same way."""
    await alice.start({"profile": "gpu"})
    spawner = alice.user.spawners[""]
    await asyncio.gather(spawner.stop(), spawner.stop())
    assert not alice.containers
    await spawner.stop(now=True)
    assert (await alice.stop()).status == 204
    await lab.nothing_is_left(alice)


async def test_a_stop_has_freed_the_card_when_it_answers(lab: Lab, alice: Person, bob: Person) -> None:
    """Whoever waited for the card gets it in the next moment."""
    await alice.start({"profile": "two"})
    assert (await alice.stop()).status == 204
    assert (await bob.start({"profile": "two"})).status == 201


async def test_nobody_waits_for_a_removal_but_the_next_start(lab: Lab, alice: Person, bob: Person) -> None:
    """A server has stopped when it has ended: its files may take long to delete, its cards are free."""
    await alice.start({"profile": "two"})
    old = alice.container()
    with lab.engine.faults.during(EngineSlow(60, on="remove")):
        assert (await alice.stop()).status == 204
        assert old.status == "exited"
        assert (await bob.start({"profile": "two"})).status == 201
        await bob.stop()
        lab.answer_at_once()
        await alice.start({"profile": "two"})
        assert alice.container().id == old.id
    await until(lambda: alice.user.spawners[""].ready, "the new one is ready")
    assert old.removed
    assert alice.container().running


@pytest.mark.fault(4, 26, 35)
async def test_a_stop_that_hangs_is_given_up_and_the_card_stays_held(
    lab: Lab, alice: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that fell off the bus makes stop and remove hang: bounded, still leased, and gone once the engine can."""
    monkeypatch.setattr(engine_spawner, "STOP_GRACE_SECONDS", 1)
    lab.configure(engine_timeout=1.0)
    await alice.start({"profile": "two"})
    with lab.engine.faults.during(HangsOnStop(container="jupyter-alice")):
        began = time.monotonic()
        await alice.stop()
        await until(lambda: not alice.user.spawners[""].pending, "the stop has been given up")
        assert time.monotonic() - began < 10
        assert set(await lab.leased()) == {"GPU-aaaa", "GPU-bbbb"}
        assert (await bob.start({"profile": "gpu"})).status == 409
    await lab.nothing_is_left(alice)
    assert (await bob.start({"profile": "gpu"})).status == 201


async def test_a_server_that_does_not_heed_the_stop_is_removed_by_force(
    lab: Lab, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop call that does not come back is followed by a removal, and the card is free when it is over."""
    monkeypatch.setattr(engine_spawner, "STOP_GRACE_SECONDS", 0.1)
    lab.configure(engine_timeout=1.0)
    await alice.start({"profile": "gpu"})
    with lab.engine.faults.during(EngineSlow(60, on="stop")):
        assert (await alice.stop()).status == 204
        assert not alice.containers
        assert not lab.house.undoing


async def test_a_stop_while_the_engine_is_down_happens_as_soon_as_it_is_back(lab: Lab, alice: Person) -> None:
    """The Hub takes the server for stopped; its container follows, and holds its card until then."""
    await alice.start({"profile": "gpu"})
    with lab.engine.faults.during(EngineDown()):
        await alice.stop()
        assert await alice.model() == {}
        assert alice.container().running
    await lab.nothing_is_left(alice)


@pytest.mark.fault(18, 35)
async def test_a_start_after_a_stop_that_failed_waits_for_it(lab: Lab, alice: Person) -> None:
    """The late removal takes the old container, and never the new one."""
    await alice.start({"profile": "two"})
    old = alice.container()
    with lab.engine.faults.during(Http500(on="remove")):
        await alice.stop()
        lab.answer_at_once()
        await alice.start({"profile": "two"})
        await until(lambda: old.status == "exited", "the old one has been stopped")
    await until(lambda: alice.user.spawners[""].ready, "the new one is ready")
    assert old.removed
    assert alice.container().running


@pytest.mark.fault(26)
async def test_whoever_cannot_be_stopped_may_start_elsewhere(
    lab: Lab, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stuck server's own name waits for it, and says so in time; another name gets the other card at once."""
    monkeypatch.setattr(engine_spawner, "STOP_GRACE_SECONDS", 0.1)
    lab.configure(engine_timeout=1.0, start_timeout=5)
    await alice.start({"profile": "gpu"})
    with lab.engine.faults.during(HangsOnStop(container="jupyter-alice")):
        await alice.stop()
        await until(lambda: not alice.user.spawners[""].pending, "the stop has been given up")
        answer = await alice.start({"profile": "gpu"})
        assert answer.status == 504
        assert "(last step: Preparing your server)" in answer.message
        assert (await alice.start({"profile": "gpu"}, server="exp")).status == 201
        assert alice.container("exp").gpus == ("GPU-bbbb",)
        assert set(await lab.leased()) == {"GPU-aaaa", "GPU-bbbb"}
    await alice.stop("exp")
    await lab.nothing_is_left(alice)


@pytest.mark.fault(42)
async def test_a_deleted_user_leaves_no_lease(lab: Lab, alice: Person, admin: Person) -> None:
    """The admin deletes an account whose server runs: server, container and lease go with it."""
    await alice.start({"profile": "gpu"})
    assert (await admin.api("DELETE", "users/alice")).status == 204
    await until(lambda: not alice.containers, "the container is gone")
    assert await lab.leased() == {}
    assert Owner("alice") not in lab.house.undoing
