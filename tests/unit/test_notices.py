"""The notices in the state folder: what a page of the Hub reads, and what a restarted watch remembers."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gpuspawner.guard import Stop, Warn, warning
from gpuspawner.leases import Lease, Limits, Owner
from gpuspawner.notices import FileNotices, Notice, read_notices
from gpuspawner.texts import Text

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=timezone.utc)
ENDS = NOON + timedelta(minutes=10)
LEASE = Lease("a", Owner("김철수", "exp 1"), "gpu", (), NOON - timedelta(hours=2), Limits(time_limit_seconds=7800))
WARNING = Notice.warning(Warn(LEASE, 600, ENDS, ENDS, 600), NOON)
STOPPED = Notice.stopped(Stop(LEASE, ENDS, Text("It was over.", "끝났습니다.")), ENDS)


async def test_a_warning_is_what_a_page_reads(tmp_path: Path) -> None:
    """Whose server, when it is stopped, and the words in both languages."""
    await FileNotices(tmp_path).give([WARNING], {"a"}, NOON)
    notice = read_notices(tmp_path)["a"]
    assert notice == WARNING
    assert (notice.user, notice.server, notice.kind, notice.stops) == ("김철수", "exp 1", "warning", ENDS)
    assert notice.text == warning(600)


async def test_a_warning_goes_when_it_does_not_stand_any_more(tmp_path: Path) -> None:
    """The lease was extended, or is gone."""
    notices = FileNotices(tmp_path)
    await notices.give([WARNING, replace(WARNING, lease_id="b")], {"a", "b"}, NOON)
    await notices.give([], {"b"}, NOON)
    assert set(read_notices(tmp_path)) == {"b"}


async def test_the_words_about_a_stopped_server_stay_for_a_day(tmp_path: Path) -> None:
    """They take the place of the warning; the owner may come back tomorrow morning."""
    notices = FileNotices(tmp_path)
    await notices.give([WARNING], {"a"}, NOON)
    await notices.give([STOPPED], set(), ENDS)
    assert read_notices(tmp_path) == {"a": STOPPED}
    await notices.give([], set(), ENDS + timedelta(hours=23))
    assert read_notices(tmp_path) == {"a": STOPPED}
    await notices.give([], set(), ENDS + timedelta(hours=24))
    assert read_notices(tmp_path) == {}


async def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    """A look every twenty seconds costs the disk nothing."""
    notices = FileNotices(tmp_path)
    await notices.give([WARNING], {"a"}, NOON)
    before = (tmp_path / "notices.json").stat()
    await notices.give([], {"a"}, NOON)
    await notices.give([WARNING], {"a"}, NOON)
    after = (tmp_path / "notices.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param('{"format": 1, "notices": {"a": {"kind": "joke"}}}', id="another kind"),
        pytest.param('{"format": 1, "notices": {"a": {}}}', id="nothing in it"),
        pytest.param('{"format": 1, "notices": {"a": 7}}', id="a number"),
        pytest.param("{", id="torn"),
    ],
)
def test_a_damaged_file_is_no_notice(tmp_path: Path, content: str) -> None:
    """A page of the Hub does not fail because of it."""
    (tmp_path / "notices.json").write_text(content)
    assert read_notices(tmp_path) == {}


def test_without_a_file_or_a_folder_there_is_no_notice(tmp_path: Path) -> None:
    """The watch has never run."""
    assert read_notices(tmp_path) == {}
    assert read_notices(tmp_path / "nowhere") == {}


def test_a_moment_without_a_zone_is_not_guessed(tmp_path: Path) -> None:
    """Each moment says its zone, or the file is damaged."""
    (tmp_path / "notices.json").write_text(
        '{"format": 1, "notices": {"a": {"user": "kim", "server": "", "kind": "warning", "step_seconds": 600, '
        '"given": "2026-03-02T12:00:00", "ends": "2026-03-02T12:10:00", "stops": "2026-03-02T12:10:00", '
        '"text": {"en": "x", "ko": "y"}}}}'
    )
    assert read_notices(tmp_path) == {}
