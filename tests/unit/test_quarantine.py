"""Which cards are left out, why, and when they are well again; the laws of it by property tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner import quarantine
from gpuspawner.gpus import Gpu, GpuUuid, Inventory, Sample
from gpuspawner.leases import CardShare, Held
from gpuspawner.placement import Policy
from gpuspawner.quarantine import FIRST_IDLE_BYTES, TOLERANCE_BYTES, Cause, Drained, Record, State, Struck, Watched
from gpuspawner.texts import Text
from gpuspawner.units import GIB, MIB
from tests import strategies as ours

A, B = GpuUuid("GPU-aaaa"), GpuUuid("GPU-bbbb")
CARDS = tuple(Gpu(uuid, index, "NVIDIA GeForce RTX 4090", 24 * GIB, index) for index, uuid in enumerate((A, B)))
AT = datetime(2026, 3, 2, 9, 30, tzinfo=timezone.utc)
GRACE = 30.0
IDLE = 450 * MIB


@dataclass
class Room:
    """A machine with two cards, and somebody who looks at it as the Hub does: cards first, then leases."""

    now: float = 100.0
    state: State = field(default_factory=dict)
    record: Record = field(default_factory=Record)
    inventory: Inventory = field(default_factory=lambda: Inventory(CARDS))

    def look(
        self,
        *leased: GpuUuid,
        used: int | None = IDLE,
        pids: tuple[int, ...] | None = (),
        draws: bool | None = False,
        given: frozenset[GpuUuid] = frozenset(),
        after: float = 1.0,
    ) -> dict[GpuUuid, Cause]:
        """Card A does this, B nothing; the leases are looked at a moment later."""
        self.now += after
        samples = {A: Sample(self.now, used, pids, draws), B: Sample(self.now, IDLE, (), False)}
        self.inventory = replace(self.inventory, samples=samples)
        self.state = quarantine.look_again(self.state, self.inventory)
        self.now += 0.01
        held = frozenset(leased)
        self.state = quarantine.watch(self.state, self.inventory, leased=held, given=given, now=self.now)
        return self.causes

    @property
    def faults(self) -> dict[GpuUuid, quarantine.Fault]:
        """What is left out now."""
        return quarantine.faults(self.inventory, self.record, self.state, now=self.now, grace_seconds=GRACE)

    @property
    def causes(self) -> dict[GpuUuid, Cause]:
        """What is left out now, and the kind of reason."""
        return {uuid: fault.cause for uuid, fault in self.faults.items()}

    @property
    def clearing(self) -> set[GpuUuid]:
        """What is not clean yet and may still become so in time."""
        left = quarantine.clearing(self.state, self.inventory, now=self.now, grace_seconds=GRACE)
        return {uuid for uuid, seconds in left.items() if seconds is not None}


@pytest.fixture
def room() -> Room:
    """A machine that was just looked at for the first time, idle."""
    room = Room()
    assert room.look() == {}
    return room


# Somebody from outside


@pytest.mark.fault(13)
def test_a_process_on_a_card_that_nobody_leased_is_foreign_until_it_is_gone(room: Room) -> None:
    """The card is left out and says so; the other one is not concerned."""
    assert room.look(pids=(4711,), used=8 * GIB) == {A: Cause.FOREIGN}
    assert room.faults[A].text.en.startswith("This GPU is in use from outside")
    assert "외부" in room.faults[A].text.ko
    assert room.look(pids=(4711,)) == {A: Cause.FOREIGN}
    assert room.look() == {}


def test_a_process_on_a_leased_card_is_that_of_the_lease(room: Room) -> None:
    """However long it was there before the lease was seen on the labels."""
    assert room.look(A, pids=(4711,), used=8 * GIB) == {}


def test_whoever_was_taken_for_foreign_and_is_on_the_labels_now_is_ours(room: Room) -> None:
    """A lease settles it at once."""
    room.look(pids=(4711,))
    assert room.look(A, pids=(4711,)) == {}


def test_something_new_on_a_card_is_judged_by_a_look_at_the_leases_only(room: Room) -> None:
    """A second look at the cards alone may meet a server that has just begun."""
    room.inventory = replace(room.inventory, samples={A: Sample(room.now + 5, 8 * GIB, (4711,), False)})
    room.state = quarantine.look_again(room.state, room.inventory)
    assert room.causes == {}


@pytest.mark.parametrize(
    ("used", "draws"),
    [pytest.param(2 * GIB, True, id="a desktop"), pytest.param(8 * GIB, None, id="memory alone")],
)
def test_memory_without_a_computing_process_is_nobody_from_outside(room: Room, used: int, draws: bool | None) -> None:
    """A desktop on the card does not take it away, and memory names nobody."""
    assert room.look(used=used, draws=draws) == {}


def test_processes_that_are_not_told_are_no_evidence(room: Room) -> None:
    """Law 10: a driver that tells no processes says neither that there are some nor that they are gone."""
    assert room.look(pids=None, used=None) == {}
    room.look(pids=(4711,))
    assert room.look(pids=None) == {A: Cause.FOREIGN}
    assert room.look() == {}


# After a lease


@pytest.mark.fault(25, 47)
@pytest.mark.parametrize(
    ("used", "pids", "words"),
    [
        pytest.param(20 * GIB, (), "still has 20 GiB of memory in use", id="memory"),
        pytest.param(IDLE, (4711,), "Programs of the last server are still on this GPU", id="processes"),
    ],
)
def test_what_a_lease_leaves_behind_holds_the_card_then_faults_it_then_clears(
    room: Room, used: int, pids: tuple[int, ...], words: str
) -> None:
    """For the grace the card is still taken, beyond it a fault, and well when it is clean."""
    room.look(A, used=20 * GIB, pids=(4711,))
    assert room.look(used=used, pids=pids) == {}
    assert room.clearing == {A}
    assert room.look(used=used, pids=pids, after=GRACE - 2) == {}
    assert room.clearing == {A}
    assert room.look(used=used, pids=pids, after=2) == {A: Cause.NOT_CLEAN}
    assert room.clearing == set()
    assert words in room.faults[A].text.en
    assert room.look() == {}
    assert room.look(after=1000) == {}


def test_a_clean_card_is_free_at_once_when_its_lease_ends(room: Room) -> None:
    """Nobody waits for a grace that is not needed."""
    room.look(A, used=20 * GIB, pids=(4711,))
    assert room.look() == {}
    assert room.clearing == set()


def test_a_lease_that_no_look_has_seen_leaves_something_behind_too(room: Room) -> None:
    """Its cards were given away since the last look: what is on them is its own, and nobody's from outside."""
    assert room.look(pids=(4711,), given=frozenset({A})) == {}
    assert room.clearing == {A}


