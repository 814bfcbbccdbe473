"""What the spawners of one Hub share: offers for the form, and clearing away what nobody will ever start."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from gpuspawner import house as module
from gpuspawner.container import ImageFacts
from gpuspawner.dockerd import Engine
from gpuspawner.errors import EngineError, ImageMissing, Reason, Refused
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.gpus import Inventory
from gpuspawner.house import ASK_ADMIN, NOT_BUILT, House, Meanings
from gpuspawner.leases import CardShare, Lease, Owner, encode
from gpuspawner.placement import Policy
from gpuspawner.profiles import Catalogue
from gpuspawner.status import Running
from gpuspawner.terms import Claim
from gpuspawner.texts import Text
from tests.standins.engine import EngineDown, EngineSlow, Http500, StandinEngine
from tests.unit.sockets import BROKEN_SOCKETS

SOON = 10.0
LONG_AGO = datetime.now(timezone.utc) - timedelta(hours=1)
PROFILES = [
    {"display_name": "CPU", "image": "scipy"},
    {"display_name": "One", "image": "pytorch", "gpu": {"count": 1}},
    {"display_name": "Foreign", "image": "quay.io/x/nb:1"},
    {"display_name": "Staff", "image": "scipy", "groups": ["staff"]},
]

pytestmark = BROKEN_SOCKETS


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinEngine]:
    """An engine with one of two images of the shelf."""
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    with StandinEngine() as engine:
        engine.add_image("gpuspawner/scipy")
        yield engine


@pytest.fixture
def house(standin: StandinEngine) -> Iterator[House]:
    """A house with two simulated cards."""
    engine = Engine({"base_url": standin.url}, call_timeout_seconds=SOON)
    yield House("jupyter", Catalogue.parse(PROFILES), engine, FakeGPUs("2x24GiB"), Policy())
    standin.faults.clear()
    engine.close()


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition, with a deadline."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


def lease(lease_id: str, *cards: CardShare, hub: str = "jupyter", started: datetime = LONG_AGO) -> Lease:
    """A lease, an hour old unless something else is said."""
    return Lease(lease_id, Owner(lease_id, hub=hub), "one", cards, started)


async def create(house: House, name: str, labels: dict[str, str]) -> None:
    """A container that waits for its start."""
    await house.engine.call("create_container", "gpuspawner/scipy", name=name, labels=labels)


# Offers


async def test_each_sees_what_is_offered_to_their_groups(house: House) -> None:
    """In the order of the configuration."""
    offers, _, trouble = await house.offers(())
    assert [offer.profile.slug for offer in offers] == ["cpu", "one", "foreign"]
    assert len((await house.offers({"staff"}))[0]) == 4
    assert trouble is None


async def test_an_image_of_the_shelf_that_was_never_built(standin: StandinEngine, house: House) -> None:
    """Said on the form; a foreign image is pulled when it is wanted."""
    offers, _, _ = await house.offers(())
    assert {offer.profile.slug: offer.unavailable for offer in offers} == {
        "cpu": None,
        "one": NOT_BUILT,
        "foreign": None,
    }
    standin.add_image("gpuspawner/pytorch")
    offers, _, _ = await house.offers(())
    assert all(offer.fits for offer in offers)


async def test_who_can_build_what_was_never_built(house: House) -> None:
    """A student reads whom to ask, an admin the command."""
    for admin, words in ((False, ASK_ADMIN.en), (True, "Build it with: images/build_images.py pytorch")):
        offers, _, _ = await house.offers((), admin=admin)
        assert {offer.profile.slug: str(offer.remedy) for offer in offers if offer.remedy} == {"one": words}


@pytest.mark.fault(22)
async def test_what_is_held_is_counted(house: House) -> None:
    """Of this Hub and of others: labels and reservations in flight."""
    cards = [gpu.uuid for gpu in (await house.gpus.inventory()).gpus]
    await create(house, "other", encode(lease("other", CardShare(cards[0]), hub="other")))
    offers, standing, _ = await house.offers(())
    assert [(offer.availability.free, offer.availability.total) for offer in offers if offer.profile.gpu] == [(1, 2)]
    assert standing.occupancy.whole == {cards[0]}
    request = house.catalogue.profiles[1].gpu
    await house.ledger.reserve(Claim("mine", request))
    offers, _, _ = await house.offers(())
    (refusal,) = [offer.availability.refusal for offer in offers if offer.profile.gpu]
    assert refusal is not None
    assert refusal.reason is Reason.BUSY


@pytest.mark.parametrize("fault", [EngineDown("close"), Http500()], ids=["down", "500"])
async def test_an_engine_that_fails_is_trouble_and_not_a_missing_image(
    standin: StandinEngine, house: House, fault: Any
) -> None:
    """Law 10: no card is offered, none is called taken, and no image is called missing."""
    with standin.faults.during(fault):
        offers, standing, trouble = await house.offers(())
    assert trouble
    assert trouble.ko
    assert standing.inventory.gpus == ()
    by_slug = {offer.profile.slug: offer for offer in offers}
    assert by_slug["cpu"].fits
    refusal = by_slug["one"].availability.refusal
    assert refusal is not None
    assert refusal.reason is Reason.GPU_UNKNOWN
    assert all(offer.unavailable is None for offer in offers)


async def test_a_driver_that_fails_is_trouble(house: House) -> None:
    """Said once above the profiles."""

    class Sick:
        async def inventory(self) -> Inventory:
            return Inventory(trouble=Text("The driver does not answer.", "드라이버가 응답하지 않습니다."))

    ill = House("jupyter", house.catalogue, house.engine, Sick(), Policy())
    offers, _, trouble = await ill.offers(())
    assert trouble == Text("The driver does not answer.", "드라이버가 응답하지 않습니다.")
    assert [offer.fits for offer in offers if offer.profile.gpu is None] == [True, True]


# Newer images


async def test_which_servers_a_restart_would_renew(standin: StandinEngine, house: House) -> None:
    """Those of another image than their profile's now; not those of profiles or images that are not there."""
    now = next(image.id for image in standin.images if image.ref == "gpuspawner/scipy:latest")
    servers = {
        "current": Running("cpu", now),
        "older": Running("cpu", "sha256:old"),
        "staff": Running("staff", "sha256:old"),
        "never built": Running("one", "sha256:old"),
        "no such profile": Running("gone", "sha256:old"),
        "nothing known": None,
    }
    assert await house.renewable(servers) == ["older", "staff"]
    assert await house.renewable({}) == []


