"""When a class takes place: weeks, nights, single days, and clocks that skip or repeat an hour."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.errors import ConfigError
from gpuspawner.gpus import Gpu, GpuUuid
from gpuspawner.texts import Text
from gpuspawner.timetable import DAYS, Calendar, Window
from gpuspawner.units import format_moment
from tests import strategies

EVER, NEVER = datetime(2020, 1, 1, tzinfo=timezone.utc), datetime(2035, 1, 1, tzinfo=timezone.utc)
WEEK = timedelta(days=7)


def entry(**more: Any) -> dict[str, Any]:
    """A reservation; `begins` is its `from`."""
    given_ = {"group": "ai", "gpus": 2, "timezone": "Asia/Seoul", **more}
    if "begins" in given_:
        given_["from"] = given_.pop("begins")
    return given_


def calendar(**more: Any) -> Calendar:
    """A calendar with one reservation."""
    return Calendar.parse([entry(**more)])


def utc(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def spans(found: list[Window]) -> list[str]:
    """Windows in UTC, to read."""
    return [f"{window.start:%m-%d %H:%M} {window.end:%m-%d %H:%M}" for window in found]


# 2026-12-07 is a Monday.


@pytest.mark.parametrize(
    ("weekly", "expected"),
    [
        pytest.param("Mon 09:00-12:00", ["12-07 00:00 12-07 03:00"], id="one day"),
        pytest.param("mon 9:00 - 12:00", ["12-07 00:00 12-07 03:00"], id="as people write"),
        pytest.param("Mon,Wed 09:00-12:00", ["12-07 00:00 12-07 03:00", "12-09 00:00 12-09 03:00"], id="two days"),
        pytest.param(
            "Wednesday, Monday 09:00-10:00", ["12-07 00:00 12-07 01:00", "12-09 00:00 12-09 01:00"], id="long"
        ),
        pytest.param("Mon-Wed 12:00-13:00", [f"12-0{d} 03:00 12-0{d} 04:00" for d in (7, 8, 9)], id="a range"),
        pytest.param("Sat-Mon 12:00-13:00", [f"12-{d} 03:00 12-{d} 04:00" for d in ("07", 12, 13)], id="past Sunday"),
        pytest.param("Fri 22:00-02:00", ["12-11 13:00 12-11 17:00"], id="past midnight"),
        pytest.param("Fri 20:00-24:00", ["12-11 11:00 12-11 15:00"], id="until midnight"),
        pytest.param("Fri 20:00-00:00", ["12-11 11:00 12-11 15:00"], id="until midnight, the other way"),
        pytest.param("Fri 00:00-24:00", ["12-10 15:00 12-11 15:00"], id="a whole day"),
    ],
)
def test_a_week(weekly: str, expected: list[str]) -> None:
    """The windows of a week in Seoul, in UTC (nine hours earlier)."""
    week = calendar(weekly=weekly).windows(utc("2026-12-06T15:00"), utc("2026-12-13T15:00"))
    assert spans(week) == expected


@pytest.mark.parametrize(
    ("zone", "weekly", "day", "expected"),
    [
        pytest.param(
            "Europe/Berlin", "Sun 02:30-04:00", "2026-03-29", ["01:30 02:00"], id="Berlin skips the beginning"
        ),
        pytest.param("Europe/Berlin", "Sun 01:00-02:30", "2026-03-29", ["00:00 01:30"], id="Berlin skips the end"),
        pytest.param("Europe/Berlin", "Sun 02:00-03:00", "2026-03-29", [], id="Berlin skips all of it"),
        pytest.param("Europe/Berlin", "Sun 02:30-03:15", "2026-03-29", [], id="Berlin leaves nothing of it"),
        pytest.param("Europe/Berlin", "Sun 00:00-24:00", "2026-03-29", ["23:00 22:00"], id="a day of 23 hours"),
        pytest.param("Europe/Berlin", "Sun 02:30-04:00", "2026-10-25", ["00:30 03:00"], id="Berlin: the first 02:30"),
        pytest.param("Europe/Berlin", "Sun 01:00-02:30", "2026-10-25", ["23:00 00:30"], id="Berlin: until the first"),
        pytest.param("Europe/Berlin", "Sat 22:00-03:00", "2026-10-25", ["20:00 02:00"], id="a night of six hours"),
        pytest.param("Europe/Berlin", "Sun 09:00-12:00", "2026-03-29", ["07:00 10:00"], id="Berlin in summer"),
        pytest.param("Europe/Berlin", "Sun 09:00-12:00", "2026-10-25", ["08:00 11:00"], id="Berlin in winter"),
        pytest.param("America/New_York", "Sun 02:30-04:00", "2026-03-08", ["07:30 08:00"], id="New York skips"),
        pytest.param("America/New_York", "Sun 01:30-03:00", "2026-11-01", ["05:30 08:00"], id="New York: the first"),
        pytest.param("Asia/Seoul", "Sun 02:30-04:00", "2026-03-29", ["17:30 19:00"], id="Seoul has no summer time"),
    ],
)
def test_clocks_that_are_changed(zone: str, weekly: str, day: str, expected: list[str]) -> None:
    """What is skipped moves forward, of what happens twice the first is meant; hours of that day in UTC."""
    noon = utc(f"{day}T12:00")
    found = calendar(weekly=weekly, timezone=zone).windows(noon - timedelta(hours=24), noon + timedelta(hours=11))
    assert [f"{window.start:%H:%M} {window.end:%H:%M}" for window in found] == expected


@pytest.mark.parametrize(
    ("begins", "until", "expected"),
    [
        pytest.param("2026-12-01 09:00", "2026-12-01 18:00", "12-01 00:00 12-01 09:00", id="hours"),
        pytest.param("2026-12-01T09:00", "2026-12-03T18:00", "12-01 00:00 12-03 09:00", id="days and nights"),
        pytest.param("2026-12-01", "2026-12-01", "11-30 15:00 12-01 15:00", id="one day"),
        pytest.param("2026-12-01", "2026-12-03", "11-30 15:00 12-03 15:00", id="three days"),
    ],
)
def test_once(begins: str, until: str, expected: str) -> None:
    """A single reservation; a day without an hour is all of that day."""
    assert spans(calendar(begins=begins, until=until).windows(EVER, NEVER)) == [expected]


def test_a_term() -> None:
    """With `from` and `until` a weekly class begins and ends with the term."""
    term = calendar(weekly="Mon 09:00-12:00", begins="2026-11-30 10:00", until="2026-12-14")
    assert spans(term.windows(EVER, NEVER)) == ["12-07 00:00 12-07 03:00", "12-14 00:00 12-14 03:00"]
    cut = calendar(weekly="Mon 09:00-12:00", begins="2026-12-07", until="2026-12-07 10:00")
    assert spans(cut.windows(EVER, NEVER)) == ["12-07 00:00 12-07 01:00"]


def test_now() -> None:
    """The beginning belongs to a window, the end does not."""
    one = calendar(weekly="Mon 09:00-12:00")
    start, end = utc("2026-12-07T00:00"), utc("2026-12-07T03:00")
    tick = timedelta(microseconds=1)
    assert [bool(one.active(moment)) for moment in (start - tick, start, end - tick, end)] == [False, True, True, False]


def test_the_order_is_that_of_time() -> None:
    """Windows of several reservations come by their beginnings, and two alike are two."""
    both = Calendar.parse([entry(weekly="Tue 09:00-10:00"), *2 * [entry(weekly="Mon 09:00-10:00", gpus=1)]])
    found = both.windows(utc("2026-12-06T15:00"), utc("2026-12-13T15:00"))
    assert [window.count for window in found] == [1, 1, 2]


def test_which_cards_may_serve() -> None:
    """Well ones of the model."""
    window = calendar(weekly="Mon 09:00-12:00", gpu_model="RTX 4090").windows(EVER, EVER + 2 * WEEK)[0]
    well = Gpu(GpuUuid("GPU-a"), 0, "NVIDIA GeForce RTX 4090", 1)
    assert window.takes(well)
    assert not window.takes(Gpu(GpuUuid("GPU-b"), 0, "NVIDIA GeForce RTX 3060", 1))
    assert not window.takes(Gpu(GpuUuid("GPU-c"), 0, well.name, 1, fault=Text("sick")))


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        pytest.param({}, "reservations must be a list of reservations, got {}", id="no list"),
        pytest.param([7], "reservations[0] must be a mapping of keys to values, got 7", id="no mapping"),
        pytest.param(
            [entry(weekly="Mon 09:00-12:00", gpus=0)], "reservations[0].gpus must be at least 1, got 0", id="no card"
        ),
        pytest.param(
            [{"group": "ai", "gpus": 1, "weekly": "Mon 09:00-12:00"}], "reservations[0].timezone is required", id="zone"
        ),
        pytest.param(
            [entry(weekly="Mon 09:00-12:00", timezone="Seoul")],
            "reservations[0].timezone must be the name of a time zone such as 'Asia/Seoul', got 'Seoul'",
            id="unknown zone",
        ),
        pytest.param(
            [entry(weekly="Mon 09:00-12:00", timezone="../../etc/passwd")],
            "reservations[0].timezone must be the name of a time zone such as 'Asia/Seoul', got '../../etc/passwd'",
            id="a path as a zone",
        ),
        pytest.param(
            [entry(weekly="Mon 09:00-12:00", week="Tue")],
            "reservations[0].week is not a known key; did you mean 'weekly'?",
            id="unknown key",
        ),
        *(
            pytest.param(
                [entry(weekly=weekly)],
                "reservations[0].weekly must be days and hours such as 'Mon 09:00-12:00', 'Mon,Wed 09:00-12:00' or "
                f"'Mon-Fri 22:00-02:00', got {weekly!r}",
                id=f"weekly {weekly}",
            )
            for weekly in (
                "",
                "09:00-12:00",
                "Mon",
                "Moonday 09:00-12:00",
                "Mo 09:00-12:00",
                "Mon-Tue-Wed 09:00-12:00",
                "Mon, 09:00-12:00",
                "Mon 09:00-25:00",
                "Mon 24:00-02:00",
                "Mon 09:60-12:00",
                7,
            )
        ),
        pytest.param(
            [entry(weekly="Mon 09:00-09:00")],
            "reservations[0].weekly must end at another time than it begins (a whole day is 00:00-24:00), "
            "got 'Mon 09:00-09:00'",
            id="no time",
        ),
        pytest.param(
            [entry(begins="2026-12-01 09:00")],
            "reservations[0] must have 'weekly' (every week), or both 'from' and 'until' (once)",
            id="no end",
        ),
        pytest.param(
            [entry(begins="2026-12-01 09:00", until="2026-12-01 09:00")],
            "reservations[0] must have an 'until' after its 'from'",
            id="ends before it begins",
        ),
        *(
            pytest.param(
                [entry(begins=begins, until="2027-01-01")],
                "reservations[0].from must be a time such as '2026-12-01 09:00', or a day such as '2026-12-01', "
                f"got {begins!r}",
                id=f"from {begins}",
            )
            for begins in ("tomorrow", "2026-13-01", "2026-12-01 24:00", "1926-12-01", "2026-12-01 09:00+09:00", 7)
        ),
        pytest.param(
            [entry(weekly="Mon 09:00-12:00", before="kill")],
            "reservations[0].before must be 'shorten' or 'refuse', got 'kill'",
            id="unknown policy",
        ),
    ],
)
def test_mistakes_name_their_path(raw: object, line: str) -> None:
    """Path, rule, what was given."""
    with pytest.raises(ConfigError) as caught:
        Calendar.parse(raw)
    assert str(caught.value) == line


def test_all_mistakes_at_once() -> None:
    """A line for each."""
    with pytest.raises(ConfigError) as caught:
        Calendar.parse([entry(gpus=0, weekly="x"), entry(weekly="Mon 09:00-12:00"), entry(begins=1)])
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        "reservations[0].gpus",
        "reservations[0].weekly",
        "reservations[2].from",
    ]


@given(st.lists(strategies.json_values() | st.fixed_dictionaries({"weekly": strategies.json_values()}), max_size=3))
def test_garbage_is_a_configuration_error(raw: object) -> None:
    """Whatever is written there, it is read or refused with a sentence."""
    said = "reservations"
    try:
        Calendar.parse(raw)
    except ConfigError as error:
        said = str(error)
    assert said.startswith("reservations")


def weeklies() -> st.SearchStrategy[str]:
    """Days and hours."""
    clock = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from((0, 1, 30, 59)))
    days = st.lists(st.sampled_from(DAYS), min_size=1, max_size=3).map(",".join)
    return (
        st.tuples(days, clock, clock)
        .filter(lambda parts: parts[1] != parts[2])
        .map(lambda parts: f"{parts[0]} {parts[1]}-{parts[2]}")
    )


ZONES = ("Asia/Seoul", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Pacific/Kiritimati", "Australia/Lord_Howe")
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(timezone.utc))


@given(weeklies(), st.sampled_from(ZONES), MOMENTS)
def test_a_window_is_where_the_wall_clock_says(weekly: str, zone: str, moment: datetime) -> None:
    """Each has a length, a day and a repeated hour at most; its day and its beginning are those that were written."""
    days, hours = weekly.rsplit(" ", 1)
    for window in calendar(weekly=weekly, timezone=zone).windows(moment, moment + WEEK):
        assert timedelta() < window.end - window.start <= timedelta(hours=25)
        assert window.end > moment
        assert window.start < moment + WEEK
        wall = window.start.astimezone(ZoneInfo(zone))
        hour, minute = map(int, hours[:5].split(":"))
        skipped = wall - wall.replace(hour=hour, minute=minute)
        assert skipped in (timedelta(), timedelta(hours=1), timedelta(minutes=30))
        assert DAYS[wall.weekday()] in days


@given(weeklies(), st.sampled_from(ZONES), MOMENTS, st.timedeltas(timedelta(0), 3 * WEEK))
def test_a_look_in_two_parts_is_one_look(weekly: str, zone: str, moment: datetime, length: timedelta) -> None:
    """No window is missed or moved by where one looks from."""
    one = calendar(weekly=weekly, timezone=zone)
    parts = one.windows(moment, moment + length) + one.windows(moment + length, moment + 4 * WEEK)
    seen = sorted({(window.start, window.end) for window in parts})
    assert seen == [(window.start, window.end) for window in one.windows(moment, moment + 4 * WEEK)]


@given(weeklies(), st.sampled_from(ZONES), MOMENTS)
def test_active_is_within_a_window(weekly: str, zone: str, moment: datetime) -> None:
    """What is active at a moment are the windows around it, and no others."""
    one = calendar(weekly=weekly, timezone=zone)
    around = [w for w in one.windows(moment - WEEK, moment + WEEK) if w.start <= moment < w.end]
    assert one.active(moment) == around


@pytest.mark.parametrize(
    ("moment", "en", "ko"),
    [
        pytest.param("2026-12-07T09:05", "Mon 7 Dec 09:05", "12월 7일(월) 09:05", id="monday"),
        pytest.param("2027-01-31T23:59", "Sun 31 Jan 23:59", "1월 31일(일) 23:59", id="sunday"),
    ],
)
def test_how_a_moment_is_said(moment: str, en: str, ko: str) -> None:
    """Weekday, day and clock, in whatever locale the Hub runs."""
    assert format_moment(datetime.fromisoformat(moment)) == Text(en, ko)
