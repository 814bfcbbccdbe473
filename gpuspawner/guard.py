"""Rules: when a server is warned and stopped because its time is over, and when its time may be extended.

Pure: no await, no clock, no environment, no I/O; both clocks are arguments. A stop needs two things, each by the clock
that does not jump: the time is over, and a warning was given at least `grace_seconds` ago by whoever judges now. So a
watch that was down, that was restarted, or whose wall clock jumped, never stops a server out of the blue.

What is remembered of a lease is its `Mark`: another cause to stop a server has its room there, beside the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from gpuspawner.leases import Lease
from gpuspawner.texts import Text
from gpuspawner.units import format_duration

LAST_STEP = 0
"""The step of the warning after the end, where the time ran out before any other could be given."""


@dataclass(frozen=True)
class Policy:
    """When a lease is warned (so many seconds before its end), and how long the first warning comes before a stop.

    A wall clock that moves by more than `jump_seconds` against the monotonic one between two looks has jumped.
    """

    warn_seconds: tuple[int, ...] = (30 * 60, 10 * 60, 2 * 60)
    grace_seconds: int = 2 * 60
    jump_seconds: int = 60


@dataclass(frozen=True)
class Clock:
    """Both clocks at one moment: UTC, and seconds of a clock that nobody sets."""

    utc: datetime
    monotonic: float


@dataclass(frozen=True)
class Timed:
    """A lease with its end in UTC, extensions included."""

    lease: Lease
    ends: datetime


@dataclass(frozen=True)
class Warn:
    """Tell the owner that the server is stopped at `stops` (UTC). `ends` is the end of the lease that this is about."""

    lease: Lease
    step_seconds: int
    ends: datetime
    stops: datetime
    left_seconds: int

    @property
    def text(self) -> Text:
        """What the owner reads, at the moment of the warning."""
        return warning(self.left_seconds)


@dataclass(frozen=True)
class Stop:
    """Stop the server. The verdict comes again at each look until its container is gone."""

    lease: Lease
    ends: datetime
    reason: Text


Verdict: TypeAlias = Warn | Stop


@dataclass(frozen=True)
class Mark:
    """What is remembered of a lease: its end, the latest warning before it, and since when it is warned (monotonic).

    `shift_seconds` is by how much the wall clock has jumped since the lease was first seen.
    """

    ends: datetime
    step_seconds: int | None = None
    warned_at: float | None = None
    shift_seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """What one look leaves to the next. A new one, or `restored`, begins with the process."""

    seen: Clock | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict)

    @classmethod
    def restored(cls, warned: Mapping[str, tuple[datetime, int]]) -> State:
        """After a restart: lease id → the end that it was warned of, and the step. No warning is given twice.

        The grace begins anew all the same: a monotonic reading of another process means nothing.
        """
        return cls(marks={lease_id: Mark(ends, step) for lease_id, (ends, step) in warned.items()})

    @property
    def warned(self) -> frozenset[str]:
        """The leases whose end, as it stands, somebody has been warned of."""
        return frozenset(lease_id for lease_id, mark in self.marks.items() if mark.step_seconds is not None)


def judge(state: State, leases: Iterable[Timed], now: Clock, policy: Policy) -> tuple[State, tuple[Verdict, ...]]:
    """What is to be done at this moment, and what to remember. Leases that are not among `leases` are forgotten."""
    jump = _jump(state.seen, now, policy)
    marks: dict[str, Mark] = {}
    verdicts: list[Verdict] = []
    for timed in leases:
        mark = _marked(state.marks.get(timed.lease.id), timed, jump, now)
        mark, verdict = _judge(mark, timed, now, policy)
        marks[timed.lease.id] = mark
        if verdict:
            verdicts.append(verdict)
    return State(now, marks), tuple(verdicts)


def _jump(seen: Clock | None, now: Clock, policy: Policy) -> float:
    """By how many seconds the wall clock has jumped since the last look; a small step is no jump, and is followed."""
    if seen is None:
        return 0.0
    drift = (now.utc - seen.utc).total_seconds() - (now.monotonic - seen.monotonic)
    return drift if abs(drift) > policy.jump_seconds else 0.0


def _marked(mark: Mark | None, timed: Timed, jump: float, now: Clock) -> Mark:
    if mark is None:
        # Begun since the last look: by the clock of before the jump or of after it, whichever is nearer to its start.
        before = now.utc - timedelta(seconds=jump)
        by_the_old = abs(timed.lease.started - before) < abs(timed.lease.started - now.utc)
        return Mark(timed.ends, shift_seconds=jump if by_the_old else 0.0)
    shift = mark.shift_seconds + jump
    if mark.ends != timed.ends:
        return Mark(timed.ends, shift_seconds=shift)
    return replace(mark, shift_seconds=shift)


def _judge(mark: Mark, timed: Timed, now: Clock, policy: Policy) -> tuple[Mark, Verdict | None]:
    left = (timed.ends - now.utc).total_seconds() + mark.shift_seconds
    warned_for = None if mark.warned_at is None else now.monotonic - mark.warned_at
    if left <= 0 and warned_for is not None and warned_for >= policy.grace_seconds:
        return mark, Stop(timed.lease, timed.ends, _over(timed))
    step = _step(left, timed.lease, policy)
    if left <= 0:
        due = warned_for is None
    else:
        due = step is not None and (mark.step_seconds is None or step < mark.step_seconds)
    if step is None or not due:
        return mark, None
    stops_in = max(left, policy.grace_seconds - (warned_for or 0.0))
    mark = replace(mark, step_seconds=step, warned_at=now.monotonic if mark.warned_at is None else mark.warned_at)
    stops = now.utc + timedelta(seconds=stops_in)
    return mark, Warn(timed.lease, step, timed.ends, stops, round(stops_in))


def _step(left: float, lease: Lease, policy: Policy) -> int | None:
    """The warning that belongs to a moment with so many seconds left. A lease is not warned before it has begun."""
    if left <= 0:
        return LAST_STEP
    limit = lease.limits.time_limit_seconds
    usable = [step for step in policy.warn_seconds if limit is None or step < limit] or [*policy.warn_seconds]
    return min((step for step in usable if left <= step), default=None)


# --- words -----------------------------------------------------------------------------------------------------------


def warning(left_seconds: int) -> Text:
    """What the owner of a server reads that is stopped in so many seconds. For pages: say it anew as time goes by."""
    left = format_duration(left_seconds if left_seconds < 60 else left_seconds // 60 * 60)
    return Text(
        f"Your server is stopped in {left.en}, at the end of its time. Save your work now: the files in your home "
        "folder stay, running kernels end.",
        f"시간 한도에 따라 {left.ko} 후에 서버가 중지됩니다. 지금 작업을 저장하세요. "
        "홈 폴더의 파일은 그대로 남고, 실행 중인 커널은 종료됩니다.",
    )


def _over(timed: Timed) -> Text:
    limit = format_duration(timed.lease.limits.time_limit_seconds or 0)
    original = timed.lease.ends
    all_en, all_ko = f"limit of {limit.en}", f"한도({limit.ko})가"
    if original is not None and timed.ends > original:
        more = format_duration(round((timed.ends - original).total_seconds()))
        all_en, all_ko = f"{all_en}, extended by {more.en},", f"한도({limit.ko})와 연장 시간({more.ko})이 모두"
    return Text(
        f"The server was stopped, because its time {all_en} is over. "
        "The files in the home folder stay; start it again when you need it.",
        f"시간 {all_ko} 끝나 서버가 중지되었습니다. 홈 폴더의 파일은 그대로 있습니다. 필요할 때 다시 시작하세요.",
    )


# --- extending -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extending:
    """How much one extension adds, and how far the end may lie beyond the original one. 0: nobody may extend."""

    step_seconds: int = 3600
    max_seconds: int = 0


def may_extend(
    lease: Lease, ends: datetime | None, rule: Extending, *, someone_waits: bool, now: datetime
) -> datetime | Text:
    """The new end in UTC if the owner extends now, or the sentence that says why not.

    `ends` is the end as it stands, extensions included; `someone_waits` is about the kind of card that it holds.
    Pressing twice on what was seen once adds one step: the new end depends on the end as it stood.
    """
    original = lease.ends
    if original is None or ends is None:
        return Text(
            "You asked for more time, but this server has no time limit: there is nothing to extend.",
            "시간 연장을 요청했지만 이 서버에는 시간 한도가 없어 연장할 필요가 없습니다.",
        )
    until = _until(ends, now)
    if rule.max_seconds <= 0:
        return Text(
            f"You asked for more time, but extensions are switched off on this Hub. {until.en}",
            f"시간 연장을 요청했지만 이 허브에서는 연장할 수 없습니다. {until.ko}",
        )
    if someone_waits:
        return Text(
            f"You asked for more time, but somebody is waiting for this kind of card. {until.en}",
            f"시간 연장을 요청했지만 같은 종류의 카드를 기다리는 사용자가 있습니다. {until.ko}",
        )
    latest = original + timedelta(seconds=rule.max_seconds)
    new = min(max(ends, now) + timedelta(seconds=rule.step_seconds), latest)
    if new <= ends or new <= now:
        most = format_duration(rule.max_seconds)
        return Text(
            f"You asked for more time, but a server may be extended by {most.en} at most, and that is used up. "
            f"{until.en}",
            f"시간 연장을 요청했지만 최대 연장 시간({most.ko})을 모두 사용했습니다. {until.ko}",
        )
    return new


def _until(ends: datetime, now: datetime) -> Text:
    seconds = int((ends - now).total_seconds())
    if seconds <= 0:
        return Text(
            "Save your work now; after the stop you can start a server again.",
            "지금 작업을 저장하세요. 중지된 뒤 서버를 다시 시작할 수 있습니다.",
        )
    left = format_duration(seconds if seconds < 60 else seconds // 60 * 60)
    return Text(
        f"Save your work within {left.en}; after the stop you can start a server again.",
        f"{left.ko} 안에 작업을 저장하세요. 중지된 뒤 서버를 다시 시작할 수 있습니다.",
    )
