"""Rules: what somebody reads about the line, before joining it and while waiting. Pure: the time is an argument.

Moments are told by the clock on the server's wall, which in a school is the reader's as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gpuspawner.leases import Owner
from gpuspawner.limits import Left
from gpuspawner.queueing import Forecast
from gpuspawner.texts import Language, Text
from gpuspawner.units import format_clock, format_duration

WAITING_PAGE = Text(
    "You are waiting for a free GPU. Your server starts by itself when it is your turn, whether this page is open or "
    "not; Stop Server leaves the line.",
    "사용 가능한 GPU를 기다리고 있습니다. 차례가 되면 서버가 자동으로 시작되며, 이 페이지를 닫아도 됩니다. "
    "Stop Server를 누르면 대기열에서 나갑니다.",
)
_PRESS_START = Text("Press Start to join the line.", "Start를 누르면 대기열에 들어갑니다.")
_KEPT = Text("Your place in the line is kept.", "대기 순서는 유지됩니다.")


@dataclass(frozen=True)
class Line:
    """What a newcomer would find: how many wait before, and when it could be served; None: nobody can say."""

    waiting: int
    at: datetime | None = None


@dataclass(frozen=True)
class TimeLeft:
    """One running server that has an end. `more` is the end that one press gives, or why there is no more.

    `warned`: the watch has warned its owner of this end.
    """

    owner: Owner
    ends: datetime
    more: datetime | Text
    warned: bool = False


@dataclass(frozen=True)
class HomeTime:
    """One line on the Hub's home page, in words. `button` asks for more time for `server`; "": there is none to get."""

    words: str
    language: Language
    server: str = ""
    button: str = ""
    urgent: bool = False


def before_joining(line: Line, now: datetime) -> Text:
    """For the form: who is there already, when a card should be free, and how to join."""
    count = line.waiting
    people = Text(f"{count} {'person is' if count == 1 else 'people are'} waiting", f"{count}명이 대기 중입니다")
    if count == 0:
        people = Text("Nobody else is waiting", "대기 중인 사람이 없습니다")
    if line.at is None:
        when = Text("nobody can say when a GPU will be free", "언제 비는지는 알 수 없습니다")
    else:
        clock = format_clock(line.at, now)
        when = Text(f"your turn should come at about {clock.en}", f"예상 차례는 {clock.ko}경입니다")
    return Text(f"{people.en}, and {when.en}. {_PRESS_START.en}", f"{people.ko}. {when.ko}. {_PRESS_START.ko}")


def time_left(server: str, ends: datetime, now: datetime) -> Text:
    """How long a running server may go on; `server` is its name, "" the default one."""
    clock, left = format_clock(ends, now), format_duration(max(0, int((ends - now).total_seconds())) // 60 * 60)
    who = Text(f"Your server {server!r}" if server else "Your server", f"{server!r} 서버" if server else "내 서버")
    if ends <= now:
        return Text(f"{who.en} has used up its time.", f"{who.ko}의 사용 시간이 끝났습니다.")
    return Text(
        f"{who.en} may run until {clock.en} ({left.en} left).", f"{who.ko}: {clock.ko}까지 사용 가능 ({left.ko} 남음)"
    )


def home_time(left: TimeLeft, now: datetime, language: Language) -> HomeTime:
    """How long a server may run, with a button where it can have more, else with the reason why not."""
    words = time_left(left.owner.server, left.ends, now).into(language)
    if isinstance(left.more, Text):
        return HomeTime(words, language, left.owner.server, urgent=left.warned)
    clock = format_clock(left.more, now)
    button = Text(f"Extend until {clock.en}", f"{clock.ko}까지 연장").into(language)
    return HomeTime(words, language, left.owner.server, button, left.warned)


def hours_left(left: Left) -> Text:
    """What is left of somebody's GPU-hours."""
    rest = format_duration(int(left.seconds) // 60 * 60)
    amount, window = format_duration(left.allowance.seconds), format_duration(left.allowance.window_seconds)
    return Text(
        f"GPU time left: {rest.en} of {amount.en} in {window.en}.",
        f"남은 GPU 사용 시간: {rest.ko} ({window.ko}당 {amount.ko})",
    )


def while_waiting(forecast: Forecast | None, trouble: Text | None, now: datetime) -> Text:
    """For the pending page: the place in the line, and what is to be expected."""
    if trouble is not None:
        return Text(f"{trouble.en} {_KEPT.en}", f"{trouble.ko or trouble.en} {_KEPT.ko}")
    if forecast is None:
        return Text("You are in the waiting line", "대기열에 들어갔습니다")
    place = Text(
        "You are next in the line" if forecast.position == 1 else f"You are number {forecast.position} in the line",
        "다음 차례입니다" if forecast.position == 1 else f"대기 순서 {forecast.position}번째입니다",
    )
    if forecast.at is None:
        return Text(
            f"{place.en}; when a GPU will be free is unknown.", f"{place.ko}. 언제 GPU가 비는지는 알 수 없습니다."
        )
    if forecast.at <= now:
        return Text(f"{place.en}; a GPU should be free any moment.", f"{place.ko}. 곧 GPU를 사용할 수 있습니다.")
    clock = format_clock(forecast.at, now)
    return Text(
        f"{place.en}; a GPU should be free for you at about {clock.en}.",
        f"{place.ko}. {clock.ko}경 GPU를 사용할 수 있을 것으로 예상됩니다.",
    )
