"""The file of drained and struck cards: one step or none, two writers, damage, and the words about all that."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner import cards as module
from gpuspawner.cards import NAME, CardsFile
from gpuspawner.errors import RecordError
from gpuspawner.gpus import GpuUuid
from gpuspawner.quarantine import Drained, Record, Struck
from tests import strategies as ours

ROOT = Path(__file__).parents[2]
A, B = GpuUuid("GPU-aaaa"), GpuUuid("GPU-bbbb")
AT = datetime(2026, 3, 2, 9, 30, tzinfo=timezone.utc)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc)).map(
    lambda moment: moment.replace(microsecond=0)
)
RECORDS = st.builds(
    Record,
    drained=st.dictionaries(ours.uuids(), st.builds(Drained, MOMENTS, ours.names(), ours.names())),
    struck=st.dictionaries(ours.uuids(), st.builds(Struck, MOMENTS, st.integers(1, 200))),
)


def drain(uuid: GpuUuid) -> Callable[[Record], Record]:
    """One change."""
    return lambda record: record.drain(uuid, Drained(AT, "kim", "fan"))


@given(record=RECORDS)
def test_what_was_written_is_read_back(record: Record, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any reason in any script."""
    file = CardsFile(tmp_path_factory.mktemp("state"))
    assert file.change(lambda _: record) == record
    assert file.read() == record


def test_without_a_file_every_card_is_in_use(tmp_path: Path) -> None:
    """Also without the folder: a Hub that starts for the first time has neither."""
    assert CardsFile(tmp_path).read() == CardsFile(tmp_path / "none").read() == Record()
    assert CardsFile(tmp_path).stamp() is None


def test_a_change_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    """And each that does has another stamp."""
    file = CardsFile(tmp_path)
    file.change(lambda record: record)
    assert not list(tmp_path.iterdir())
    file.change(drain(A))
    first = file.stamp()
    file.change(drain(A))
    assert file.stamp() == first
    file.change(drain(B))
    assert file.stamp() != first


def test_the_hub_may_read_what_root_has_written(tmp_path: Path) -> None:
    """Temporary files are for their owner alone; this one must not stay so."""
    CardsFile(tmp_path).change(drain(A))
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


KILLED = """
import os, sys
from datetime import datetime, timezone
from pathlib import Path
from gpuspawner import cards
from gpuspawner.quarantine import Drained
where, name = sys.argv[2].split(".")
setattr({"os": os, "Path": Path}[where], name, lambda *arguments, **options: os._exit(9))
file = cards.CardsFile(Path(sys.argv[1]))
file.change(lambda record: record.drain("GPU-bbbb", Drained(datetime.now(timezone.utc))))
"""


@pytest.mark.fault(23)
@pytest.mark.parametrize("at", ["os.fdopen", "os.fchmod", "os.fsync", "Path.replace"])
def test_a_program_that_is_killed_before_the_rename_leaves_the_old_file_and_no_lock(tmp_path: Path, at: str) -> None:
    """Whatever it was doing; the next change goes through."""
    file = CardsFile(tmp_path)
    before = file.change(drain(A))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), at], env=environment, check=False)
    assert done.returncode == 9
    assert file.read() == before
    assert set(file.change(drain(B)).drained) == {A, B}


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence says so, and no half of a file is left."""
    file = CardsFile(tmp_path)
    before = file.change(drain(A))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RecordError, match=r"cannot be written \(No space left on device\); it is what it was"):
            file.change(drain(B))
    assert file.read() == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"format": 1, "drained": {"GPU-aaaa": {"at": "2026-0', id="torn"),
        pytest.param('{"format": 2, "drained": {}, "xids": {}}', id="another version"),
        pytest.param('{"format": 1, "drained": {}}', id="a part is missing"),
        pytest.param('{"format": 1, "drained": [], "xids": {}}', id="a list"),
        pytest.param("[]", id="no mapping"),
        pytest.param(
            '{"format": 1, "drained": {"GPU-a": {"at": 5, "by": "", "reason": ""}}, "xids": {}}', id="a number"
        ),
        pytest.param('{"format": 1, "drained": {"GPU-a": {"by": "", "reason": ""}}, "xids": {}}', id="no time"),
        pytest.param("[" * 100_000, id="too deep"),
        pytest.param("\udcff", id="not UTF-8"),
    ],
)
def test_a_damaged_file_is_a_sentence_and_is_not_written_over(tmp_path: Path, text: str) -> None:
    """It may say that a card burns: nobody guesses, and nobody throws it away."""
    path = tmp_path / NAME
    path.write_bytes(text.encode(errors="surrogateescape"))
    file = CardsFile(tmp_path)
    for act in (file.read, lambda: file.change(drain(A))):
        with pytest.raises(RecordError, match=r"cards\.json, which says what cards are drained, cannot be read"):
            act()
    assert path.read_bytes() == text.encode(errors="surrogateescape")


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    """Each reads, changes and writes while the other waits."""
    uuids = [GpuUuid(f"GPU-{number:04}") for number in range(24)]

    def write(mine: list[GpuUuid]) -> None:
        for uuid in mine:
            CardsFile(tmp_path).change(drain(uuid))

    writers = [threading.Thread(target=write, args=(uuids[first::3],)) for first in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(CardsFile(tmp_path).read().drained) == set(uuids)


def test_a_reader_never_meets_a_part_of_it(tmp_path: Path) -> None:
    """While it is written again and again."""
    file = CardsFile(tmp_path)
    file.change(drain(A))
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            file.change(drain(GpuUuid(f"GPU-{number:04}")))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    sizes = []
    while not done.is_set():
        sizes.append(len(file.read().drained))
    writer.join()
    assert sizes == sorted(sizes)
    assert len(file.read().drained) == 61


def test_a_lock_that_nobody_lets_go_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was stopped in the middle does not stop the others for ever."""
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(RecordError, match="being changed by another program that does not come to an end"):
        CardsFile(tmp_path).change(drain(A))
    os.close(holder)
    CardsFile(tmp_path).change(drain(A))


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """It is a wrong name: a file there would reach no Hub."""
    with pytest.raises(RecordError, match=r"There is no folder .*none\. Name the Hub's data folder by --state"):
        CardsFile(tmp_path / "none").change(drain(A))
    assert not (tmp_path / "none").exists()


def test_no_right_to_write_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says who may."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(RecordError, match=r"You may not write in .* Use sudo, or be the user that the Hub runs as"):
        CardsFile(tmp_path).change(drain(A))


def test_no_right_to_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data folder is for the Hub's user: whoever else asks is told who may."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(RecordError, match=r"is not for you to read\. Use sudo, or be the user that the Hub runs as"):
        CardsFile(tmp_path).read()


def test_the_file_can_be_read_by_a_person(tmp_path: Path) -> None:
    """It is JSON with who, when and why."""
    CardsFile(tmp_path).change(lambda record: drain(A)(record).strike(B, Struck(AT, 79)))
    assert json.loads((tmp_path / NAME).read_text()) == {
        "format": 1,
        "drained": {A: {"at": "2026-03-02T09:30:00+00:00", "by": "kim", "reason": "fan"}},
        "xids": {B: {"at": "2026-03-02T09:30:00+00:00", "xid": 79}},
    }
