"""Reservations in flight: no moment exists in which a promise is seen neither by the labels nor by the ledger.

The look at the labels is a future that the test answers when it likes, so that each interleaving is written out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gpuspawner.errors import EngineDown, GpusUnknown, NoRoom, Reason
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held
from gpuspawner.ledger import Grant, Ledger
from gpuspawner.placement import Occupancy, Policy
from gpuspawner.profiles import GpuRequest
from gpuspawner.terms import Claim
from gpuspawner.texts import Text
from gpuspawner.units import GIB

POLICY = Policy(reserve_bytes=0)
ONE_CARD = GpuRequest.model_validate({"count": 1})
BOTH_CARDS = GpuRequest.model_validate({"count": 2})
SHARE = GpuRequest.model_validate({"memory": "8G"})
A, B = GpuUuid("GPU-a"), GpuUuid("GPU-b")
WHOLE_A, WHOLE_B, SHARE_A = CardShare(A), CardShare(B), CardShare(A, 8 * GIB)
Labels = dict[str, tuple[CardShare, ...]]
NOTHING: Labels = {}


def card(uuid: GpuUuid, index: int) -> Gpu:
    """A card of 24 GiB."""
    return Gpu(uuid, index, "NVIDIA GeForce RTX 4090", 24 * GIB, index)


class Machine:
    """The two callables that a ledger is given: labels answered by the test, and cards."""

    def __init__(self, *uuids: GpuUuid) -> None:
        self.inventory = Inventory(tuple(card(uuid, index) for index, uuid in enumerate(uuids)))
        self.looks: list[asyncio.Future[Labels]] = []
        self.ledger = Ledger(self.look_at_labels, self.look_at_gpus, POLICY)

    async def look_at_labels(self) -> dict[str, Held]:
        """Pending until the test answers the future."""
        self.looks.append(asyncio.get_running_loop().create_future())
        return {key: Held(cards) for key, cards in (await self.looks[-1]).items()}

    async def look_at_gpus(self) -> Inventory:
        """The cards of this moment."""
        return self.inventory

    async def begin(self, work: Coroutine[Any, Any, Any]) -> tuple[asyncio.Task[Any], asyncio.Future[Labels]]:
        """Start something that looks at the labels; gives the task and its look, which is under way."""
        before = len(self.looks)
        task = asyncio.ensure_future(work)
        while len(self.looks) == before and not task.done():
            await asyncio.sleep(0)
        return task, self.looks[-1]

    async def reserve(self, lease_id: str, request: GpuRequest | None, seen: Labels = NOTHING) -> tuple[CardShare, ...]:
        """A reservation whose look is answered at once."""
        task, look = await self.begin(self.ledger.reserve(Claim(lease_id, request)))
        look.set_result(seen)
        cards: tuple[CardShare, ...] = (await task).cards
        return cards

    async def occupancy(self, seen: Labels = NOTHING) -> Occupancy:
        """What is held, for somebody who looks now and sees these labels."""
        task, look = await self.begin(self.ledger.standing())
        look.set_result(seen)
        return (await task).occupancy

    async def held(self, seen: Labels = NOTHING) -> list[CardShare]:
        """The same, sorted."""
        return sorted((await self.occupancy(seen)).cards, key=lambda share: (share.uuid, share.memory_bytes or 0))


@pytest.fixture
def one() -> Machine:
    """A machine with one card."""
    return Machine(A)


@pytest.fixture
def two() -> Machine:
    """A machine with two cards."""
    return Machine(A, B)


# One after the other


async def test_a_reservation_is_seen_by_the_next(two: Machine) -> None:
    """Before any container exists: the labels still say nothing."""
    assert await two.reserve("first", ONE_CARD) == (WHOLE_A,)
    assert await two.reserve("second", ONE_CARD) == (WHOLE_B,)
    with pytest.raises(NoRoom) as refused:
        await two.reserve("third", ONE_CARD)
    assert refused.value.reason is Reason.BUSY
    assert await two.held() == [WHOLE_A, WHOLE_B]


@pytest.mark.fault(7, 22)
async def test_what_the_labels_say_is_counted(two: Machine) -> None:
    """Law 1: also of containers that this process never started."""
    assert await two.reserve("mine", ONE_CARD, {"older": (WHOLE_A,)}) == (WHOLE_B,)
    with pytest.raises(NoRoom):
        await two.reserve("other", SHARE, {"older": (WHOLE_A,)})


@pytest.mark.fault(16)
async def test_labels_and_flight_of_one_lease_are_one(one: Machine) -> None:
    """A container that is listed while its start is still under way is not counted twice."""
    assert await one.reserve("first", SHARE) == (SHARE_A,)
    assert await one.held({"first": (SHARE_A,)}) == [SHARE_A]
    # Three shares of 8 GiB fit into 24 GiB.
    assert await one.reserve("second", SHARE, {"first": (SHARE_A,)}) == (SHARE_A,)
    assert await one.reserve("third", SHARE, {"first": (SHARE_A,), "second": (SHARE_A,)}) == (SHARE_A,)


async def test_settled_and_labelled_are_one(one: Machine) -> None:
    """The same for a start that ends during the look."""
    await one.reserve("first", SHARE)
    task, look = await one.begin(one.ledger.standing())
    one.ledger.settle("first")
    look.set_result({"first": (SHARE_A,)})
    assert list((await task).occupancy.cards) == [SHARE_A]


async def test_a_release_gives_the_card_back(one: Machine) -> None:
    """At once, to whoever looks next."""
    await one.reserve("first", ONE_CARD)
    one.ledger.release("first")
    assert await one.held() == []
    assert await one.reserve("second", ONE_CARD) == (WHOLE_A,)


@pytest.mark.fault(19)
async def test_a_release_may_be_repeated(two: Machine) -> None:
    """No counter goes below zero, and nobody else's promise is touched (Slurm 24.05.0rc1)."""
    await two.reserve("first", ONE_CARD)
    await two.reserve("second", ONE_CARD)
    for _ in range(3):
        two.ledger.release("first")
        two.ledger.release("never heard of")
        two.ledger.settle("never heard of")
    assert await two.held() == [WHOLE_B]


