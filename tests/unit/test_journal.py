"""The journal of leases on a real disk: what was written is read, whatever a crash, a full disk or a clock does."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuspawner.gpus import GpuUuid
from gpuspawner.journal import ACTIVE, Journal
from gpuspawner.leases import CardShare, Lease, Owner
from gpuspawner.units import GIB
from gpuspawner.usage import Spell
from tests import strategies

NOON = datetime(2026, 12, 1, 12, tzinfo=timezone.utc)
EVER = datetime(2000, 1, 1, tzinfo=timezone.utc)
A = GpuUuid("GPU-a")
MEMORY = {A: 24 * GIB}


def at(hours: float) -> datetime:
    """So many hours after noon."""
    return NOON + timedelta(hours=hours)


def lease(name: str, hours: float = 0, *, user: str = "ada", share: int | None = None, hub: str = "jupyter") -> Lease:
    """A lease of card A that began so many hours after noon."""
    return Lease(name, Owner(user, "", hub), "gpu", (CardShare(A, share),), at(hours))


def begin(journal: Journal, *leases: Lease, groups: str = "") -> None:
    """Write down that these began."""
    for one in leases:
        journal.began(one, groups.split(), MEMORY)


def close_up(journal: Journal, *leases: Lease, now: float, leave: tuple[str, ...] = ()) -> None:
    """Close the journal up after these labels."""
    journal.close_up(leases, at(now), groups_of=lambda user: [f"group of {user}"], memory_of=MEMORY, leave=leave)


def told(journal: Journal, since: datetime = EVER) -> list[tuple[str, datetime, datetime | None]]:
    """What it says, in short."""
    return [(spell.lease_id, spell.began, spell.ended) for spell in journal.read(since)]


def files(folder: Path) -> list[str]:
    """The names of the files, the active one last."""
    return sorted((path.name for path in folder.iterdir()), key=lambda name: (name == ACTIVE, name))


def damage(folder: Path, number: int, line: bytes) -> None:
    """Put something else where a line is."""
    lines = (folder / ACTIVE).read_bytes().split(b"\n")
    lines[number] = line
    (folder / ACTIVE).write_bytes(b"\n".join(lines))


@contextmanager
def full_disk(folder: Path, room: int) -> Iterator[None]:
    """No file of this process may grow by more than `room` bytes beyond what the journal has now.

    The kernel then writes what fits and refuses the rest, as a full disk does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / ACTIVE).stat().st_size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What is written is read


def test_a_lease_from_beginning_to_end(tmp_path: Path) -> None:
    """Who, since when, until when, in which groups, and how much of a card."""
    journal = Journal(tmp_path / "new" / "folder")
    begin(journal, lease("one", share=6 * GIB), groups="students lab")
    groups = frozenset({"students", "lab"})
    assert journal.read(EVER) == [Spell("one", "ada", groups, at(0), None, 0.25)]
    journal.ended("one", at(2))
    assert Journal(tmp_path / "new" / "folder").read(EVER) == [Spell("one", "ada", groups, at(0), at(2), 0.25)]


def test_nothing_was_written_yet(tmp_path: Path) -> None:
    """A folder that is not there holds no spells, and reading does not make it."""
    assert Journal(tmp_path / "none").read(EVER) == []
    assert not (tmp_path / "none").exists()


def test_only_what_touches_the_time_asked_for(tmp_path: Path) -> None:
    """What ended before is left out, what is open is not, however long ago it began."""
    journal = Journal(tmp_path)
    begin(journal, lease("long", -900), lease("old", -5), lease("young", -3))
    journal.ended("old", at(-4))
    journal.ended("young", at(-1))
    assert [name for name, *_ in told(journal, at(-2))] == ["long", "young"]


def test_it_belongs_to_its_owner(tmp_path: Path) -> None:
    """The files name users: nobody else may read them."""
    journal = Journal(tmp_path / "kept", rotate_bytes=1)
    begin(journal, lease("one"), lease("two"))
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").iterdir()} == {0o600}


