"""Which cards the Hub may lease: the caretaker between a driver that can be driven, a real file, and a real ledger."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from gpuspawner import ledger
from gpuspawner.cards import NAME, CardsFile
from gpuspawner.caretaker import UNREADABLE, Caretaker
from gpuspawner.errors import EngineDown, NoRoom, Reason
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.gpus import Gpu, GpuUuid, Inventory, Sample, Xid
from gpuspawner.leases import CardShare, Held, Holdings, Owner
from gpuspawner.ledger import Ledger, Place
from gpuspawner.placement import Policy
from gpuspawner.profiles import GpuRequest
from gpuspawner.quarantine import Drained
from gpuspawner.terms import Claim
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests.standins.gpustate import DEFAULT_CARDS, GpuState, Process, nvml_environment

ROOT = Path(__file__).parents[2]
A, B = GpuUuid("GPU-aaaa"), GpuUuid("GPU-bbbb")
AT = datetime(2026, 3, 2, 9, 30, tzinfo=timezone.utc)
SOON = 10.0
GRACE = 30.0


class Driver:
    """Two cards with a driver behind them; a look is remembered until somebody wants a new one."""

    def __init__(self) -> None:
        self.pids: dict[GpuUuid, tuple[int, ...]] = {A: (), B: ()}
        self.used: dict[GpuUuid, int] = {A: 0, B: 0}
        self.trouble: Text | None = None
        self.xids: list[Xid] = []
        self.looks = 0
        self.anew = 0
        self.cached: Inventory | None = None
        self.now = 100.0

    def see(self) -> Inventory:
        if self.trouble:
            return Inventory(trouble=self.trouble)
        self.looks += 1
        self.now += 0.5
        cards = tuple(Gpu(uuid, index, "RTX 4090", 24 * GIB, index) for index, uuid in enumerate((A, B)))
        samples = {uuid: Sample(self.now, self.used[uuid], self.pids[uuid], False) for uuid in (A, B)}
        return Inventory(cards, samples=samples)

    async def inventory(self) -> Inventory:
        return self.cached or self.see()

    async def look_anew(self) -> Inventory:
        self.anew += 1
        if self.cached:
            self.cached = self.see()
        return self.cached or self.see()

    def take_xids(self) -> tuple[Xid, ...]:
        taken, self.xids = tuple(self.xids), []
        return taken


@dataclass
class Desk:
    """A caretaker and a ledger as a house has them, on a driver and labels that a test changes."""

    folder: Path | None = None
    driver: Driver = field(default_factory=Driver)
    labels: dict[str, Held] = field(default_factory=dict)
    engine_down: bool = False
    while_labels_are_read: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.caretaker = Caretaker(
            self.driver,
            self.look_at_labels,
            self.folder,
            grace_seconds=GRACE,
            clock=lambda: AT,
            now=lambda: self.driver.now + 0.1,
        )
        self.ledger = Ledger(self.caretaker.holdings, self.caretaker.inventory, Policy(), clock=lambda: AT)
        self.caretaker.promises = self.ledger

    async def look_at_labels(self) -> Holdings:
        found = dict(self.labels)
        self.while_labels_are_read()
        if self.engine_down:
            raise EngineDown(Text("down", "down"))
        return found

    def serve(self, uuid: GpuUuid, lease_id: str = "lease") -> None:
        """A container that holds this card."""
        self.labels[lease_id] = Held((CardShare(uuid),))

    async def reserve(self, lease_id: str = "new") -> tuple[GpuUuid, ...]:
        """One whole card."""
        cards = (await self.ledger.reserve(Claim(lease_id, GpuRequest(count=1)))).cards
        return tuple(card.uuid for card in cards)

    async def faults(self) -> dict[GpuUuid, str]:
        """After one look at everything: what the next decision leaves out, and why."""
        await self.ledger.standing()
        return {gpu.uuid: gpu.fault.en for gpu in (await self.caretaker.inventory()).gpus if gpu.fault}

    async def taken(self) -> dict[GpuUuid, datetime | None]:
        """What is held, by whomever, until when."""
        standing = await self.ledger.standing()
        return {card.uuid: held.ends for held in standing.held for card in held.cards}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Two idle cards, nothing leased, a folder for the file."""
    return Desk(tmp_path)


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition, with a deadline."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