def test_the_next_lease_ends_the_watch_for_the_last(room: Room) -> None:
    """The seconds count from the end of the lease that was there last."""
    room.look(A, pids=(1,))
    room.look(pids=(1,))
    room.look(A, pids=(1,), after=100)
    assert room.look(pids=(1,)) == {}
    assert room.clearing == {A}


@pytest.mark.parametrize(
    ("idle", "used", "clean"),
    [
        pytest.param(IDLE, IDLE + TOLERANCE_BYTES, True, id="within the tolerance"),
        pytest.param(IDLE, IDLE + TOLERANCE_BYTES + 1, False, id="above it"),
        pytest.param(None, FIRST_IDLE_BYTES + TOLERANCE_BYTES, True, id="never seen idle"),
        pytest.param(None, FIRST_IDLE_BYTES + TOLERANCE_BYTES + 1, False, id="never seen idle, above"),
    ],
)
def test_memory_is_back_when_it_is_near_idle(idle: int | None, used: int, clean: bool) -> None:
    """Idle is the least that was seen on the unused card, or what a driver keeps for itself."""
    room = Room()
    if idle is not None:
        room.look(used=idle)
    room.look(A, used=20 * GIB, pids=(4711,))
    room.look(used=used)
    assert (room.clearing == set()) is clean


def test_leaks_do_not_add_up_unseen(room: Room) -> None:
    """Each lease leaves 400 MiB: the second time it is too much, because idle is the least and not the last."""
    for leaked, clean in ((400 * MIB, True), (800 * MIB, False)):
        room.look(A, used=20 * GIB, pids=(1,))
        room.look(used=IDLE + leaked)
        assert (room.clearing == set()) is clean


@pytest.mark.parametrize("draws", [True, None])
def test_memory_says_nothing_where_a_screen_may_be_drawn(room: Room, draws: bool | None) -> None:
    """A window that was opened meanwhile must not take the card away for ever; processes still count."""
    room.look(A, used=20 * GIB, pids=(4711,))
    room.look(used=3 * GIB, draws=draws)
    assert room.clearing == set()
    room.look(A, pids=(4711,))
    room.look(used=3 * GIB, draws=draws, pids=(4711,))
    assert room.clearing == {A}