class Look:
    """Tells what a reference means, as often as it is asked: slowly, or with an error."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = "sha256:1"
        self.error: Refused | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, reference: str) -> ImageFacts:
        self.asked += 1
        answer = self.answer
        await self.open.wait()
        if self.error:
            raise self.error
        return ImageFacts(reference, answer)


async def test_a_meaning_is_asked_once_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same time and within the next seconds; each reference by itself; and again after that."""
    look = Look()
    meanings = Meanings(look)
    assert set(await asyncio.gather(*(meanings.of("nb") for _ in range(40)))) == {"sha256:1"}
    look.answer = "sha256:2"
    assert await meanings.of("nb") == "sha256:1"
    assert look.asked == 1
    assert await meanings.of("other") == "sha256:2"
    monkeypatch.setattr(module, "MEANING_SECONDS", 0.0)
    assert await meanings.of("nb") == "sha256:2"


async def test_a_meaning_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is unknown for now, nobody asks a second time, and the late answer counts."""
    monkeypatch.setattr(module, "MEANING_PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(module, "MEANING_SECONDS", 0.0)
    look = Look()
    look.open.clear()
    meanings = Meanings(look)
    assert [await meanings.of("nb") for _ in range(3)] == [None, None, None]
    assert look.asked == 1
    monkeypatch.setattr(module, "MEANING_SECONDS", SOON)
    look.open.set()
    await asyncio.sleep(0)
    assert await meanings.of("nb") == "sha256:1"
    assert look.asked == 1


async def test_a_meaning_that_is_forgotten_is_asked_anew() -> None:
    """Also where an older question is still under way: its answer is from before."""
    look = Look()
    look.open.clear()
    meanings = Meanings(look)
    early = asyncio.ensure_future(meanings.of("nb"))
    await until(lambda: look.asked == 1)
    meanings.forget("nb")
    look.answer = "sha256:2"
    look.open.set()
    assert await meanings.of("nb") == "sha256:2"
    assert await early == "sha256:1"
    assert await meanings.of("nb") == "sha256:2"
    assert look.asked == 2
    meanings.forget("never asked")


async def test_a_meaning_that_cannot_be_known_is_unknown() -> None:
    """And remembered as that for a moment: an engine that is down is not asked by every page."""
    look = Look()
    look.error = EngineError(Text("No."))
    meanings = Meanings(look)
    assert [await meanings.of("nb") for _ in range(3)] == [None, None, None]
    assert look.asked == 1


async def test_an_image_that_is_there_is_remembered_and_one_that_is_not_is_asked_for_again() -> None:
    """Somebody has just built it, and looks at the form."""
    look = Look()
    meanings = Meanings(look)
    look.error = ImageMissing(Text("No."))
    assert [await meanings.missing("nb") for _ in range(2)] == [True, True]
    assert await meanings.of("nb") is None
    assert look.asked == 3
    look.error = None
    assert [await meanings.missing("nb") for _ in range(3)] == [False, False, False]
    assert await meanings.of("nb") == "sha256:1"
    assert look.asked == 4


async def test_an_image_of_which_nothing_can_be_known_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 10: neither where the engine fails, nor where it does not tell soon enough."""
    monkeypatch.setattr(module, "MEANING_PATIENCE_SECONDS", 0.02)
    look = Look()
    meanings = Meanings(look)
    look.error = EngineError(Text("No."))
    assert not await meanings.missing("fails")
    look.open.clear()
    assert not await meanings.missing("hangs")


