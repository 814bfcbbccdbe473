"""The waiting line as students meet it: by form and by REST, on the pending page, with the Stop button, to its end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio

from gpuspawner.texts import Text
from tests.hub.lab import Lab
from tests.hub.people import Person, until

WAIT = {"profile": "gpu", "wait": True}


@pytest_asyncio.fixture(loop_scope="session")
async def full(lab: Lab, alice: Person, bob: Person) -> None:
    """Alice and bob hold one card each, for at most twelve hours."""
    for person in (alice, bob):
        assert (await person.start({"profile": "gpu"})).status == 201
    lab.answer_at_once()


async def line(lab: Lab) -> list[str]:
    """The names of those that wait, in their order."""
    return [place.claim.owner.user for place in lab.house.ledger._line.values() if place.claim.owner]


async def joined(lab: Lab, person: Person, options: Any = None, server: str = "") -> None:
    """Let somebody join, and wait until they have."""
    before = len(await line(lab))
    assert (await person.start(options or WAIT, server)).status == 202
    await until(lambda: len(lab.house.ledger._line) > before, f"{person.name} is in the line")


async def messages(person: Person, server: str = "") -> list[str]:
    """What the pending page has said to its end."""
    return [event["message"] for event in await person.events(server) if "message" in event]


async def test_the_form_lets_a_student_join_and_the_server_comes_by_itself(
    full: None, lab: Lab, alice: Person, cai: Person, dan: Person
) -> None:
    """Places move up, and the next free card starts the first in line without a click."""
    form = await cai.form()
    assert "Nobody else is waiting, and your turn should come at about " in form.card("gpu")
    assert [tag["value"] for tag in form.page.select("input[name=wait-for]")] == ["gpu", "two", "share"]
    page = await cai.submit("gpu", **{"wait-for": "gpu"})
    assert "spawn-pending" in page.url
    await until(lambda: lab.house.ledger._line, "cai is in the line")
    assert "1 person is waiting, and your turn should come at about " in (await dan.form()).card("gpu")
    await joined(lab, dan)
    first, second = lab.background(messages(cai)), lab.background(messages(dan))
    await until(lambda: all(place.forecast for place in lab.house.ledger._line.values()), "both know their place")
    await alice.stop()
    said = await first
    assert any(words.startswith("You are next in the line; a GPU should be free for you at about ") for words in said)
    assert said[-1].startswith("Server ready")
    assert cai.container().running
    assert cai.saved_options == {"profile": "gpu"}
    await until(lambda: len(lab.house.ledger._line) == 1, "dan waits alone")
    assert (await dan.stop()).status == 204
    assert any(words.startswith("You are number 2 in the line") for words in await second)
    assert await line(lab) == []


async def test_a_profile_that_went_meanwhile_is_not_waited_for_unasked(full: None, lab: Lab, cai: Person) -> None:
    """The page showed it as free: the form comes back, says how the line stands, and one more click joins."""
    answer = await cai.submit("gpu")
    assert answer.status == 409
    assert "Press Start to join the line." in answer.form_error
    assert await line(lab) == []


async def test_the_stop_button_leaves_the_line_of_a_named_server(full: None, lab: Lab, cai: Person) -> None:
    """The default server of the same person waits on; the page's button names the server that it is about."""
    await joined(lab, cai)
    await joined(lab, cai, server="exp")
    page = await cai.browse("spawn-pending/cai/exp")
    assert 'encodeURIComponent("exp")' in page.text
    assert "You are waiting for a free GPU." in page.text
    assert (await cai.stop("exp")).status == 204
    assert [place.claim.owner.server for place in lab.house.ledger._line.values() if place.claim.owner] == [""]
    assert (await cai.stop()).status == 204
    assert await line(lab) == []
    assert not cai.containers
    await until(lambda: not lab.house.undoing, "every clean-up has ended")


async def test_waiting_does_not_use_up_the_start_timeout(full: None, lab: Lab, alice: Person, cai: Person) -> None:
    """The Hub's own limit grows by the time in the line, for this one start."""
    lab.configure(start_timeout=5, queue_timeout=60)
    await cai.form()
    await joined(lab, cai)
    spawner = cai.spawner
    await asyncio.sleep(6)
    assert await line(lab) == ["cai"]
    assert spawner.start_timeout == 5
    await alice.stop()
    await until(lambda: cai.spawner.ready, "cai's server is ready")


