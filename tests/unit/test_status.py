"""The read model: who holds what, which image is older, who may see whose name, and what is called unknown."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Lease, Limits, Owner, encode
from gpuspawner.status import (
    ADMIN,
    Image,
    Running,
    Status,
    Viewer,
    as_json,
    environment,
    home_notice,
    meaning,
    report,
)
from gpuspawner.texts import Text
from gpuspawner.units import GIB

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=timezone.utc)
A, B, C = GpuUuid("GPU-aaaa"), GpuUuid("GPU-bbbb"), GpuUuid("GPU-cccc")
CARDS = tuple(Gpu(uuid, index, "NVIDIA GeForce RTX 4090", 24 * GIB) for index, uuid in enumerate((A, B)))
INVENTORY = Inventory(CARDS)
SCIPY = "gpuspawner/scipy:latest"
OLD, NEW = "sha256:old", "sha256:new"
IMAGES = (Image(NEW, (SCIPY, "gpuspawner/scipy:0123456789ab"), NOW), Image(OLD, (), NOW - timedelta(days=9)))


@dataclass(frozen=True)
class Box:
    """A container as the engine lists it."""

    name: str
    cards: tuple[CardShare, ...] = ()
    lease: Lease | None = None
    image_id: str = NEW
    state: str = "running"


def box(user: str, *cards: CardShare, server: str = "", image: str = SCIPY, image_id: str = NEW, **more: Any) -> Box:
    """A container of somebody, started two hours ago."""
    lease = Lease(f"{user}-{server}", Owner(user, server), "lab", cards, NOW - timedelta(hours=2), image=image)
    return Box(f"jupyter-{user}{server}", cards, lease, image_id, **more)


def unreadable(name: str, *cards: CardShare) -> Box:
    """A container whose labels cannot be read."""
    return Box(name, cards)


def look(*boxes: Box, inventory: Inventory = INVENTORY, viewer: Viewer = ADMIN) -> Status:
    """What the viewer may know."""
    return report(boxes, inventory, IMAGES, at=NOW, viewer=viewer)


# Cards


def test_free_whole_and_shared_cards() -> None:
    """Each card with who holds it and how much."""
    status = look(box("kim", CardShare(A)), box("lee", CardShare(B, 8 * GIB)), box("park", CardShare(B, 4 * GIB)))
    assert [card.state for card in status.cards] == ["whole", "shared"]
    assert [(holder.user, holder.memory_bytes) for holder in status.cards[1].holders] == [
        ("lee", 8 * GIB),
        ("park", 4 * GIB),
    ]
    assert status.cards[1].shared_bytes == 12 * GIB
    assert [card.state for card in look().cards] == ["free", "free"]
    assert not status.wrong


def test_a_card_that_is_out_of_order_says_so_although_somebody_holds_it() -> None:
    """The fault stands before the lease; the holder is still named."""
    sick = Inventory((replace(CARDS[0], fault=Text("It does not answer.")), CARDS[1]))
    status = look(box("kim", CardShare(A)), inventory=sick)
    assert status.cards[0].state == "fault"
    assert status.cards[0].holders[0].user == "kim"
    assert status.wrong


@pytest.mark.fault(29)
def test_a_card_that_is_held_and_not_listed_is_gone() -> None:
    """It is not forgotten because the driver does not list it."""
    status = look(box("kim", CardShare(C)))
    assert [(card.uuid, card.state) for card in status.cards] == [(A, "free"), (B, "free"), (C, "gone")]
    assert status.cards[2].gpu is None
    assert status.wrong


def test_where_the_driver_does_not_tell_no_card_is_called_gone() -> None:
    """Unknown, law 10; the reason goes with it. Without a lease there is nothing wrong with a machine without GPU."""
    off = Inventory(trouble=Text("No driver."), detail="NVML is off")
    status = look(box("kim", CardShare(A)), inventory=off)
    assert [(card.uuid, card.state) for card in status.cards] == [(A, "unknown")]
    assert (status.trouble, status.detail) == (Text("No driver."), "NVML is off")
    assert status.wrong
    assert not look(box("kim"), inventory=off).wrong


def test_labels_that_cannot_be_read_hold_their_cards() -> None:
    """The admin reads which container it is."""
    status = look(unreadable("strange", CardShare(A)))
    (holder,) = status.cards[0].holders
    assert (status.cards[0].state, holder.user, holder.unreadable) == ("whole", None, "strange")
    assert status.servers[0].lease is None
    assert status.servers[0].environment == "unknown"
    assert status.wrong


def test_simulated_cards_are_called_so() -> None:
    """Nobody takes them for real."""
    assert look(inventory=Inventory(CARDS, simulated=True)).simulated
    assert not look().simulated


# Images


@pytest.mark.parametrize(
    ("runs", "now", "stand"),
    [
        pytest.param(NEW, NEW, "current", id="the same"),
        pytest.param(OLD, NEW, "older", id="another one"),
        pytest.param(OLD, None, "unknown", id="not known what it means"),
        pytest.param("", NEW, "unknown", id="not known what runs"),
        pytest.param("", None, "unknown", id="nothing known"),
    ],
)
def test_how_what_runs_stands_to_what_is_meant(runs: str, now: str | None, stand: str) -> None:
    """Only two ids that are known can differ."""
    assert environment(runs, now) == stand


def test_servers_are_current_or_older_and_counted_by_image() -> None:
    """By what the reference of their lease means now."""
    status = look(box("kim"), box("lee", image_id=OLD), box("park", image_id=OLD), box("choi", image="gone:1"))
    assert {each.lease.owner.user: each.environment for each in status.servers if each.lease} == {
        "choi": "unknown",
        "kim": "current",
        "lee": "older",
        "park": "older",
    }
    shelf, other = status.images
    assert (shelf.reference, shelf.current, shelf.older) == (SCIPY, 1, 2)
    assert (other.reference, other.image, other.current, other.older) == ("gone:1", None, 0, 0)


def test_the_whole_shelf_is_listed_and_nothing_else_that_nobody_uses() -> None:
    """`latest` of each image; not the tags of its history, nor what else is on the engine."""
    images = (*IMAGES, Image("sha256:pg", ("postgres:16",), NOW), Image("sha256:b", ("gpuspawner/base:latest",), NOW))
    status = report([], INVENTORY, images, at=NOW, viewer=ADMIN)
    assert [image.reference for image in status.images] == ["gpuspawner/base:latest", SCIPY]


@pytest.mark.parametrize(
    ("reference", "known"),
    [
        pytest.param("a/b:1", "a/b:1", id="as it is"),
        pytest.param("a/b", "a/b:latest", id="no tag"),
        pytest.param("localhost:5000/b", "localhost:5000/b:latest", id="a port is no tag"),
        pytest.param("docker.io/a/b:1", "a/b:1", id="Docker's registry"),
        pytest.param("docker.io/library/python", "python:latest", id="Docker's own image"),
        pytest.param("a/b@sha256:12", "a/b@sha256:12", id="digest"),
    ],
)
def test_references_are_read_as_docker_reads_them(reference: str, known: str) -> None:
    """What is left out is the same for us."""
    image = Image(NEW, (known,), NOW)
    assert meaning(reference, {known: image}) is image
    assert meaning(reference, {"other": image}) is None


def test_what_a_container_says_of_itself() -> None:
    """From `docker inspect`: the image is Docker's word, the profile the label's."""
    lease = Lease("1", Owner("kim"), "lab", (), NOW)
    inspected = {"Image": OLD, "Config": {"Labels": encode(lease)}}
    assert Running.of(inspected) == Running("lab", OLD)
    assert Running.of(None) is None
    assert Running.of({"Image": OLD, "Config": {"Labels": None}}) is None
    assert Running.of({"Image": OLD, "Config": {"Labels": {**encode(lease), "gpuspawner.lease": "9"}}}) is None


# Who sees what


NAMES = st.text("abcdefgh", min_size=3, max_size=8)


@given(mine=NAMES, others=st.lists(NAMES, max_size=4, unique=True))
def test_a_student_never_sees_the_name_of_anybody_else(mine: str, others: list[str]) -> None:
    """Neither in the cards nor in the servers nor in the JSON; that a card is held is no secret."""
    # Marked, so that no name is a part of another word.
    boxes = [box(f"<{user}>", CardShare(A, GIB), server="s") for user in [*others, mine]]
    status = look(*boxes, unreadable("<strange>", CardShare(B)), viewer=Viewer(f"<{mine}>"))
    said = json.dumps(as_json(status)) + repr(status)
    assert not [user for user in [*others, "strange"] if user != mine and f"<{user}>" in said]
    assert f"<{mine}>" in said
    assert [card.state for card in status.cards] == ["shared", "whole"]
    assert len(status.cards[0].holders) == len(boxes)


def test_somebody_without_a_name_sees_no_server() -> None:
    """And the reasons of the driver are the admin's."""
    status = look(box("kim", CardShare(A)), viewer=Viewer(), inventory=replace(INVENTORY, detail="card 0: Xid 79"))
    assert status.servers == ()
    assert status.cards[0].state == "whole"
    assert status.cards[0].holders[0].user is None
    assert status.detail == ""


