"""Extended time in the state folder: what is written survives, and what is damaged or missing changes nothing."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gpuspawner.extensions import Extensions
from gpuspawner.leases import Lease, Limits, Owner

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=timezone.utc)
LATER = NOON + timedelta(hours=1)
LEASE = Lease("a", Owner("kim"), "gpu", (), NOON - timedelta(hours=2), Limits(time_limit_seconds=7200))


def test_an_extension_is_read_by_another_process(tmp_path: Path) -> None:
    """What one object wrote is what the next one reads, and the lease ends then."""
    Extensions(tmp_path).extend("a", LATER, {"a"})
    assert Extensions(tmp_path).read() == {"a": LATER}
    assert LEASE.ends_with(Extensions(tmp_path).read()) == LATER


def test_without_a_file_the_original_ends_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Most Hubs have none on most days: nothing is said about it."""
    assert Extensions(tmp_path).read() == {}
    assert LEASE.ends_with({}) == NOON
    assert caplog.records == []


def test_nothing_makes_a_lease_shorter(tmp_path: Path) -> None:
    """Neither an older entry that is written late nor one that lies before the original end."""
    extensions = Extensions(tmp_path)
    extensions.extend("a", LATER, {"a"})
    extensions.extend("a", NOON - timedelta(hours=1), {"a"})
    assert extensions.read() == {"a": LATER}
    assert LEASE.ends_with({"a": NOON - timedelta(hours=1)}) == NOON
    unlimited = Lease("b", Owner("lee"), "cpu", (), NOON)
    assert unlimited.ends_with({"b": LATER}) is None


def test_entries_of_leases_that_are_gone_are_dropped_at_the_next_write(tmp_path: Path) -> None:
    """The file does not grow for ever."""
    extensions = Extensions(tmp_path)
    extensions.extend("a", LATER, {"a", "b"})
    extensions.extend("b", LATER, {"a", "b"})
    extensions.extend("c", LATER, {"b", "c"})
    assert extensions.read() == {"b": LATER, "c": LATER}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param('{"format": 1, "ends": {"a": "2026-03-', id="torn"),
        pytest.param("[]", id="not an object"),
        pytest.param("null", id="null"),
        pytest.param('{"ends": {}}', id="no format"),
        pytest.param('{"format": 2, "ends": {}}', id="another format"),
        pytest.param('{"format": 1, "ends": {"a": "tomorrow"}}', id="no moment"),
        pytest.param('{"format": 1, "ends": {"a": 5}}', id="a number"),
        pytest.param('{"format": 1, "ends": {"a": "2026-03-02T13:00:00"}}', id="no time zone"),
        pytest.param('{"format": 1, "ends": ["a"]}', id="a list of ends"),
        pytest.param("\udcff", id="not UTF-8"),
    ],
)
def test_a_damaged_file_is_said_once_and_the_original_ends_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """A watch that looks every twenty seconds does not fill the log; a write makes the file whole again."""
    (tmp_path / "extensions.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    extensions = Extensions(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [extensions.read() for _ in range(3)] == [{}, {}, {}]
    (record,) = caplog.records
    assert record.getMessage().endswith("The original ends hold.")
    extensions.extend("a", LATER, {"a"})
    assert extensions.read() == {"a": LATER}


def test_a_file_that_is_damaged_again_is_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once for each time, not once for ever."""
    extensions = Extensions(tmp_path)
    for _ in range(2):
        (tmp_path / "extensions.json").write_text("x")
        extensions.read()
        extensions.extend("a", LATER, {"a"})
        extensions.read()
    assert len(caplog.records) == 2


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk shows when the file is flushed: the error is the caller's, and nothing half written stays."""
    extensions = Extensions(tmp_path)
    extensions.extend("a", LATER, {"a"})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            extensions.extend("a", LATER + timedelta(hours=1), {"a"})
    assert extensions.read() == {"a": LATER}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["extensions.json", "extensions.json.lock"]


def _extend_many(folder: Path, first: int) -> None:
    names = [f"lease-{number}" for number in range(40)]
    for number in range(first, 40, 4):
        Extensions(folder).extend(f"lease-{number}", LATER, names)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes add ten leases each, and every reader in between sees a whole file."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_extend_many, args=(tmp_path, first)) for first in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "extensions.json").exists():
            json.loads((tmp_path / "extensions.json").read_text())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(Extensions(tmp_path).read()) == 40
