"""Limits, GPU-hours, class reservations and time limits, as students and scripts meet them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gpuspawner.extensions import Extensions
from tests.hub.lab import Lab
from tests.hub.people import Answer, Person, until
from tests.standins.engine import SlowBoot

ALL_WEEK = {"group": "ai", "gpus": 2, "weekly": "Mon-Sun 00:00-24:00", "timezone": "UTC"}


@pytest_asyncio.fixture(loop_scope="session")
async def eve(lab: Lab) -> Person:
    """A student of the class."""
    return await lab.person("eve", "ai")


def in_an_hour(**more: Any) -> dict[str, Any]:
    """A single reservation of both cards that begins in an hour."""
    start = (datetime.now(timezone.utc) + timedelta(hours=1)).replace(second=0, microsecond=0)
    words = {key: moment.strftime("%Y-%m-%d %H:%M") for key, moment in _span(start).items()}
    return {"group": "ai", "gpus": 2, "timezone": "UTC", **words, **more}


def _span(start: datetime) -> dict[str, datetime]:
    return {"from": start, "until": start + timedelta(hours=1)}


def info(answer: Answer) -> str:
    """The notices above the cards of a form, in one line."""
    return " ".join(" ".join(each.get_text().split()) for each in answer.page.select(".gs-notice"))


# Limits


async def test_who_has_enough_reads_which_limit_it_is(lab: Lab, alice: Person) -> None:
    """By REST, and on the form of the next server; a profile without a GPU always starts."""
    lab.configure(limits={"user": {"gpus": 1}})
    assert (await alice.start({"profile": "gpu"})).status == 201
    answer = await alice.start({"profile": "gpu", "wait": True}, "second")
    assert (answer.status, answer.message) == (
        403,
        "You asked for one whole GPU (RTX 4090), but you may hold one whole GPU at once, and hold 1 now. "
        "Stop a server that you no longer need, or choose another profile.",
    )
    card = (await alice.form("second")).card("gpu")
    assert "limit reached" in card
    assert "you may hold one whole GPU at once" in card
    assert (await alice.start({"profile": "cpu"}, "second")).status == 201


async def test_hours_are_counted_and_shown(lab: Lab, tmp_path: Path, eve: Person) -> None:
    """The journal has a line for the beginning and one for the end, and the form says what is left."""
    lab.configure(gpu_hours={"ai": "20h/7d"}, state_path=str(tmp_path))
    assert "GPU time left: 20 h of 20 h in 7 d." in info(await eve.form())
    assert (await eve.start({"profile": "gpu"})).status == 201

    def events() -> list[str]:
        file = tmp_path / "journal" / "journal.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [event for line in lines if (event := json.loads(line)["event"]) != "alive"]

    await until(lambda: events() == ["began"], "the beginning is written down")
    await eve.stop()
    await until(lambda: events() == ["began", "ended"], "the end is written down")


async def test_who_has_used_up_the_hours_is_refused(lab: Lab, tmp_path: Path, eve: Person) -> None:
    """From the files of before, by a Hub that has just begun."""
    began = datetime.now(timezone.utc) - timedelta(hours=3)
    line = {
        "event": "began", "at": began.isoformat(timespec="seconds"), "hub": "jupyter", "lease": "old", "user": "eve",
        "server": "", "groups": ["ai"], "profile": "gpu",
        "cards": [{"uuid": "GPU-aaaa", "memory_bytes": None, "card_bytes": 1}],
    }  # fmt: skip
    ended = {
        "event": "ended",
        "at": (began + timedelta(hours=2)).isoformat(timespec="seconds"),
        "hub": "jupyter",
        "lease": "old",
    }
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "journal.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(ended)}\n")
    lab.configure(gpu_hours={"ai": "2h/1d"}, state_path=str(tmp_path))
    answer = await eve.start({"profile": "gpu"})
    assert answer.status == 403
    assert answer.message.startswith("You asked for one whole GPU (RTX 4090), but you may use 2 h of GPU time in 1 d")
    assert "GPU time left: 0 s of 2 h in 1 d." in info(await eve.form())


# Class reservations


@pytest.mark.fault(8)
async def test_reserved_cards_go_to_the_class(lab: Lab, alice: Person, eve: Person) -> None:
    """Others read why, may wait, and lose nothing else; members start as always."""
    lab.configure(reservations=[ALL_WEEK])
    answer = await alice.start({"profile": "gpu"})
    assert answer.status == 409
    assert "the cards that are free are kept for a class until" in answer.message
    assert "eve" not in answer.text
    form = await alice.form()
    assert "kept for a class" in form.card("gpu")
    assert "Press Start to join the line." in form.card("gpu")
    assert (await eve.start({"profile": "two"})).status == 201
    assert (await alice.start({"profile": "cpu"})).status == 201


async def test_a_server_before_a_class_gets_less_time(lab: Lab, alice: Person, eve: Person) -> None:
    """Its label says so, the form says so before, and whoever is in the class has the time of the profile."""
    lab.configure(reservations=[in_an_hour()])
    assert "This server has to stop by" in (await alice.form()).card("gpu")
    assert (await alice.start({"profile": "gpu"})).status == 201
    assert 50 * 60 < int(alice.container().labels["gpuspawner.time-limit"]) < 60 * 60
    assert (await eve.start({"profile": "gpu"})).status == 201
    assert eve.container().labels["gpuspawner.time-limit"] == "43200"


async def test_the_pending_page_says_that_the_time_is_shortened(lab: Lab, alice: Person) -> None:
    """For whoever starts by a link or a script, and has seen no form."""
    lab.configure(reservations=[in_an_hour()])
    lab.answer_at_once()
    with lab.engine.faults.during(SlowBoot(0.5)):
        await alice.start({"profile": "gpu"})
        said = [event.get("message", "") for event in await alice.events()]
    assert any(text.startswith("JupyterLab is starting. This server has to stop by ") for text in said), said


async def test_a_class_may_want_refusals(lab: Lab, alice: Person) -> None:
    """By its own setting."""
    lab.configure(reservations=[in_an_hour(before="refuse")])
    answer = await alice.start({"profile": "gpu"})
    assert answer.status == 409
    assert "a class has reserved the cards from" in answer.message


# Time limits


async def test_the_home_page_shows_the_time_and_gives_more(lab: Lab, tmp_path: Path, alice: Person) -> None:
    """One press adds an hour, until the most is reached; the line counts with the new end."""
    lab.configure(state_path=str(tmp_path), max_extension="90m")
    assert (await alice.start({"profile": "gpu"})).status == 201
    lease_id = alice.container().labels["gpuspawner.id"]
    first = datetime.fromisoformat(alice.container().labels["gpuspawner.started"]) + timedelta(hours=12)
    assert "Your server may run until" in info(await alice.form("second"))
    home = await alice.browse("home")
    button = home.page.select_one(".gpuspawner-time button")
    assert button is not None
    assert button.get_text().startswith("Extend until ")
    for hours in (1, 1.5):
        answer = await extend(alice)
        assert answer.url.endswith("/hub/home")
        assert Extensions(tmp_path).read()[lease_id] == first + timedelta(hours=hours)
    standing = await lab.house.ledger.standing()
    assert [held.ends for held in standing.held] == [first + timedelta(hours=1.5)]
    answer = await extend(alice)
    assert "a server may be extended by 1 h 30 min at most" in answer.text
    assert not answer.page.select(".gpuspawner-time button")
    assert "at most, and that is used up" not in (await alice.browse("home")).text


async def test_nobody_gets_more_time_while_somebody_waits(
    lab: Lab, tmp_path: Path, alice: Person, bob: Person, cai: Person
) -> None:
    """For that kind of card."""
    lab.configure(state_path=str(tmp_path))
    for person in (alice, bob):
        await person.start({"profile": "gpu"})
    lab.answer_at_once()
    await cai.start({"profile": "gpu", "wait": True})
    await until(lambda: lab.house.ledger._line, "cai is in the line")
    await alice.browse("home")
    answer = await extend(alice)
    assert "somebody is waiting for this kind of card" in answer.text
    assert Extensions(tmp_path).read() == {}


async def test_more_time_is_for_ones_own_servers(lab: Lab, alice: Person) -> None:
    """There is no way to name another's, and a name that is nobody's is not found."""
    await alice.form()
    answer = await alice.browse(f"gpu/extend?_xsrf={alice._xsrf()}", "POST", data={"server": "none"})
    assert answer.status == 404
    assert (await alice.browse("gpu/extend", "POST", data={"server": ""})).status == 403


async def extend(person: Person, server: str = "") -> Answer:
    """Press the button on the home page."""
    return await person.browse(f"gpu/extend?_xsrf={person._xsrf()}", "POST", data={"server": server})


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        pytest.param(
            {"limits": {"user": {"gpus": 0}}}, "c.GPUSpawner.limits.user.gpus must be at least 1", id="limits"
        ),
        pytest.param({"gpu_hours": {"ai": "many"}}, "c.GPUSpawner.gpu_hours.ai must be GPU time", id="hours"),
        pytest.param({"gpu_hours": {"ai": "2h/1d"}}, "set c.GPUSpawner.state_path", id="no folder"),
        pytest.param({"reservations": [{"group": "ai"}]}, "c.GPUSpawner.reservations[0].gpus", id="reservations"),
    ],
)
def test_a_mistake_stops_the_hub_with_its_path(
    traits: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first student meets it."""
    from traitlets.config import Config

    from gpuspawner import check_config

    monkeypatch.delenv("GPUSPAWNER_STATE", raising=False)
    profiles = [{"display_name": "CPU", "image": "scipy"}]
    with pytest.raises(SystemExit, match="The Hub does not start") as stopped:
        check_config(Config({"GPUSpawner": {"profile_list": profiles, **traits}}))
    assert words in str(stopped.value)