def test_evidence_from_before_the_end_is_stale_and_newer_evidence_settles_it(room: Room) -> None:
    """The program of a server that was stopped right after the look at the cards is no leftover."""
    room.look(A, pids=(4711,))
    room.look(pids=(4711,))
    assert quarantine.stale(room.state, room.inventory)
    room.inventory = replace(room.inventory, samples={A: Sample(room.now + 1, IDLE, (), False)})
    room.state = quarantine.look_again(room.state, room.inventory)
    assert not quarantine.stale(room.state, room.inventory)
    assert room.clearing == set()


def test_a_card_that_is_lost_after_its_lease_is_watched_again_when_it_is_back(room: Room) -> None:
    """What it does while it is lost is not known; the driver's own reason is shown."""
    room.look(A, pids=(4711,))
    room.look(pids=(4711,))
    lost = Inventory((replace(CARDS[0], fault=ours.FAULT), CARDS[1]))
    state = quarantine.watch(room.state, lost, leased=frozenset(), now=room.now + 1)
    assert state[A].ended == room.state[A].ended
    assert quarantine.clearing(state, lost, now=room.now, grace_seconds=GRACE) == {}
    gone = Inventory(CARDS[1:])
    assert quarantine.clearing(state, gone, now=room.now, grace_seconds=GRACE) == {}
    assert quarantine.faults(lost, Record(), state, now=room.now + 100, grace_seconds=GRACE)[A].cause is Cause.DRIVER


def test_cards_that_never_tell_anything_are_leased_again_at_once() -> None:
    """Simulated ones, and a driver that tells neither memory nor processes."""
    state: State = {A: Watched(leased=True), B: Watched(leased=True)}
    silent = Inventory(CARDS, samples={B: Sample(100.0)})
    state = quarantine.watch(state, silent, leased=frozenset(), now=101.0)
    assert quarantine.clearing(state, silent, now=101.0, grace_seconds=GRACE) == {}


# What is remembered


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        pytest.param("", "This GPU was taken out of use by the admin.", id="no reason"),
        pytest.param("fan is loud", "This GPU was taken out of use by the admin: fan is loud.", id="with a reason"),
    ],
)
def test_a_drained_card_is_left_out_and_says_why(room: Room, reason: str, sentence: str) -> None:
    """Also while it is idle and well; and nobody who has it loses it."""
    room.record = room.record.drain(A, Drained(AT, "kim", reason))
    assert room.look() == {A: Cause.DRAINED}
    assert room.faults[A].text.en == sentence
    judged = quarantine.apply(room.inventory, room.faults)
    assert [gpu.drained for gpu in judged.gpus] == [True, False]
    assert judged.gpus[1] == CARDS[1]
    room.record = room.record.undrain(A)
    assert room.look(A) == {}


@pytest.mark.fault(24, 28)
def test_an_xid_stays_until_an_admin_clears_it(room: Room) -> None:
    """The card is checked again before each lease, and looking well is not enough."""
    room.record = room.record.strike(A, Struck(AT, 79))
    assert room.look() == {A: Cause.XID}
    assert room.look(after=1e6) == {A: Cause.XID}
    assert "(XID 79)" in room.faults[A].text.en
    room.record = room.record.undrain(A)
    assert room.look() == {}


def test_the_first_xid_is_the_one_that_is_shown() -> None:
    """Those that follow are mostly its consequences."""
    record = Record().strike(A, Struck(AT, 79)).strike(A, Struck(AT, 154))
    assert record.struck[A].xid == 79


@pytest.mark.fault(28)
@pytest.mark.parametrize("xid", [13, 31, 43, 45, 68, 109])
def test_errors_of_programs_do_not_take_a_card_away(xid: int) -> None:
    """NVIDIA's own list."""
    assert not quarantine.is_critical(xid)


@pytest.mark.fault(28)
@pytest.mark.parametrize("xid", [48, 62, 74, 79, 94, 95, 119, 140])
def test_every_other_xid_does(xid: int) -> None:
    """Double bit errors, a link, the bus, contained errors, the firmware."""
    assert quarantine.is_critical(xid)


def test_undraining_one_card_leaves_the_others() -> None:
    """And undraining what was never drained changes nothing."""
    record = Record().drain(A, Drained(AT)).drain(B, Drained(AT)).strike(B, Struck(AT, 79))
    assert record.undrain(A) == Record({B: Drained(AT)}, {B: Struck(AT, 79)})
    assert record.undrain(GpuUuid("GPU-cccc")) == record


def test_a_drained_card_that_is_lost_says_that_it_is_drained(room: Room) -> None:
    """The admin knows; whatever else is wrong is in the details of the driver."""
    room.inventory = Inventory((replace(CARDS[0], fault=Text("lost", "lost")), CARDS[1]))
    room.record = room.record.drain(A, Drained(AT))
    assert room.causes == {A: Cause.DRAINED}