async def test_the_wait_has_an_end_with_a_sentence(full: None, lab: Lab, cai: Person) -> None:
    """On the stream, on the page, and nothing stays."""
    lab.configure(queue_timeout=1)
    await cai.form()
    await joined(lab, cai)
    assert (await messages(cai))[-1] == (
        "Spawn failed: No GPU became free for you within 1 s. Join the line again, or choose another profile."
    )
    assert await line(lab) == []
    assert not cai.containers
    await until(lambda: not lab.house.undoing, "every clean-up has ended")
    assert lab.settings["failure_count"] == 0


async def test_whoever_waits_reads_why_the_line_stands_still(full: None, lab: Lab, alice: Person, cai: Person) -> None:
    """In their language; the place is kept, and the line goes on by itself."""
    assert (await cai.api("POST", "users/cai/server", WAIT, "ko")).status == 202
    await until(lambda: lab.house.ledger._line, "cai is in the line")
    said: list[str] = []

    async def watch() -> None:
        url = f"{lab.url}hub/api/users/cai/server/progress"
        headers = {"Authorization": f"token {cai._token}", "Accept-Language": "ko"}
        async with lab.http.get(url, headers=headers) as stream:
            async for line in stream.content:
                if line.startswith(b"data: "):
                    said.append(json.loads(line[6:])["message"])

    watching = lab.background(watch())
    lab.cards.trouble = Text("The NVIDIA driver does not answer.", "NVIDIA 드라이버가 응답하지 않습니다.")
    await until(lambda: "NVIDIA 드라이버가 응답하지 않습니다. 대기 순서는 유지됩니다." in said, "the page says why")
    lab.cards.trouble = None
    await alice.stop()
    await watching
    assert cai.container().running


async def test_a_script_that_does_not_wait_is_refused(full: None, lab: Lab, cai: Person) -> None:
    """As before there was a line; and what is no yes or no is refused with a sentence."""
    lab.answer_when_done()
    assert (await cai.start({"profile": "gpu"})).status == 409
    answer = await cai.start({"profile": "gpu", "wait": "perhaps"})
    assert (answer.status, answer.message) == (
        400,
        "\"wait\" must be true (wait in the line if nothing is free) or false, not 'perhaps'.",
    )
    assert await line(lab) == []


async def test_a_newcomer_does_not_pass_somebody_who_waits(
    full: None, lab: Lab, alice: Person, cai: Person, dan: Person
) -> None:
    """Cai wants both cards, and one is free: the form says that others were first, and so does the start."""
    await joined(lab, cai, {"profile": "two", "wait": True})
    await alice.stop()
    lab.answer_when_done()
    answer = await dan.start({"profile": "gpu"})
    assert (answer.status, answer.message) == (
        409,
        "You asked for one whole GPU (RTX 4090), but others were here first and wait for these cards. "
        "Join the line, or choose another profile.",
    )
    assert "1 person is waiting" in (await dan.form()).card("gpu")
    await cai.stop()
    assert (await dan.start({"profile": "gpu"})).status == 201


@pytest.mark.fault(42)
async def test_whoever_is_deleted_while_waiting_leaves_the_line(
    full: None, lab: Lab, alice: Person, cai: Person, dan: Person, admin: Person
) -> None:
    """JupyterHub deletes no account whose server is on its way; when that is stopped it does, and the place is gone."""
    await joined(lab, cai)
    await joined(lab, dan)
    assert (await admin.api("DELETE", "users/cai")).status == 500
    assert await line(lab) == ["cai", "dan"]
    assert (await admin.stop(of="cai")).status == 204
    assert (await admin.api("DELETE", "users/cai")).status == 204
    assert await line(lab) == ["dan"]
    await alice.stop()
    await until(lambda: dan.spawner.ready, "the next in line is served")


@pytest.mark.fault(49)
async def test_a_burst_of_starts_is_served_in_its_order(full: None, lab: Lab, alice: Person) -> None:
    """Ten ask in one breath for the one card that comes back: each waits, and they are served as they came."""
    people = {name: await lab.person(name) for name in (f"s{number}" for number in range(10))}
    answers = await asyncio.gather(*(person.start(WAIT) for person in people.values()))
    assert {answer.status for answer in answers} == {202}
    await until(lambda: len(lab.house.ledger._line) == len(people), "all are in the line")
    order = await line(lab)
    await alice.stop()
    for number, name in enumerate(order, 1):
        await until(lambda name=name: people[name].spawner.ready, f"{name} is served")
        assert await line(lab) == order[number:]
        assert (await people[name].stop()).status == 204
    assert lab.settings["failure_count"] == 0