# Drained


@pytest.mark.fault(8)
async def test_a_drained_card_is_not_leased_and_the_file_reaches_a_running_hub(desk: Desk, tmp_path: Path) -> None:
    """Another program writes it, the next look follows, and back; who has the card keeps it."""
    desk.serve(A)
    CardsFile(tmp_path).change(lambda record: record.drain(A, Drained(AT, "kim", "fan")))
    assert await desk.faults() == {A: "This GPU was taken out of use by the admin: fan."}
    assert await desk.taken() == {A: None}
    desk.labels.clear()
    assert await desk.reserve() == (B,)
    with pytest.raises(NoRoom):
        await desk.reserve("second")
    CardsFile(tmp_path).change(lambda record: record.undrain(A))
    assert await desk.reserve("second") == (A,)


async def test_a_drained_card_is_drained_after_a_restart(tmp_path: Path) -> None:
    """The next Hub reads the file before it leases anything."""
    CardsFile(tmp_path).change(lambda record: record.drain(A, Drained(AT)))
    assert await Desk(tmp_path).reserve() == (B,)


async def test_simulated_cards_can_be_drained_too(tmp_path: Path) -> None:
    """For trying it out; nothing else is ever wrong with them."""
    source = FakeGPUs("2x24GiB")
    first, second = (gpu.uuid for gpu in (await source.inventory()).gpus)
    CardsFile(tmp_path).change(lambda record: record.drain(first, Drained(AT)))

    async def labels() -> Holdings:
        return {"lease": Held((CardShare(second),))}

    caretaker = Caretaker(source, labels, tmp_path)
    seen = await caretaker.inventory()
    assert [gpu.drained for gpu in seen.gpus] == [True, False]
    assert seen.simulated
    assert set(await caretaker.holdings()) == {"lease"}


async def test_on_a_file_that_was_never_readable_nothing_is_leased(desk: Desk, tmp_path: Path) -> None:
    """Law 10: a card that burns may be on it. It is looked at again each time."""
    (tmp_path / NAME).write_text("{")
    seen = await desk.caretaker.inventory()
    assert (seen.gpus, seen.trouble) == ((), UNREADABLE)
    assert "cards.json, which says what cards are drained, cannot be read" in seen.detail
    (tmp_path / NAME).unlink()
    assert await desk.reserve() == (A,)