@given(strategies.names(), strategies.names())
def test_any_name_stays_within_its_line(user: str, group: str) -> None:
    """Line feeds, quotes and half characters come back as they were."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.began(lease("one", user=user), [group], MEMORY)
        journal.ended("one", at(1))
        (spell,) = journal.read(EVER)
        assert (spell.user, spell.groups) == (user, frozenset({group}))
        assert len((Path(folder) / ACTIVE).read_bytes().splitlines()) == 2


@pytest.mark.parametrize("name", ["half \ud800 a character", "\x00", "\u2028\x85"], ids=ascii)
def test_names_that_are_no_text(tmp_path: Path, name: str) -> None:
    """Not even these break a line."""
    journal = Journal(tmp_path)
    begin(journal, lease("one", user=name))
    assert [spell.user for spell in journal.read(EVER)] == [name]


def test_ended_twice_or_never_begun(tmp_path: Path) -> None:
    """The first end counts; the end of an unknown lease says nothing."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"))
    journal.ended("one", at(1))
    journal.ended("one", at(5))
    journal.ended("unknown", at(5))
    assert told(journal) == [("one", at(0), at(1))]


@pytest.mark.fault(46)
def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """A lease that ends before it began took no time."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"))
    journal.ended("one", at(-3))
    assert told(journal) == [("one", at(0), at(0))]


def test_many_threads_write(tmp_path: Path) -> None:
    """Each line stays whole, and rotations meanwhile lose none."""
    journal = Journal(tmp_path, rotate_bytes=2000)

    def work(number: int) -> None:
        for index in range(10):
            begin(journal, lease(f"{number}-{index}", index))
            journal.ended(f"{number}-{index}", at(index + 1))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spells = journal.read(EVER)
    assert len(spells) == 60
    assert all(spell.ended is not None for spell in spells)


# Damage


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b'{"event":"ended","at":"2026-12-01T14:0', id="torn"),
        pytest.param(b"\x00" * 512, id="zeros"),
        pytest.param(b"\xff\xfe{", id="no text"),
        pytest.param(b"{", id="one byte"),
    ],
)
def test_a_torn_last_line(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It does not count, whether it is still the last one or not, and the next line starts on a line of its own."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"))
    with (tmp_path / ACTIVE).open("ab") as file:
        file.write(tail)
    assert told(journal) == [("one", at(0), None)]
    assert caplog.messages == []
    after = Journal(tmp_path)
    after.ended("one", at(3))
    begin(after, lease("two", 4))
    assert told(after) == [("one", at(0), at(3)), ("two", at(4), None)]
    assert caplog.messages == ["The journal has 1 lines that cannot be read and do not count: ['journal.jsonl line 2']"]


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    """Where only the line feed is missing, nothing is."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"))
    journal.ended("one", at(1))
    whole = (tmp_path / ACTIVE).read_bytes()
    (tmp_path / ACTIVE).write_bytes(whole[:-1])
    assert told(journal) == [("one", at(0), at(1))]
    begin(journal, lease("two", 2))
    assert [name for name, *_ in told(journal)] == ["one", "two"]


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_every_place_to_tear(tmp_path: Path, cut: int) -> None:
    """Wherever the last of three lines is torn, the two before are read and the next ones are, too."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"), lease("two", 1))
    size = (tmp_path / ACTIVE).stat().st_size
    begin(journal, lease("three", 2))
    data = (tmp_path / ACTIVE).read_bytes()
    (tmp_path / ACTIVE).write_bytes(data[: min(size + cut, len(data))])
    begin(journal, lease("four", 3))
    names = [name for name, *_ in told(journal)]
    assert [name for name in names if name != "three"] == ["one", "two", "four"]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"scribble", id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"17", id="a number"),
        pytest.param(b"[" * 100_000, id="very deep"),
        pytest.param(b'{"event":"began","at":"2026-12-01T12:00:00+00:00","hub":"jupyter"}', id="keys are missing"),
        pytest.param(b'{"event":"ended","at":"yesterday","hub":"jupyter","lease":"one"}', id="no moment"),
        pytest.param(b'{"event":"ended","at":"2026-12-01T12:00:00","hub":"jupyter","lease":"one"}', id="no zone"),
        pytest.param(
            b'{"event":"sang","at":"2026-12-01T12:00:00+00:00","hub":"jupyter","lease":"one"}', id="a new word"
        ),
        pytest.param(b'{"event":"ended","at":"2026-12-01T12:00:00+00:00","hub":"jupyter","lease":[]}', id="no id"),
        pytest.param(b'{"event":"alive","at":"2026-12-01T12:00:00+00:00","hub":{}}', id="no hub"),
    ],
)
def test_a_damaged_line_in_the_middle(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out with one line in the log, however often the journal is read; its neighbours count."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"), lease("lost", 1), lease("two", 2))
    damage(tmp_path, 1, line)
    for _ in range(3):
        assert told(journal) == [("one", at(0), None), ("two", at(2), None)]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("user", 7), ("groups", 7), ("groups", [7]), ("cards", [{}]), ("cards", None), ("lease", None)],
    ids=str,
)
def test_a_beginning_that_says_nonsense(tmp_path: Path, key: str, value: object) -> None:
    """Right words with wrong values do not count either."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"))
    line = json.loads((tmp_path / ACTIVE).read_text())
    damage(tmp_path, 0, json.dumps({**line, key: value}).encode())
    assert journal.read(EVER) == []


