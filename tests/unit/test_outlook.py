"""What somebody reads about the line."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from gpuspawner.outlook import Line, before_joining, while_waiting
from gpuspawner.queueing import Forecast
from gpuspawner.texts import Text

SEOUL = timezone(timedelta(hours=9))
NOW = datetime(2026, 3, 2, 9, 0, tzinfo=SEOUL)
LATER = datetime(2026, 3, 2, 6, 40, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("line", "english", "korean"),
    [
        pytest.param(Line(0), "Nobody else is waiting, and nobody can say", "언제 비는지는", id="unknown"),
        pytest.param(Line(1, LATER), "1 person is waiting, and your turn", "1명이 대기 중입니다.", id="one"),
        pytest.param(Line(2, LATER), "at about 15:40. Press Start", "예상 차례는 15:40경입니다.", id="two"),
        pytest.param(
            Line(9, LATER + timedelta(days=1)), "at about Tue 3 Mar 15:40.", "3월 3일(화) 15:40경", id="tomorrow"
        ),
    ],
)
def test_before_joining(line: Line, english: str, korean: str) -> None:
    """How many are there, when it could be one's turn by the clock on the wall, and what to press."""
    words = before_joining(line, NOW)
    assert english in words.en
    assert korean in words.ko
    assert words.en.endswith("Press Start to join the line.")


@pytest.mark.parametrize(
    ("forecast", "trouble", "english", "korean"),
    [
        pytest.param(None, None, "You are in the waiting line", "대기열에 들어갔습니다", id="just joined"),
        pytest.param(
            Forecast(1, LATER),
            None,
            "next in the line; a GPU should be free for you at",
            "다음 차례",
            id="next",
        ),
        pytest.param(Forecast(3, LATER), None, "number 3 in the line;", "대기 순서 3번째입니다.", id="third"),
        pytest.param(Forecast(3), None, "when a GPU will be free is unknown.", "언제 GPU가 비는지는", id="unknown"),
        pytest.param(Forecast(1, NOW), None, "a GPU should be free any moment.", "곧 GPU를", id="overdue"),
        pytest.param(
            Forecast(1),
            Text("No answer.", "응답 없음."),
            "No answer. Your place",
            "응답 없음. 대기 순서는",
            id="trouble",
        ),
    ],
)
def test_while_waiting(forecast: Forecast | None, trouble: Text | None, english: str, korean: str) -> None:
    """The place and the estimate, or why the line stands still; the place is kept then."""
    words = while_waiting(forecast, trouble, NOW)
    assert english in words.en
    assert korean in words.ko