def test_the_counts_of_images_are_the_same_for_everybody() -> None:
    """They name nobody, and a page must not say that nobody uses an image."""
    boxes = (box("kim"), box("lee", image_id=OLD))
    assert look(*boxes, viewer=Viewer("kim")).images == look(*boxes).images


# The JSON


def test_the_json_has_plain_values_and_units_in_their_names() -> None:
    """It can be read back, and what is not known is null."""
    status = look(box("kim", CardShare(A), CardShare(B)), box("lee", server="exp-1", image="gone:1"), unreadable("x"))
    data = json.loads(json.dumps(as_json(status)))
    assert data["at"] == "2026-03-02T09:30:00+00:00"
    assert data["cards"][0] == {
        "uuid": A,
        "index": 0,
        "name": "NVIDIA GeForce RTX 4090",
        "memory_bytes": 24 * GIB,
        "state": "whole",
        "fault": None,
        "shared_bytes": 0,
        "holders": [{"user": "kim", "server": "", "memory_bytes": None}],
    }
    kim, lee, strange = data["servers"]
    assert kim["cards"] == [{"uuid": A, "memory_bytes": None}, {"uuid": B, "memory_bytes": None}]
    assert (kim["started"], kim["environment"]) == ("2026-03-02T07:30:00+00:00", "current")
    assert (lee["server"], lee["environment"]) == ("exp-1", "unknown")
    assert (strange["container"], strange["user"], strange["started"]) == ("x", None, None)
    assert data["images"][1] == {
        "reference": "gone:1",
        "id": None,
        "created": None,
        "servers_current": 0,
        "servers_older": 0,
    }