# More than there is


WHOLE, HALF, MOST = CardShare(A), CardShare(A, 12 * GIB), CardShare(A, 20 * GIB)


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    ("cards", "too_much"),
    [
        pytest.param([WHOLE], False, id="one alone"),
        pytest.param([WHOLE, WHOLE], True, id="two alone"),
        pytest.param([WHOLE, HALF], True, id="the whole and a share"),
        pytest.param([HALF, HALF], False, id="shares that fit"),
        pytest.param([HALF, MOST], True, id="shares that do not"),
        pytest.param([WHOLE, CardShare(B)], False, id="each a card"),
    ],
)
def test_a_card_that_several_hold_is_found(cards: list[CardShare], too_much: bool) -> None:
    """With all that hold it, and no other card."""
    holdings = {f"lease-{number}": Held((card,)) for number, card in enumerate(cards)}
    found = quarantine.doubled(Inventory(CARDS), holdings)
    assert found == ({A: ("lease-0", "lease-1")} if too_much else {})


def test_shares_of_a_card_of_unknown_size_are_not_too_many() -> None:
    """Law 10; two that hold it alone are, whatever its size."""
    lost = Inventory((replace(CARDS[0], memory_bytes=0, fault=ours.FAULT),))
    for inventory in (lost, Inventory()):
        assert quarantine.doubled(inventory, {"a": Held((MOST,)), "b": Held((MOST,))}) == {}
        assert quarantine.doubled(inventory, {"a": Held((WHOLE,)), "b": Held((WHOLE,))}) == {A: ("a", "b")}


@given(st.data(), ours.inventories(), ours.policies())
def test_what_is_placed_by_the_rules_is_never_too_much(
    data: st.DataObject, inventory: Inventory, policy: Policy
) -> None:
    """No false alarm: whatever is held legally fits."""
    occupancy = data.draw(ours.occupancies(inventory, policy))
    holdings = {f"{number}": Held((card,)) for number, card in enumerate(occupancy.cards)}
    assert quarantine.doubled(inventory, holdings) == {}


# Laws


LOOKS = st.lists(
    st.tuples(
        st.sets(st.sampled_from([A, B])),
        st.sampled_from([None, IDLE, 3 * GIB, 20 * GIB]),
        st.sampled_from([None, (), (1,), (1, 2)]),
        st.sampled_from([None, False, True]),
        st.sets(st.sampled_from([A, B])),
        st.floats(0.0, 100.0),
    ),
    max_size=12,
)


@given(looks=LOOKS)
def test_whatever_happened_a_clean_and_unused_card_is_well_after_two_looks(looks: list[tuple]) -> None:
    """Nothing but an admin's word outlasts its reason; time alone changes nothing on a clean card."""
    room = Room()
    for leased, used, pids, draws, given_, after in looks:
        room.look(*leased, used=used, pids=pids, draws=draws, given=frozenset(given_), after=after)
    room.look(used=0)
    assert room.look(used=0) == {}
    assert room.clearing == set()


@given(looks=LOOKS)
def test_a_leased_card_is_never_called_foreign_or_unclean(looks: list[tuple]) -> None:
    """What runs on it is its holder's; and a card is never still taken and out of order at once."""
    room = Room()
    for leased, used, pids, draws, given_, after in looks:
        causes = room.look(*leased, used=used, pids=pids, draws=draws, given=frozenset(given_), after=after)
        assert not leased & (causes.keys() | room.clearing)
        assert not causes.keys() & room.clearing


@given(inventory=ours.inventories(), drained=st.sets(ours.uuids()), struck=st.sets(ours.uuids()))
def test_every_drained_struck_or_sick_card_has_a_fault_and_no_other_has(
    inventory: Inventory, drained: set[GpuUuid], struck: set[GpuUuid]
) -> None:
    """Faults stay with their card: order, number and names are what they were."""
    record = Record(dict.fromkeys(drained, Drained(AT)), dict.fromkeys(struck, Struck(AT, 79)))
    found = quarantine.faults(inventory, record, {}, now=0.0, grace_seconds=GRACE)
    judged = quarantine.apply(inventory, found)
    assert [gpu.uuid for gpu in judged.gpus] == [gpu.uuid for gpu in inventory.gpus]
    for before, after in zip(inventory.gpus, judged.gpus, strict=True):
        sick = before.fault is not None or before.uuid in drained | struck
        assert (after.fault is not None) is sick
        assert after.drained is (before.uuid in drained)