@pytest.mark.parametrize("room", [0, 1, 40, 180])
def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path, room: int, caplog: pytest.LogCaptureFixture) -> None:
    """The caller hears of it, no half line stays, and with room again it goes on."""
    journal = Journal(tmp_path)
    begin(journal, lease("one"))
    before = (tmp_path / ACTIVE).read_bytes()
    with full_disk(tmp_path, room), pytest.raises(OSError, match="File too large"):
        begin(journal, lease("two", 1))
    assert (tmp_path / ACTIVE).read_bytes() == before
    begin(journal, lease("two", 1))
    assert [name for name, *_ in told(journal)] == ["one", "two"]
    assert caplog.messages == []


def test_a_full_disk_at_the_rotation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be rotated grows on, and is rotated later; no draft stays behind."""
    journal = Journal(tmp_path, rotate_bytes=100)
    begin(journal, lease("one"))
    (tmp_path / "journal.next").mkdir()
    begin(journal, lease("two", 1))
    assert "cannot be rotated and grows on" in caplog.text
    assert [name for name, *_ in told(journal)] == ["one", "two"]
    (tmp_path / "journal.next").rmdir()
    begin(journal, lease("three", 2))
    assert files(tmp_path) == ["journal-20261201T130001Z-000001.jsonl", ACTIVE]
    assert [name for name, *_ in told(journal)] == ["one", "two", "three"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The caller hears of it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        begin(Journal(tmp_path / "file"), lease("one"))


# Rotation


def test_files_go_when_nobody_asks_for_them(tmp_path: Path) -> None:
    """An old file goes; what was open in it is in the next one."""
    journal = Journal(tmp_path, rotate_bytes=1, keep_seconds=24 * 3600)
    begin(journal, lease("open", -100), lease("done", -99))
    journal.ended("done", at(-98))
    begin(journal, lease("new", 0), lease("newer", 1))
    assert len(files(tmp_path)) == 2
    assert told(journal) == [("open", at(-100), None), ("new", at(0), None), ("newer", at(1), None)]


def test_the_youngest_file_stays_whatever_the_clock_says(tmp_path: Path) -> None:
    """A clock that is a year ahead for a moment does not take the last weeks with it."""
    journal = Journal(tmp_path, rotate_bytes=1, keep_seconds=24 * 3600)
    begin(journal, lease("one"))
    journal.ended("one", at(1))
    journal.alive(at(24 * 365))
    assert told(journal) == [("one", at(0), at(1))]


@pytest.mark.fault(46)
def test_a_clock_that_jumps_between_rotations(tmp_path: Path) -> None:
    """The order of the files is that of writing: what was ended stays ended, though the older file has a later name."""
    journal = Journal(tmp_path, rotate_bytes=1)
    begin(journal, lease("one"))
    journal.alive(at(24 * 365))
    journal.ended("one", at(1))
    begin(journal, lease("two", 2))
    assert told(journal) == [("one", at(0), at(1)), ("two", at(2), None)]
    assert told(journal, at(1.5)) == [("two", at(2), None)]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """What an admin put there is neither read nor removed."""
    (tmp_path / "journal-old.jsonl").write_text("mine")
    journal = Journal(tmp_path, rotate_bytes=1, keep_seconds=1)
    begin(journal, *(lease(str(number), number) for number in range(5)))
    assert (tmp_path / "journal-old.jsonl").read_text() == "mine"


def test_killed_in_the_middle_of_a_rotation(tmp_path: Path) -> None:
    """A copy beside the original, and a draft, say nothing new; the next rotation goes on from there."""
    journal = Journal(tmp_path, rotate_bytes=10_000)
    begin(journal, lease("one"), lease("two", 1))
    journal.ended("one", at(2))
    before = told(journal)
    shutil.copyfile(tmp_path / ACTIVE, tmp_path / "journal-20261201T140000Z-000001.jsonl")
    (tmp_path / "journal.next").write_text("half a dra")
    assert told(journal) == before
    journal = Journal(tmp_path, rotate_bytes=1)
    journal.ended("two", at(3))
    assert told(journal) == [("one", at(0), at(2)), ("two", at(1), at(3))]
    assert len(files(tmp_path)) == 3


# After a crash


@pytest.mark.fault(17, 41)
def test_labels_win(tmp_path: Path) -> None:
    """What the labels show is begun at the time on the label; what they do not show ended at the last sign of life."""
    journal = Journal(tmp_path)
    begin(journal, lease("lives", -5), lease("gone", -4))
    journal.alive(at(-2))
    after = Journal(tmp_path)
    close_up(after, lease("lives", -5), lease("unwritten", -3, user="bob"), now=0)
    assert told(after) == [("lives", at(-5), None), ("gone", at(-4), at(-2)), ("unwritten", at(-3), None)]
    assert after.read(EVER)[2].groups == frozenset({"group of bob"})


@pytest.mark.fault(16)
def test_closing_up_twice_is_once(tmp_path: Path) -> None:
    """The second time nothing is written."""
    journal = Journal(tmp_path)
    begin(journal, lease("gone", -4), lease("lives", -3))
    close_up(journal, lease("lives", -3), lease("unwritten", -1), now=0)
    before = (tmp_path / ACTIVE).read_bytes()
    close_up(journal, lease("lives", -3), lease("unwritten", -1), now=5)
    assert (tmp_path / ACTIVE).read_bytes() == before


def test_nobody_pays_for_downtime(tmp_path: Path) -> None:
    """Without any sign of life after its beginning a lease took no time; a future one is cut off at now."""
    journal = Journal(tmp_path)
    begin(journal, lease("gone", -4))
    close_up(journal, now=0)
    assert told(journal) == [("gone", at(-4), at(-4))]
    begin(journal, lease("next", -3))
    journal.alive(at(50))
    close_up(journal, now=0)
    assert told(journal)[1] == ("next", at(-3), at(0))


def test_a_lease_that_was_ended_by_mistake_goes_on(tmp_path: Path) -> None:
    """A look at the labels that missed it is mended by the next one that shows it."""
    journal = Journal(tmp_path)
    begin(journal, lease("one", -4), groups="students")
    close_up(journal, now=-1)
    assert told(journal)[0][2] is not None
    close_up(journal, lease("one", -4), now=0)
    assert journal.read(EVER) == [Spell("one", "ada", frozenset({"students"}), at(-4), None, 1.0)]


def test_what_is_being_started_is_left_alone(tmp_path: Path) -> None:
    """A lease whose container is not on the labels yet is not ended."""
    journal = Journal(tmp_path)
    begin(journal, lease("starting"))
    close_up(journal, now=1, leave=("starting",))
    assert told(journal) == [("starting", at(0), None)]


def test_another_hub_keeps_its_leases(tmp_path: Path) -> None:
    """Labels and lines of a Hub that shares the engine are not touched."""
    journal = Journal(tmp_path)
    begin(journal, lease("theirs", -4, hub="other"))
    close_up(journal, lease("also theirs", -3, hub="other"), now=0)
    assert told(journal) == [("theirs", at(-4), None)]


def test_signs_of_life_are_few(tmp_path: Path) -> None:
    """One in five minutes, and one more when the clock was set back."""
    journal = Journal(tmp_path)
    for minute in range(60):
        journal.alive(NOON + timedelta(minutes=minute))
    journal.alive(at(-1))
    assert len((tmp_path / ACTIVE).read_text().splitlines()) == 13


def test_reading_a_large_journal_is_no_burden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files from before the time asked for are not even opened."""
    journal = Journal(tmp_path, rotate_bytes=1)
    begin(journal, lease("old", -50))
    journal.ended("old", at(-49))
    begin(journal, lease("new"))
    for name in files(tmp_path)[:-1]:
        (tmp_path / name).write_text("unreadable\n")
    with caplog.at_level(logging.WARNING):
        assert told(journal, at(-1)) == [("new", at(0), None)]
    assert caplog.messages == []