def test_the_time_left_is_that_of_the_labels_or_of_an_extension() -> None:
    """No limit is null and not zero; a time that is over is zero and not less."""

    def limited(user: str, seconds: int | None) -> Box:
        one = box(user)
        assert one.lease is not None
        return replace(one, lease=replace(one.lease, limits=Limits(time_limit_seconds=seconds)))

    boxes = (limited("kim", 3 * 3600), limited("lee", 3600), limited("choi", None), limited("park", 3600))
    extensions = {"park-": NOW + timedelta(minutes=5), "choi-": NOW, "gone": NOW}
    status = report(boxes, INVENTORY, IMAGES, at=NOW, viewer=ADMIN, extensions=extensions)
    data = {each["user"]: each for each in as_json(status)["servers"]}
    assert {user: each["left_seconds"] for user, each in data.items()} == {
        "kim": 3600,
        "lee": 0,
        "choi": None,
        "park": 300,
    }
    assert data["park"]["ends"] == "2026-03-02T09:35:00+00:00"
    assert data["choi"]["ends"] is None


# The notice


def test_no_notice_without_a_server() -> None:
    """Nothing is shown."""
    assert home_notice([], "en") is None


@pytest.mark.parametrize(
    ("servers", "english", "korean"),
    [
        pytest.param([""], "My Server still runs", "기본 서버(My Server).", id="default"),
        pytest.param(["exp-1"], "“exp-1” still runs", "“exp-1”.", id="named"),
        pytest.param(["", "exp-1"], "My Server, “exp-1” still run ", "기본 서버(My Server), “exp-1”.", id="both"),
    ],
)
def test_the_notice_names_the_servers(servers: list[str], english: str, korean: str) -> None:
    """The default one by the word on the Hub's button."""
    in_english, in_korean = home_notice(servers, "en"), home_notice(servers, "ko")
    assert in_english is not None
    assert in_korean is not None
    assert in_english.servers.startswith(english)
    assert in_korean.servers.endswith(korean)
    assert (in_english.language, in_korean.language) == ("en", "ko")