@pytest.mark.fault(41)
async def test_a_file_that_is_damaged_later_means_what_it_meant(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last good state holds, and the log says so once."""
    CardsFile(tmp_path).change(lambda record: record.drain(A, Drained(AT)))
    assert set(await desk.faults()) == {A}
    (tmp_path / NAME).write_text("{")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert set(await desk.faults()) == {A}
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert "what it said before holds good" in caplog.text
    (tmp_path / NAME).write_text('{"format": 1, "drained": {}, "xids": {}}')
    assert await desk.faults() == {}


async def test_a_file_is_read_only_when_it_has_changed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each form asks; a look at the name is all that it costs."""
    CardsFile(tmp_path).change(lambda record: record.drain(A, Drained(AT)))
    reads = []
    real = CardsFile.read
    monkeypatch.setattr(CardsFile, "read", lambda self: (reads.append(1), real(self))[1])
    for _ in range(5):
        await desk.faults()
    assert len(reads) == 1


# XIDs


@pytest.mark.fault(24, 28)
async def test_a_critical_xid_takes_the_card_out_and_is_still_known_after_a_restart(desk: Desk, tmp_path: Path) -> None:
    """An error of a program does not; only an admin clears it, in the running Hub as well."""
    desk.driver.xids = [Xid(B, 31), Xid(A, 79), Xid(A, 154)]
    assert list(await desk.faults()) == [A]
    await until(lambda: (tmp_path / NAME).exists() and not desk.caretaker._memory._new)
    assert CardsFile(tmp_path).read().struck[A].xid == 79
    assert await Desk(tmp_path).reserve() == (B,)
    assert list(await desk.faults()) == [A]
    CardsFile(tmp_path).change(lambda record: record.undrain(A))
    assert await desk.faults() == {}


async def test_an_xid_that_cannot_be_written_down_counts_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says that a restart forgets it; it is tried again with each look."""
    desk = Desk(tmp_path / "later")
    desk.driver.xids = [Xid(A, 79)]
    for _ in range(3):
        assert list(await desk.faults()) == [A]
        await asyncio.sleep(0)
    await until(lambda: "could not be written down and is forgotten at the next restart" in caplog.text)
    (tmp_path / "later").mkdir()
    deadline = time.monotonic() + SOON
    while not CardsFile(tmp_path / "later").read().struck:
        assert list(await desk.faults()) == [A]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert list(await desk.faults()) == [A]


async def test_without_a_folder_an_xid_is_known_until_the_process_ends() -> None:
    """And nothing is written anywhere."""
    desk = Desk(None)
    desk.driver.xids = [Xid(A, 79)]
    for _ in range(3):
        assert list(await desk.faults()) == [A]
        await asyncio.sleep(0)


# From outside


@pytest.mark.fault(13, 38)
async def test_a_card_in_use_from_outside_is_not_leased_from_the_first_look_on(desk: Desk) -> None:
    """Already the decision that meets it leaves it out, and the next look has the sentence."""
    desk.driver.pids[A] = (4711,)
    assert await desk.reserve() == (B,)
    assert await desk.faults() == {A: "This GPU is in use from outside; it is left out until that has ended."}
    desk.driver.pids[A] = ()
    assert await desk.reserve("second") == (A,)


async def test_a_server_that_starts_between_the_looks_is_not_from_outside(desk: Desk) -> None:
    """Its program is there by the next look, and so is its label; not even for a moment is it taken for foreign."""
    desk.while_labels_are_read = lambda: desk.driver.pids.update({A: (1,)})
    await desk.ledger.standing()
    desk.serve(A)
    assert await desk.faults() == {}
    assert await desk.taken() == {A: None}


async def test_a_reservation_in_flight_is_not_from_outside(desk: Desk) -> None:
    """Its container may compute before the labels are read again."""
    assert await desk.reserve() == (A,)
    desk.driver.pids[A] = (1,)
    for _ in range(2):
        assert await desk.faults() == {}
        assert list(await desk.taken()) == [A]
        desk.driver.now += 2 * GRACE


async def test_labels_are_judged_with_what_was_seen_before_them(desk: Desk) -> None:
    """Somebody else looks at the cards meanwhile, and meets the program of a server that these labels do not show."""

    async def labels() -> Holdings:
        desk.driver.pids[A] = (1,)
        await caretaker.inventory()
        return {}

    caretaker = Caretaker(desk.driver, labels, now=lambda: desk.driver.now + 0.1)
    await caretaker.inventory()
    assert await caretaker.holdings() == {}


async def test_a_card_that_is_being_cleared_costs_one_new_look(desk: Desk) -> None:
    """Evidence from after the end of the lease is good enough until the next usual look."""
    desk.serve(A)
    desk.driver.pids[A] = (1,)
    await desk.ledger.standing()
    desk.labels.clear()
    for _ in range(4):
        assert list(await desk.taken()) == [A]
    assert desk.driver.anew == 1


async def test_a_look_at_old_labels_does_not_undo_a_newer_one(desk: Desk) -> None:
    """Two look at once, and the one that began first is answered last."""
    release = asyncio.Event()
    looks = iter([{}, {"lease": Held((CardShare(A),))}])

    async def slow() -> Holdings:
        found: Holdings = next(looks)
        if not found:
            await release.wait()
        return found

    caretaker = Caretaker(desk.driver, slow, now=lambda: desk.driver.now + 0.1)
    desk.driver.pids[A] = (1,)
    await caretaker.inventory()
    first = asyncio.ensure_future(caretaker.holdings())
    await asyncio.sleep(0)
    await caretaker.holdings()
    release.set()
    assert await first == {}
    assert [gpu.fault for gpu in (await caretaker.inventory()).gpus] == [None, None]


async def test_labels_that_cannot_be_read_change_nothing(desk: Desk) -> None:
    """Nothing is leased on unknown, and nobody is called foreign on it."""
    desk.serve(A)
    desk.driver.pids[A] = (1,)
    await desk.ledger.standing()
    desk.engine_down = True
    with pytest.raises(EngineDown):
        await desk.reserve()
    assert all(gpu.fault is None for gpu in (await desk.caretaker.inventory()).gpus)


async def test_a_driver_that_does_not_answer_is_its_own_trouble(desk: Desk) -> None:
    """It goes through as it is, and what was known of the cards is known afterwards."""
    desk.driver.pids[A] = (4711,)
    assert list(await desk.faults()) == [A]
    desk.driver.trouble = Text("no answer", "no answer")
    assert (await desk.ledger.standing()).inventory.trouble == desk.driver.trouble
    desk.driver.trouble = None
    assert list(await desk.faults()) == [A]


# After a lease


@pytest.mark.fault(4, 25, 47)
async def test_a_card_is_handed_over_when_it_is_clean(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """While the grace runs the card is taken, until a moment that can be waited for."""
    desk.labels["other"] = Held((CardShare(B),))
    desk.serve(A)
    desk.driver.pids[A] = (1,)
    await desk.ledger.standing()
    del desk.labels["lease"]
    with pytest.raises(NoRoom) as refused:
        await desk.reserve()
    assert refused.value.reason is Reason.BUSY
    ends = (await desk.taken())[A]
    assert ends is not None
    assert AT < ends <= AT + timedelta(seconds=GRACE)
    desk.driver.now += GRACE
    with caplog.at_level(logging.WARNING), pytest.raises(NoRoom):
        await desk.reserve()
    assert f"{A} is left out (not-clean)" in caplog.text
    assert "Programs of the last server" in (await desk.faults())[A]
    desk.driver.pids[A] = ()
    assert await desk.reserve() == (A,)
    assert f"{A} is in use again" in caplog.text


@pytest.mark.fault(47)
async def test_who_waits_is_the_next_when_the_card_is_clean(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server before is gone and its process is not: the head of the line keeps its place, and gets the card."""
    monkeypatch.setattr(ledger, "TICK_SECONDS", 0.01)
    desk.labels["other"] = Held((CardShare(B),))
    desk.serve(A)
    desk.driver.pids[A] = (1,)
    request = GpuRequest(count=1)
    places: list[Place | None] = []
    waiting = [
        asyncio.ensure_future(desk.ledger.reserve(Claim(name, request), wait_seconds=SOON, on_wait=places.append))
        for name in ("head", "next")
    ]
    await until(lambda: len(places) == 2)
    del desk.labels["lease"]
    looks = desk.driver.looks
    await until(lambda: desk.driver.looks > looks + 5)
    assert not any(task.done() for task in waiting)
    desk.driver.pids[A] = ()
    assert (await waiting[0]).cards == (CardShare(A),)
    assert [waiter.id for waiter in (await desk.ledger.standing()).line] == ["next"]
    waiting[1].cancel()
    await asyncio.wait([waiting[1]])


@pytest.mark.fault(37, 38)
async def test_an_end_that_only_the_engine_tells_of_frees_no_card(desk: Desk) -> None:
    """A daemon that died says "exited" (255) of a server whose process lives on: what runs on the card is believed."""
    desk.labels["other"] = Held((CardShare(B),))
    desk.serve(A)
    desk.driver.pids[A] = (1,)
    await desk.ledger.standing()
    del desk.labels["lease"]
    for after in (0.0, GRACE, 1000.0):
        desk.driver.now += after
        with pytest.raises(NoRoom):
            await desk.reserve()
    desk.driver.pids[A] = ()
    assert await desk.reserve() == (A,)


async def test_a_server_that_is_started_again_at_once_gets_its_card(desk: Desk) -> None:
    """What the driver said a moment before the stop is asked again, not held against the next start."""
    desk.labels["other"] = Held((CardShare(B),))
    desk.serve(A)
    desk.driver.pids[A], desk.driver.used[A] = (1,), 20 * GIB
    desk.driver.cached = desk.driver.see()
    await desk.ledger.standing()
    del desk.labels["lease"]
    desk.driver.pids[A], desk.driver.used[A] = (), 0
    assert await desk.reserve() == (A,)
    assert desk.driver.anew == 1


async def test_a_start_that_came_and_went_between_two_looks_has_left_its_own(desk: Desk) -> None:
    """What it left is no stranger's: the card is taken for the grace, not out of order."""
    desk.labels["other"] = Held((CardShare(B),))
    assert await desk.reserve("short") == (A,)
    desk.ledger.release("short")
    desk.driver.pids[A] = (1,)
    assert await desk.faults() == {}
    assert set(await desk.taken()) == {A, B}


async def test_a_fault_is_logged_once_and_once_more_when_its_kind_changes(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Forms are asked for all day."""
    desk.driver.pids[A] = (4711,)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            await desk.faults()
        CardsFile(tmp_path).change(lambda record: record.drain(A, Drained(AT)))
        for _ in range(4):
            await desk.faults()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"{A} is left out (foreign)",
        f"{A} is left out (drained)",
    ]


# Held by several


@pytest.mark.fault(5)
async def test_a_card_that_several_hold_is_an_alarm_and_nobody_is_stopped(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with the names of both; nobody else gets it; and once more when another one joins them."""
    for number, user in enumerate(("kim", "lee\nforged")):
        desk.labels[f"lease-{number}"] = Held((CardShare(A),), Owner(user))
    for number in range(3):
        assert await desk.reserve(f"{number}") == (B,)
        desk.ledger.release(f"{number}")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    said = record.getMessage()
    assert said.startswith(f"{A} is held by more than it has room for: 'kim' '' (hub 'jupyter', lease-0)")
    assert "'lee\\nforged'" in said
    desk.labels["unreadable"] = Held((CardShare(A),))
    await desk.faults()
    assert "container unreadable" in caplog.records[-1].getMessage()
    for name in ("lease-0", "unreadable"):
        del desk.labels[name]
    caplog.clear()
    assert list(await desk.taken()) == [A]
    assert not caplog.records


# On the stand-in driver

PROGRAM = """
import asyncio, json, sys, types

sys.modules["gpuspawner"] = package = types.ModuleType("gpuspawner")
package.__path__ = ["gpuspawner"]
from pathlib import Path
from gpuspawner.caretaker import Caretaker
from gpuspawner.leases import CardShare, Held
from gpuspawner.nvml import Nvml

leased = []

async def labels():
    return {uuid: Held((CardShare(uuid),)) for uuid in leased}

async def main():
    caretaker = Caretaker(Nvml(cache_seconds=0.0), labels, Path(sys.argv[1]), grace_seconds=float(sys.argv[2]))
    for line in sys.stdin:
        leased[:] = json.loads(line)
        await caretaker.inventory()
        held = await caretaker.holdings()
        seen = await caretaker.inventory()
        # The XID is written down in the background.
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        print(json.dumps({
            "faults": {gpu.uuid: gpu.fault.en for gpu in seen.gpus if gpu.fault},
            "held": sorted(card.uuid for each in held.values() for card in each.cards),
        }), flush=True)

asyncio.run(main())
"""
FIRST, SECOND = (card.uuid for card in DEFAULT_CARDS)


@dataclass
class Hub:
    """A process with the real pynvml on the stand-in driver."""

    process: subprocess.Popen[str]

    def look(self, *leased: str) -> tuple[dict[str, str], list[str]]:
        """While these cards are on labels: what is left out and why, and what is held."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(leased) + "\n")
        self.process.stdin.flush()
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said["faults"], said["held"]


@dataclass(frozen=True)
class Machine:
    """The stand-in driver, its cards, and the Hub's folder."""

    library: Path
    folder: Path

    def cards(self, state: GpuState) -> None:
        state.write(self.folder / "gpus")

    @contextmanager
    def hub(self, grace_seconds: float = 1000.0) -> Iterator[Hub]:
        environment = {**os.environ, **nvml_environment(self.library, self.folder / "gpus"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, str(self.folder), str(grace_seconds)]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                yield Hub(process)
            finally:
                process.kill()


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    """Two RTX 4090, idle."""
    machine = Machine(library, tmp_path)
    machine.cards(GpuState())
    return machine


@pytest.mark.fault(13)
def test_the_driver_tells_of_somebody_from_outside(machine: Machine) -> None:
    """A program of MPS counts, what draws on a screen does not."""
    with machine.hub() as hub:
        assert hub.look() == ({}, [])
        machine.cards(GpuState().with_card(FIRST, processes=(Process(4711, kind="mps"),)))
        faults, held = hub.look()
        assert "in use from outside" in faults[FIRST]
        assert held == [FIRST]
        machine.cards(GpuState().with_card(FIRST, used=2**30, processes=(Process(1, kind="graphics"),)))
        assert hub.look() == ({}, [])


@pytest.mark.fault(25)
def test_the_driver_tells_when_the_memory_is_back(machine: Machine) -> None:
    """22 GiB stay after the server has gone."""
    full = GpuState().with_card(FIRST, used=22 * 2**30)
    with machine.hub() as hub:
        hub.look()
        machine.cards(full.with_card(FIRST, processes=(Process(4711),)))
        assert hub.look(FIRST) == ({}, [FIRST])
        machine.cards(full)
        assert hub.look() == ({}, [FIRST])
        machine.cards(GpuState())
        assert hub.look() == ({}, [])


@pytest.mark.fault(25)
def test_memory_that_does_not_come_back_is_a_fault(machine: Machine) -> None:
    """The sentence says how much it is."""
    with machine.hub(grace_seconds=0.0) as hub:
        hub.look(FIRST)
        machine.cards(GpuState().with_card(FIRST, used=22 * 2**30))
        faults, held = hub.look()
        assert "still has 22 GiB of memory in use after its last server has ended" in faults[FIRST]
        assert held == []


@pytest.mark.fault(24, 28)
def test_an_xid_of_the_driver_is_known_to_the_next_hub(machine: Machine) -> None:
    """Told by the driver once, written down, and cleared by an admin only."""
    state = GpuState()
    with machine.hub() as hub:
        hub.look()
        machine.cards(state.with_xid(FIRST, 31).with_xid(SECOND, 79).with_card(SECOND, lost=True))
        faults, _ = hub.look()
        assert list(faults) == [SECOND]
        assert "does not answer" in faults[SECOND]
    machine.cards(state)
    with machine.hub() as hub:
        assert "(XID 79)" in hub.look()[0][SECOND]
        CardsFile(machine.folder).change(lambda record: record.undrain(GpuUuid(SECOND)))
        assert hub.look() == ({}, [])


@pytest.mark.fault(27)
def test_one_sick_card_leaves_the_other_alone(machine: Machine) -> None:
    """Lost or to be reset, each by itself."""
    with machine.hub() as hub:
        hub.look()
        for change in ({"lost": True}, {"reset": True}):
            machine.cards(replace(GpuState()).with_card(FIRST, **change))
            faults, held = hub.look(SECOND)
            assert list(faults) == [FIRST]
            assert held == [SECOND]
        machine.cards(GpuState())
        assert hub.look() == ({}, [])