# Whatever happens


class JournalMachine(RuleBasedStateMachine):
    """A journal with tiny files beside a plain model of what was leased: begun, ended, torn, killed, rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.hours = 0
        self.size = 300
        self.model: dict[str, tuple[datetime, datetime | None]] = {}
        self.journal = self._new()

    def _new(self) -> Journal:
        return Journal(self.folder, rotate_bytes=self.size, keep_seconds=10**9, alive_seconds=1)

    def _tick(self) -> float:
        self.hours += 1
        return self.hours

    def _open(self) -> list[str]:
        return [name for name, (_, ended) in self.model.items() if ended is None]

    @rule()
    def begin(self) -> None:
        """A lease begins."""
        hours = self._tick()
        begin(self.journal, lease(f"lease-{len(self.model)}", hours))
        self.model[f"lease-{len(self.model)}"] = (at(hours), None)

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """One of the open leases ends."""
        name, moment = data.draw(st.sampled_from(self._open())), at(self._tick())
        self.journal.ended(name, moment)
        self.model[name] = (self.model[name][0], moment)

    @rule()
    def alive(self) -> None:
        """A sign of life."""
        self.journal.alive(at(self._tick()))

    @rule(tail=st.binary(max_size=40), size=st.sampled_from((1, 300, 2000)))
    def crash(self, tail: bytes, size: int) -> None:
        """The process dies in the middle of a line; another one goes on, perhaps with another limit."""
        if (self.folder / ACTIVE).exists():
            with (self.folder / ACTIVE).open("ab") as file:
                file.write(b'{"event":' + tail.replace(b"\n", b""))
        self.size = size
        self.journal = self._new()

    @rule(data=st.data())
    def close_up(self, data: st.DataObject) -> None:
        """After downtime some of the containers are gone, and one is there of which nothing was written."""
        last = self.hours
        now = self._tick() + 5
        self.hours = int(now)
        gone = set(data.draw(st.lists(st.sampled_from(self._open() or ["none"]), unique=True)))
        for name in gone & self.model.keys():
            self.model[name] = (self.model[name][0], max(self.model[name][0], at(last)))
        self.model[f"lease-{len(self.model)}"] = (at(now), None)
        alive = [lease(name, (self.model[name][0] - NOON).total_seconds() / 3600) for name in self._open()]
        close_up(self.journal, *alive, now=now)
        close_up(self.journal, *alive, now=now + 1)

    @invariant()
    def nothing_is_lost(self) -> None:
        """It says what happened, no more and no less, to its own process and to another one."""
        expected = sorted((name, began, ended) for name, (began, ended) in self.model.items())
        assert sorted(told(self.journal)) == expected
        assert sorted(told(self._new())) == expected
        recent = at(self.hours - 3)
        assert sorted(told(self.journal, recent)) == [one for one in expected if one[2] is None or one[2] > recent]

    def teardown(self) -> None:
        """Take the files away."""
        shutil.rmtree(self.folder)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