async def test_a_settled_lease_is_what_its_labels_say(one: Machine) -> None:
    """After the settle a look that does not find the container finds the card free: nothing else remembers it."""
    await one.reserve("first", ONE_CARD)
    one.ledger.settle("first")
    assert await one.held({"first": (WHOLE_A,)}) == [WHOLE_A]
    assert await one.held() == []


async def test_a_start_without_a_card_is_in_flight_and_holds_nothing(one: Machine) -> None:
    """It needs neither cards nor labels to be known."""
    one.inventory = Inventory(trouble=Text("the driver does not answer"))
    assert (await one.ledger.reserve(Claim("cpu", None))).cards == ()
    assert one.looks == []
    assert one.ledger.in_flight() == {"cpu"}
    assert await one.held() == []
    one.ledger.settle("cpu")
    assert one.ledger.in_flight() == frozenset()


# At the same time


@pytest.mark.fault(1)
async def test_of_two_that_look_together_one_gets_the_card(one: Machine) -> None:
    """Both saw the card free; deciding and writing down is one step."""
    first, look_1 = await one.begin(one.ledger.reserve(Claim("first", ONE_CARD)))
    second, look_2 = await one.begin(one.ledger.reserve(Claim("second", ONE_CARD)))
    look_2.set_result(NOTHING)
    assert (await second).cards == (WHOLE_A,)
    look_1.set_result(NOTHING)
    with pytest.raises(NoRoom):
        await first
    assert one.ledger.in_flight() == {"second"}


