"""The journal follows the labels: on a real disk, with an engine that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gpuspawner import accounting as module
from gpuspawner.accounting import Accounting
from gpuspawner.errors import EngineDown
from gpuspawner.gpus import GpuUuid
from gpuspawner.journal import Journal
from gpuspawner.leases import CardShare, Lease, Owner
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from gpuspawner.usage import Spell

A = GpuUuid("GPU-a")
NOW = datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc)
WEEK = 7 * 86400


class Lab:
    """Labels, groups and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leases: list[Lease] = []
        self.down = False
        self.now = NOW
        self.groups: dict[str, frozenset[str]] = {"ann": frozenset({"students"})}
        self.accounting = self.hub_comes_up()

    def hub_comes_up(self) -> Accounting:
        """It knows nothing but the labels and the files."""
        self.accounting = Accounting(
            Journal(self.folder),
            self.look,
            self.groups_of,
            self.memory_of,
            lambda: (),
            window_seconds=WEEK,
            clock=lambda: self.now,
        )
        return self.accounting

    async def look(self) -> list[Lease]:
        """The labels."""
        if self.down:
            raise EngineDown(Text("The Docker engine does not answer."))
        return list(self.leases)

    def groups_of(self, users: Collection[str]) -> Mapping[str, Collection[str]]:
        """By the database."""
        return {user: self.groups.get(user, frozenset()) for user in users}

    async def memory_of(self) -> Mapping[GpuUuid, int]:
        """One card of 24 GiB."""
        return {A: 24 * GIB}

    def begin(self, lease_id: str, memory_bytes: int | None = None) -> None:
        """A container with a lease."""
        self.leases.append(Lease(lease_id, Owner("ann"), "gpu", (CardShare(A, memory_bytes),), self.now))

    @property
    def spells(self) -> tuple[Spell, ...]:
        """What limits count with."""
        assert self.accounting.history.trouble is None
        return self.accounting.history.spells


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """With an empty folder."""
    return Lab(tmp_path / "journal")


async def test_beginnings_and_ends_are_written_down(lab: Lab) -> None:
    """With the groups of the beginning, and the part of the card."""
    lab.begin("one", 6 * GIB)
    await lab.accounting.update()
    assert lab.spells == (Spell("one", "ann", frozenset({"students"}), NOW, None, 0.25),)
    lab.now += timedelta(hours=1)
    lab.leases.clear()
    await lab.accounting.update()
    assert [spell.ended for spell in lab.spells] == [NOW + timedelta(hours=1)]


async def test_a_lease_without_a_card_is_no_gpu_time(lab: Lab) -> None:
    """It is not in the journal."""
    lab.leases.append(Lease("cpu", Owner("ann"), "cpu", (), NOW))
    await lab.accounting.update()
    assert lab.spells == ()


@pytest.mark.fault(34)
async def test_an_engine_that_does_not_answer_ends_nothing(lab: Lab) -> None:
    """Unknown is not gone; until the first look nothing is known at all."""
    lab.down = True
    await lab.accounting.update()
    assert lab.accounting.history.trouble is not None
    lab.down = False
    lab.begin("one")
    await lab.accounting.update()
    lab.down = True
    await lab.accounting.update()
    assert [spell.ended for spell in lab.spells] == [None]


@pytest.mark.fault(17)
async def test_a_restarted_hub_goes_on_with_the_files(lab: Lab) -> None:
    """What runs goes on; what ended unseen has ended at the last sign of life."""
    lab.begin("one")
    lab.begin("two")
    await lab.accounting.update()
    lab.now += timedelta(hours=2)
    del lab.leases[0]
    await lab.hub_comes_up().update()
    assert {spell.lease_id: spell.ended for spell in lab.spells} == {"one": NOW, "two": None}


async def test_a_journal_that_cannot_be_written_is_unknown_and_tried_again(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """The admin reads it in the log; nothing is lost once the disk is back."""
    lab.folder.write_text("a file where the folder should be")
    lab.begin("one")
    await lab.accounting.update()
    assert lab.accounting.history.trouble is not None
    assert "The journal of leases cannot be kept" in caplog.text
    lab.folder.unlink()
    await lab.accounting.update()
    assert [spell.lease_id for spell in lab.spells] == ["one"]


async def test_it_looks_when_told_and_now_and_then(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is cancelled."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 60)
    running = asyncio.ensure_future(lab.accounting.run())
    while lab.accounting.history.trouble:
        await asyncio.sleep(0.01)
    lab.begin("one")
    lab.accounting.nudge()
    while not lab.spells:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def test_who_asks_before_the_first_look_waits_for_it_and_not_for_ever(lab: Lab) -> None:
    """It is over when it has failed, too."""
    await lab.accounting.looked(0.01)
    assert lab.accounting.history.trouble is not None
    running = asyncio.ensure_future(lab.accounting.run())
    await lab.accounting.looked(60)
    assert lab.accounting.history.trouble is None
    running.cancel()
    lab.down = True
    young = lab.hub_comes_up()
    running = asyncio.ensure_future(young.run())
    await young.looked(60)
    assert young.history.trouble is not None
    running.cancel()
