"""Bytes and durations, read from a configuration and shown to people."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.strategies  # noqa: F401  the Hypothesis profile
from gpuspawner.texts import Text
from gpuspawner.units import (
    GIB,
    KIB,
    MIB,
    TIB,
    format_bytes,
    format_clock,
    format_duration,
    parse_bytes,
    parse_duration,
)

UNIT_SIZES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}


@pytest.mark.parametrize(
    ("given_", "number"),
    [
        pytest.param(8589934592, 8 * GIB, id="number"),
        pytest.param("8589934592", 8 * GIB, id="number-as-text"),
        pytest.param("8G", 8 * GIB, id="G"),
        pytest.param("8g", 8 * GIB, id="g"),
        pytest.param("8GB", 8 * GIB, id="GB-is-1024-as-docker-counts"),
        pytest.param("8GiB", 8 * GIB, id="GiB"),
        pytest.param(" 8 GiB ", 8 * GIB, id="spaces"),
        pytest.param("512M", 512 * MIB, id="M"),
        pytest.param("64k", 64 * KIB, id="k"),
        pytest.param("2T", 2 * TIB, id="T"),
        pytest.param("1.5G", GIB + GIB // 2, id="fraction"),
        pytest.param("100b", 100, id="b"),
    ],
)
def test_sizes_are_read_in_powers_of_1024(given_: object, number: int) -> None:
    """Every form that the help text names gives the number that Docker would use."""
    assert parse_bytes(given_) == number


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        pytest.param(7200, 7200, id="number"),
        pytest.param("2h", 7200, id="hours"),
        pytest.param("90m", 5400, id="minutes"),
        pytest.param("1d12h", 129600, id="two-units"),
        pytest.param("1 d 12 h", 129600, id="spaces"),
        pytest.param("1w", 604800, id="week"),
        pytest.param("1.5H", 5400, id="fraction-and-capital"),
        pytest.param("45s", 45, id="seconds"),
    ],
)
def test_durations_are_read(given_: object, seconds: int) -> None:
    """Every form that the help text names gives whole seconds."""
    assert parse_duration(given_) == seconds


NOT_AN_AMOUNT = [
    pytest.param(0, id="zero"),
    pytest.param(-1, id="negative"),
    pytest.param(True, id="bool"),
    pytest.param(1.5, id="float"),
    pytest.param(None, id="none"),
    pytest.param("", id="empty"),
    pytest.param("G", id="unit-alone"),
    pytest.param("lots", id="word"),
    pytest.param("-8G", id="negative-text"),
    pytest.param("0.1", id="rounds-to-zero"),
    pytest.param(["8G"], id="list"),
    pytest.param("9" * 400 + "G", id="larger-than-a-float"),
    pytest.param("9" * 400 + "w", id="duration-larger-than-a-float"),
    pytest.param(10**400, id="number-beyond-64-bits"),
]


@pytest.mark.parametrize("given_", NOT_AN_AMOUNT)
def test_what_is_no_size_is_refused_with_an_example(given_: object) -> None:
    """A wrong size is a ValueError that shows a right one, so that pydantic can name its path."""
    with pytest.raises(ValueError, match="such as '8G'"):
        parse_bytes(given_)


@pytest.mark.parametrize("given_", NOT_AN_AMOUNT)
def test_what_is_no_duration_is_refused_with_an_example(given_: object) -> None:
    """A wrong time is a ValueError that shows a right one, so that pydantic can name its path."""
    with pytest.raises(ValueError, match="such as '2h'"):
        parse_duration(given_)


@given(st.text(st.sampled_from("0123456789.kmgtiGBsdhw eE+-_"), max_size=30) | st.text() | st.integers() | st.floats())
def test_parsing_gives_a_positive_number_or_a_value_error(given_: object) -> None:
    """Whatever stands in a configuration, nothing else comes out."""
    for parse in (parse_bytes, parse_duration):
        with contextlib.suppress(ValueError):
            assert parse(given_) > 0


@pytest.mark.parametrize(
    ("number", "words"),
    [
        pytest.param(8 * GIB, "8 GiB", id="whole"),
        pytest.param(24564 * MIB, "24 GiB", id="a-4090"),
        pytest.param(23 * GIB + GIB // 2, "23.5 GiB", id="half"),
        pytest.param(512 * MIB, "512 MiB", id="below-one-GiB"),
        pytest.param(GIB - 1, "1024 MiB", id="just-below-one-GiB"),
        pytest.param(3 * TIB, "3 TiB", id="tera"),
        pytest.param(1, "1 B", id="one"),
        pytest.param(0, "0 B", id="nothing"),
    ],
)
def test_bytes_are_shown_in_the_largest_unit(number: int, words: str) -> None:
    """People read at most one decimal, and none where it is zero."""
    assert format_bytes(number) == words


@given(st.integers(1, 2**62))
def test_shown_bytes_are_within_one_decimal(number: int) -> None:
    """What is shown differs from the number by no more than rounding to one decimal of its unit."""
    value, unit = format_bytes(number).split(" ")
    assert abs(float(value) * UNIT_SIZES[unit] - number) <= 0.05 * UNIT_SIZES[unit] + number * 1e-12
    assert float(value) >= 1


@given(st.integers(1, 2**40))
def test_whole_units_survive_being_shown_and_read(amount: int) -> None:
    """`format_bytes` writes what `parse_bytes` reads."""
    number = (amount % 1000 + 1) * GIB
    assert parse_bytes(format_bytes(number)) == number


@pytest.mark.parametrize(
    ("seconds", "english", "korean"),
    [
        pytest.param(9000, "2 h 30 min", "2시간 30분", id="two-units"),
        pytest.param(86400, "1 d", "1일", id="one-unit"),
        pytest.param(90061, "1 d 1 h", "1일 1시간", id="two-largest-only"),
        pytest.param(59, "59 s", "59초", id="seconds"),
        pytest.param(0, "0 s", "0초", id="nothing"),
        pytest.param(-5, "0 s", "0초", id="in-the-past"),
    ],
)
def test_durations_are_shown_in_both_languages(seconds: int, english: str, korean: str) -> None:
    """The two largest units that are not zero, in English and in Korean."""
    text = format_duration(seconds)
    assert (text.en, text.ko) == (english, korean)


@given(st.integers(0, 10**10))
def test_a_shown_duration_never_exceeds_the_real_one(seconds: int) -> None:
    """Dropping the smaller units rounds down: nobody is promised more time than there is."""
    sizes = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    shown = sum(int(n) * sizes[unit] for n, unit in re.findall(r"(\d+) (\w+)", format_duration(seconds).en))
    assert shown <= seconds


@pytest.mark.parametrize(
    ("at", "english", "korean"),
    [
        pytest.param("2026-03-02T06:40:59+00:00", "15:40", "15:40", id="today, of another zone"),
        pytest.param("2026-03-02T23:59:00+09:00", "23:59", "23:59", id="late today"),
        pytest.param("2026-03-02T15:00:00+00:00", "Tue 3 Mar 00:00", "3월 3일(화) 00:00", id="tomorrow"),
        pytest.param("2026-12-24T09:05:00+09:00", "Thu 24 Dec 09:05", "12월 24일(목) 09:05", id="another month"),
    ],
)
def test_a_moment_is_told_by_the_clock_on_the_wall(at: str, english: str, korean: str) -> None:
    """With its day where that is not today."""
    now = datetime(2026, 3, 2, 9, 0, tzinfo=timezone(timedelta(hours=9)))
    assert format_clock(datetime.fromisoformat(at), now) == Text(english, korean)