@pytest.mark.fault(1)
async def test_a_settle_during_a_look_hides_nothing(one: Machine) -> None:
    """The list was made before the container, and the start ended before the list arrived: still counted."""
    await one.reserve("first", ONE_CARD)
    late, look = await one.begin(one.ledger.reserve(Claim("second", ONE_CARD)))
    one.ledger.settle("first")
    look.set_result(NOTHING)
    with pytest.raises(NoRoom):
        await late


async def test_a_settle_during_two_looks_is_kept_for_the_older(one: Machine) -> None:
    """The end of the younger look, begun after the settle, does not make the older one forget."""
    await one.reserve("first", ONE_CARD)
    old, old_look = await one.begin(one.ledger.reserve(Claim("second", ONE_CARD)))
    one.ledger.settle("first")
    young, young_look = await one.begin(one.ledger.standing())
    young_look.set_result({"first": (WHOLE_A,)})
    await young
    old_look.set_result(NOTHING)
    with pytest.raises(NoRoom):
        await old


async def test_the_oldest_look_decides_what_is_kept(one: Machine) -> None:
    """A third look ends while an old one and a young one are under way."""
    await one.reserve("first", ONE_CARD)
    old, old_look = await one.begin(one.ledger.reserve(Claim("second", ONE_CARD)))
    one.ledger.settle("first")
    young, young_look = await one.begin(one.ledger.standing())
    await one.held({"first": (WHOLE_A,)})
    old_look.set_result(NOTHING)
    with pytest.raises(NoRoom):
        await old
    young_look.set_result(NOTHING)
    await young


async def test_the_younger_look_does_not_count_what_the_older_one_has_to(one: Machine) -> None:
    """A container that died after its settle is free for a look that began afterwards."""
    await one.reserve("first", ONE_CARD)
    old, old_look = await one.begin(one.ledger.standing())
    one.ledger.settle("first")
    assert await one.held() == []
    old_look.set_result(NOTHING)
    assert list((await old).occupancy.cards) == [WHOLE_A]


@pytest.mark.fault(3)
async def test_a_stale_list_still_counts_a_container_that_has_gone(one: Machine) -> None:
    """The other error would be a card that two hold."""
    task, look = await one.begin(one.ledger.reserve(Claim("second", ONE_CARD)))
    one.ledger.release("first")
    look.set_result({"first": (WHOLE_A,)})
    with pytest.raises(NoRoom):
        await task


async def test_a_release_during_a_look_frees_the_card_for_it(one: Machine) -> None:
    """Nothing of the failed start is on the labels, and its reservation is gone when the look ends."""
    await one.reserve("first", ONE_CARD)
    task, look = await one.begin(one.ledger.reserve(Claim("second", ONE_CARD)))
    one.ledger.release("first")
    look.set_result(NOTHING)
    assert (await task).cards == (WHOLE_A,)


@pytest.mark.fault(15)
async def test_a_reservation_in_the_middle_of_a_look_is_counted_by_it(two: Machine) -> None:
    """However old the list is."""
    wide, look = await two.begin(two.ledger.reserve(Claim("wide", BOTH_CARDS)))
    await two.reserve("narrow", ONE_CARD)
    look.set_result(NOTHING)
    with pytest.raises(NoRoom):
        await wide
    assert two.ledger.in_flight() == {"narrow"}


async def test_many_at_once_get_exactly_what_there_is(two: Machine) -> None:
    """Law 2 in a burst: 8 GiB of 2 × 24 GiB fit six times, in whatever order the lists arrive."""
    tasks = [asyncio.ensure_future(two.ledger.reserve(Claim(f"lease-{number}", SHARE))) for number in range(20)]
    while len(two.looks) < len(tasks):
        await asyncio.sleep(0)
    for look in reversed(two.looks):
        look.set_result(NOTHING)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert len([grant for grant in ended if isinstance(grant, Grant)]) == 6
    assert len([error for error in ended if isinstance(error, NoRoom)]) == 14