async def test_everybody_who_opens_the_form_at_once_shares_the_calls(standin: StandinEngine, house: House) -> None:
    """Sixteen forms: one list of the leases, one look at an image; what is built meanwhile is on the next form."""
    await house.offers(frozenset())
    before = len(standin.calls)
    forms = await asyncio.gather(*(house.offers(frozenset()) for _ in range(16)))
    asked = [call.operation for call, _ in standin.calls[before:]]
    assert asked.count("list") == 1
    assert len(asked) - 1 == 1, "the image that is missing is asked for, the one that is there is known"
    assert [offers[1].unavailable for offers, _, _ in forms] == [NOT_BUILT] * 16
    standin.add_image("gpuspawner/pytorch")
    offers, _, _ = await house.offers(frozenset())
    assert offers[1].unavailable is None


# Clearing away


async def test_only_what_nobody_will_start_is_removed(standin: StandinEngine, house: House) -> None:
    """This Hub's, created and never started; nothing of other Hubs or strangers, nothing that ran, nothing unclear."""
    await create(house, "abandoned", encode(lease("abandoned")))
    await create(house, "of-another-hub", encode(lease("of-another-hub", hub="other")))
    await create(house, "of-a-stranger", {"com.example": "1"})
    await create(house, "unreadable", {**encode(lease("unreadable")), "gpuspawner.lease": "9"})
    for name in ("running", "paused", "exited"):
        await create(house, name, encode(lease(name)))
        await house.engine.call("start", name)
    await house.engine.call("pause", "paused")
    standin.die("exited")
    await house.remove_abandoned()
    assert {container.name for container in standin.containers} == {
        "of-another-hub", "of-a-stranger", "unreadable", "running", "paused", "exited",
    }  # fmt: skip
    assert standin.container("running").running


@pytest.mark.fault(16)
async def test_clearing_away_twice_is_once(standin: StandinEngine, house: House) -> None:
    """Two rounds at once and one more: what is gone is gone, and nothing else goes with it."""
    for name in ("abandoned", "running"):
        await create(house, name, encode(lease(name)))
    await house.engine.call("start", "running")
    await asyncio.gather(house.remove_abandoned(), house.remove_abandoned())
    await house.remove_abandoned()
    assert [container.name for container in standin.containers] == ["running"]