# When it goes wrong


DOWN = EngineDown(Text("the engine does not answer", "엔진이 응답하지 않습니다"))


@pytest.mark.fault(2)
async def test_nothing_is_leased_on_labels_that_cannot_be_read(one: Machine) -> None:
    """The error goes through, for a reservation and for the form alike; nothing is held."""
    for work in (one.ledger.reserve(Claim("first", ONE_CARD)), one.ledger.standing()):
        task, look = await one.begin(work)
        look.set_exception(DOWN)
        with pytest.raises(EngineDown):
            await task
    assert one.ledger.in_flight() == frozenset()
    assert await one.held() == []


async def test_nothing_is_leased_on_cards_that_are_unknown(one: Machine) -> None:
    """Law 10: unknown is not zero, and it is not free either."""
    one.inventory = Inventory(trouble=Text("the driver does not answer"), detail="NVML: 999")
    with pytest.raises(GpusUnknown):
        await one.reserve("first", ONE_CARD)
    assert one.ledger.in_flight() == frozenset()


async def test_a_cancelled_reservation_holds_nothing(one: Machine) -> None:
    """Cancelled while it looks; the next one gets the card."""
    task, _ = await one.begin(one.ledger.reserve(Claim("first", ONE_CARD)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await one.reserve("second", ONE_CARD) == (WHOLE_A,)


async def fail(machine: Machine, number: int) -> None:
    """A look that fails."""
    task, look = await machine.begin(machine.ledger.reserve(Claim(f"{number}", ONE_CARD)))
    look.set_exception(DOWN)
    await asyncio.wait([task])
    assert task.exception() is DOWN


async def cancel(machine: Machine, number: int) -> None:
    """A look that is cancelled."""
    task, _ = await machine.begin(machine.ledger.reserve(Claim(f"{number}", ONE_CARD)))
    task.cancel()
    await asyncio.wait([task])


async def settle(machine: Machine, number: int) -> None:
    """A start that succeeds, with a look under way when it ends."""
    await machine.reserve(f"{number}", ONE_CARD)
    task, look = await machine.begin(machine.ledger.standing())
    machine.ledger.settle(f"{number}")
    look.set_result(NOTHING)
    await task


async def release(machine: Machine, number: int) -> None:
    """A start that fails, released twice."""
    await machine.reserve(f"{number}", ONE_CARD)
    machine.ledger.release(f"{number}")
    machine.ledger.release(f"{number}")


async def settle_and_release(machine: Machine, number: int) -> None:
    """A start that settled during a look and is released before its end."""
    await machine.reserve(f"{number}", ONE_CARD)
    task, look = await machine.begin(machine.ledger.standing())
    machine.ledger.settle(f"{number}")
    machine.ledger.release(f"{number}")
    look.set_result(NOTHING)
    assert (await task).occupancy.cards == ()


@pytest.mark.parametrize("course", [fail, cancel, settle, release, settle_and_release])
async def test_what_is_over_is_forgotten(
    one: Machine, course: Callable[[Machine, int], Coroutine[Any, Any, None]]
) -> None:
    """A Hub runs for months: nothing grows with the number of starts."""
    for number in range(50):
        await course(one, number)
    ledger = one.ledger
    assert (len(ledger._in_flight), len(ledger._settled), len(ledger._looks)) == (0, 0, 0)
    assert await one.reserve("next", ONE_CARD) == (WHOLE_A,)


async def test_a_look_that_never_ends_keeps_no_more_than_what_it_needs(one: Machine) -> None:
    """Starts that settled before it began are forgotten all the same."""
    for number in range(10):
        await settle(one, number)
    task, look = await one.begin(one.ledger.standing())
    await one.reserve("last", ONE_CARD)
    one.ledger.settle("last")
    assert list(one.ledger._settled) == ["last"]
    look.set_result(NOTHING)
    await task
    assert one.ledger._settled == {}