@pytest.mark.fault(17)
async def test_what_ended_long_ago_is_removed(
    standin: StandinEngine, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub that was killed in the moment of a stop leaves it; what has just ended is for whoever polls it."""
    for name, hub in (("ended", "jupyter"), ("of-another-hub", "other"), ("running", "jupyter")):
        await create(house, name, encode(lease(name, hub=hub)))
        await house.engine.call("start", name)
    standin.die("ended")
    standin.die("of-another-hub")
    await house.remove_finished()
    await house.remove_finished()
    assert len(standin.containers) == 3
    monkeypatch.setattr(module, "KEEP_FINISHED_SECONDS", 0.0)
    await house.remove_finished()
    assert {container.name for container in standin.containers} == {"of-another-hub", "running"}


async def test_a_start_that_is_under_way_is_left_alone(standin: StandinEngine, house: House) -> None:
    """With a card or without; once it has failed and something comes late all the same, that is removed."""
    await house.ledger.reserve(Claim("starting", None))
    await create(house, "starting", encode(lease("starting")))
    await house.remove_abandoned()
    assert standin.container("starting")
    house.ledger.release("starting")
    await house.remove_abandoned()
    assert not standin.containers


async def test_a_start_that_began_after_the_look_is_left_alone(standin: StandinEngine, house: House) -> None:
    """The list is slow, and shows a container that nobody had in flight when the look began."""
    with standin.faults.during(EngineSlow(SOON, on="list", times=1)) as slow:
        looking = asyncio.ensure_future(house.remove_abandoned())
        await until(lambda: slow.struck)
        await house.ledger.reserve(Claim("new", None))
        await create(house, "new", encode(lease("new", started=datetime.now(timezone.utc))))
    await asyncio.wait_for(looking, SOON)
    assert standin.container("new")


@pytest.mark.fault(17)
async def test_it_goes_on_for_as_long_as_the_hub_lives(
    standin: StandinEngine, house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Begun once; an engine that is down is asked again; what an overdue call leaves later is found as well."""
    monkeypatch.setattr(module, "RECONCILE_SECONDS", 0.02)
    monkeypatch.setattr(module, "RECONCILE_RETRY_SECONDS", 0.02)
    await create(house, "before", encode(lease("before")))
    with standin.faults.during(Http500("list")) as fault:
        house.open()
        first = list(house._tasks)
        house.open()
        assert house._tasks == first
        await until(lambda: fault.struck > 1)
        assert standin.containers
    await until(lambda: not standin.containers)
    await create(house, "late", encode(lease("late")))
    await until(lambda: not standin.containers)
    assert "Removing before" in caplog.text
    assert "Removing late" in caplog.text
    await house.close()
    assert all(task.cancelled() for task in first)


async def test_what_was_loaded_at_the_start_is_no_longer_looked_through(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a process: a walk over it holds up everybody, and who has frozen something knows better."""
    frozen = [0]
    monkeypatch.setattr(module.gc, "get_freeze_count", lambda: frozen[0])
    monkeypatch.setattr(module.gc, "freeze", lambda: frozen.append(frozen.pop() + 1))
    house.open()
    await house.close()
    house._tasks.clear()
    house.open()
    await house.close()
    assert frozen == [1]


# What is being cleared away


async def test_an_undoing_is_remembered_until_it_is_done(house: House) -> None:
    """The next start of that server waits for it; an older one that ends does not hide a newer one."""
    owner, older, newer = Owner("ann"), asyncio.Event(), asyncio.Event()

    async def wait(event: asyncio.Event) -> None:
        await event.wait()

    house.keep_undoing(owner, first := asyncio.ensure_future(wait(older)))
    house.keep_undoing(owner, second := asyncio.ensure_future(wait(newer)))
    older.set()
    await first
    await asyncio.sleep(0)
    assert house.undoing == {owner: second}
    newer.set()
    await second
    await asyncio.sleep(0)
    assert house.undoing == {}


async def test_an_undoing_that_fails_is_in_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """It would be lost otherwise: nobody waits for it."""

    async def fail() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        house.keep_undoing(Owner("ann"), task := asyncio.ensure_future(fail()))
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert house.undoing == {}
    assert "Clearing up" in caplog.text
