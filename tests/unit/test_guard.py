"""When a server is warned and stopped because its time is over, and when its time may be extended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.guard import (
    LAST_STEP,
    Clock,
    Extending,
    Policy,
    State,
    Stop,
    Timed,
    Verdict,
    Warn,
    judge,
    may_extend,
    warning,
)
from gpuspawner.leases import Lease, Limits, Owner
from gpuspawner.texts import Text

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=timezone.utc)
HOUR, MINUTE = 3600, 60
POLICY = Policy()


def lease(name: str = "kim", limit: int | None = 2 * HOUR, started: datetime = NOON) -> Lease:
    """A lease of this user, whose id is the user's name."""
    return Lease(name, Owner(name), "rtx4090", (), started, Limits(time_limit_seconds=limit))


class Watch:
    """Looks at leases by two clocks, as a process does; `restart` is a new process that finds the notices."""

    def __init__(self, *leases: Lease, policy: Policy = POLICY) -> None:
        self.leases = list(leases)
        self.policy = policy
        self.state = State()
        self.elapsed = 0.0
        self.jumped = 0.0
        self.extensions: dict[str, datetime] = {}
        self.given: dict[str, tuple[datetime, int]] = {}

    @property
    def clock(self) -> Clock:
        """Noon is when everything begins; the monotonic clock shows something else."""
        return Clock(NOON + timedelta(seconds=self.elapsed + self.jumped), 5000.0 + self.elapsed)

    def at(self, seconds: float) -> tuple[Verdict, ...]:
        """A look so many true seconds after the beginning."""
        self.elapsed = seconds
        timed = [Timed(each, ends) for each in self.leases if (ends := each.ends_with(self.extensions))]
        self.state, verdicts = judge(self.state, timed, self.clock, self.policy)
        for verdict in verdicts:
            if isinstance(verdict, Warn):
                self.given[verdict.lease.id] = (verdict.ends, verdict.step_seconds)
        return verdicts

    def restart(self) -> None:
        """The process is another one."""
        self.state = State.restored(self.given)


def short(verdicts: tuple[Verdict, ...]) -> list[int | str]:
    """The steps of warnings, and "stop"."""
    return [verdict.step_seconds if isinstance(verdict, Warn) else "stop" for verdict in verdicts]


def course(watch: Watch, until: int, every: int = 20) -> dict[int, list[int | str]]:
    """What each look from now on gives, those left out that give nothing; it ends with the first stop."""
    found = {}
    for second in range(int(watch.elapsed), until, every):
        if verdicts := short(watch.at(second)):
            found[second] = verdicts
            if "stop" in verdicts:
                break
    return found


# --- warnings and the stop -------------------------------------------------------------------------------------------


def test_three_warnings_and_then_the_stop() -> None:
    """Thirty, ten and two minutes before the end, each once; at the end the server is stopped."""
    assert course(Watch(lease()), 3 * HOUR) == {
        90 * MINUTE: [1800],
        110 * MINUTE: [600],
        118 * MINUTE: [120],
        120 * MINUTE: ["stop"],
    }


def test_the_stop_is_said_at_each_look_until_the_container_is_gone() -> None:
    """A stop that failed is tried again; what is gone is forgotten."""
    watch = Watch(lease())
    course(watch, 3 * HOUR)
    assert short(watch.at(2 * HOUR + 20)) == ["stop"]
    watch.leases = []
    assert watch.at(2 * HOUR + 40) == ()
    assert watch.state.marks == {}


def test_a_lease_without_an_end_is_left_alone() -> None:
    """No time limit, no verdict."""
    assert course(Watch(lease(limit=None)), 40 * HOUR, every=600) == {}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param(45 * MINUTE, {900: [1800], 2100: [600], 2580: [120], 2700: ["stop"]}, id="all steps fit"),
        pytest.param(
            20 * MINUTE, {600: [600], 1080: [120], 1200: ["stop"]}, id="30 minutes before is before its start"
        ),
        pytest.param(MINUTE, {0: [120], 120: ["stop"]}, id="shorter than every step"),
    ],
)
def test_short_leases_are_not_warned_of_more_time_than_they_have(
    limit: int, expected: Mapping[int, list[int | str]]
) -> None:
    """A lease of twenty minutes does not begin with the thirty-minute warning."""
    assert course(Watch(lease(limit=limit)), HOUR) == expected


def test_a_warning_that_was_missed_is_given_at_the_next_look() -> None:
    """A watch that was down for half an hour gives the one warning that fits the time left."""
    watch = Watch(lease())
    assert watch.at(80 * MINUTE) == ()
    (verdict,) = watch.at(115 * MINUTE)
    assert isinstance(verdict, Warn)
    assert (verdict.step_seconds, verdict.left_seconds) == (600, 5 * MINUTE)
    assert verdict.stops == NOON + timedelta(hours=2)
    assert course(watch, 3 * HOUR) == {118 * MINUTE: [120], 120 * MINUTE: ["stop"]}


def test_a_watch_that_was_down_at_the_end_warns_first() -> None:
    """Whoever looks for the first time when the time is over says so, and stops two minutes later."""
    watch = Watch(lease())
    (verdict,) = watch.at(5 * HOUR)
    assert isinstance(verdict, Warn)
    assert (verdict.step_seconds, verdict.left_seconds) == (LAST_STEP, 120)
    assert verdict.stops == NOON + timedelta(hours=5, minutes=2)
    assert watch.at(5 * HOUR + 119) == ()
    assert short(watch.at(5 * HOUR + 120)) == ["stop"]


def test_the_first_warning_comes_a_grace_before_the_stop() -> None:
    """A watch that comes up half a minute before the end gives two minutes, and says so."""
    watch = Watch(lease())
    (verdict,) = watch.at(2 * HOUR - 30)
    assert isinstance(verdict, Warn)
    assert verdict.left_seconds == 120
    assert watch.at(2 * HOUR) == ()
    assert short(watch.at(2 * HOUR + 90)) == ["stop"]


def test_a_late_last_warning_does_not_put_off_the_stop() -> None:
    """The grace counts from the first warning, which was half an hour ago."""
    watch = Watch(lease())
    watch.at(91 * MINUTE)
    (verdict,) = watch.at(2 * HOUR - 30)
    assert isinstance(verdict, Warn)
    assert (verdict.left_seconds, verdict.stops) == (30, NOON + timedelta(hours=2))
    assert short(watch.at(2 * HOUR)) == ["stop"]


def test_an_extension_begins_the_warnings_anew() -> None:
    """The new end has warnings of its own, also where the old one was over already."""
    watch = Watch(lease())
    assert short(watch.at(119 * MINUTE)) == [120]
    assert watch.state.warned == {"kim"}
    watch.extensions["kim"] = NOON + timedelta(hours=3)
    assert watch.at(120 * MINUTE) == ()
    assert watch.state.warned == frozenset()
    found = course(watch, 4 * HOUR)
    assert found == {150 * MINUTE: [1800], 170 * MINUTE: [600], 178 * MINUTE: [120], 180 * MINUTE: ["stop"]}


def test_extensions_that_are_lost_stop_nobody_at_once() -> None:
    """The original end holds then, and is long over: a warning comes first."""
    watch = Watch(lease())
    watch.extensions["kim"] = NOON + timedelta(hours=5)
    assert watch.at(4 * HOUR) == ()
    watch.extensions.clear()
    assert short(watch.at(4 * HOUR + 20)) == [LAST_STEP]
    assert watch.at(4 * HOUR + 40) == ()
    assert short(watch.at(4 * HOUR + 140)) == ["stop"]


def test_the_reason_names_limit_and_extension() -> None:
    """The sentence says what was over, in both languages."""
    watch = Watch(lease())
    watch.extensions["kim"] = NOON + timedelta(hours=3)
    watch.at(3 * HOUR - 120)
    (verdict,) = watch.at(3 * HOUR)
    assert isinstance(verdict, Stop)
    assert verdict.reason == Text(
        "The server was stopped, because its time limit of 2 h, extended by 1 h, is over. "
        "The files in the home folder stay; start it again when you need it.",
        "시간 한도(2시간)와 연장 시간(1시간)이 모두 끝나 서버가 중지되었습니다. "
        "홈 폴더의 파일은 그대로 있습니다. 필요할 때 다시 시작하세요.",
    )
    plain = Watch(lease())
    plain.at(2 * HOUR - 120)
    (verdict,) = plain.at(2 * HOUR)
    assert isinstance(verdict, Stop)
    assert verdict.reason.en.startswith("The server was stopped, because its time limit of 2 h is over.")
    assert verdict.reason.ko.startswith("시간 한도(2시간)가 끝나 서버가 중지되었습니다.")


@pytest.mark.parametrize(
    ("seconds", "english", "korean"),
    [
        pytest.param(1799, "in 29 min,", "29분 후", id="whole minutes"),
        pytest.param(45, "in 45 s,", "45초 후", id="the last minute"),
    ],
)
def test_the_words_of_a_warning(seconds: int, english: str, korean: str) -> None:
    """How long is left, and what to do."""
    assert english in warning(seconds).en
    assert "Save your work now" in warning(seconds).en
    assert korean in warning(seconds).ko


# --- restarts and clocks ---------------------------------------------------------------------------------------------


def test_a_restarted_watch_does_not_repeat_a_warning() -> None:
    """What was given before is known from the notices; only the grace begins anew."""
    watch = Watch(lease())
    assert short(watch.at(91 * MINUTE)) == [1800]
    watch.restart()
    assert watch.at(92 * MINUTE) == ()
    assert course(watch, 3 * HOUR) == {110 * MINUTE: [600], 118 * MINUTE: [120], 120 * MINUTE: ["stop"]}


def test_a_watch_restarted_at_the_end_warns_before_it_stops() -> None:
    """It cannot know how long ago the last warning was given, so it gives one of its own."""
    watch = Watch(lease())
    course(watch, 119 * MINUTE)
    watch.restart()
    assert watch.at(119 * MINUTE) == ()
    assert short(watch.at(121 * MINUTE)) == [LAST_STEP]
    assert watch.at(122 * MINUTE) == ()
    assert short(watch.at(123 * MINUTE)) == ["stop"]


@pytest.mark.fault(46)
@pytest.mark.parametrize("jump", [86400, -86400, 3600, -3600, 90], ids=lambda value: f"{value} s")
def test_a_jump_of_the_wall_clock_changes_nothing_for_leases_that_were_seen(jump: int) -> None:
    """After a jump of a day the lease still gets its two hours, and each warning at its time."""
    watch = Watch(lease())
    watch.at(60 * MINUTE)
    watch.jumped = jump
    assert course(watch, 3 * HOUR) == {
        90 * MINUTE: [1800],
        110 * MINUTE: [600],
        118 * MINUTE: [120],
        120 * MINUTE: ["stop"],
    }


@pytest.mark.fault(46)
@pytest.mark.parametrize("jump", [86400, -86400], ids=["a day ahead", "a day back"])
def test_a_lease_that_began_around_a_jump_gets_its_whole_time(jump: int) -> None:
    """Its start was written by the clock of before or of after, and neither stops it early or late."""
    watch = Watch()
    watch.at(100)
    watch.jumped = jump
    before = lease("before", HOUR, NOON + timedelta(seconds=105))
    after = lease("after", HOUR, NOON + timedelta(seconds=115 + jump))
    watch.leases = [before, after]
    stops = {}
    for second in range(120, 2 * HOUR, 20):
        for verdict in watch.at(second):
            if isinstance(verdict, Stop):
                stops.setdefault(verdict.lease.id, second)
    assert stops == {"before": HOUR + 120, "after": HOUR + 120}


@pytest.mark.fault(46)
def test_a_watch_that_starts_after_a_jump_warns_before_it_stops() -> None:
    """What seems to be over at the first look gets a warning and the grace."""
    watch = Watch(lease())
    watch.jumped = 86400
    assert short(watch.at(10 * MINUTE)) == [LAST_STEP]
    assert watch.at(11 * MINUTE) == ()
    assert short(watch.at(12 * MINUTE)) == ["stop"]


def test_small_corrections_of_the_wall_clock_are_followed() -> None:
    """Half a minute is what the students' clocks show as well."""
    watch = Watch(lease())
    watch.at(115 * MINUTE)
    watch.jumped = 30
    assert course(watch, 3 * HOUR)[117 * MINUTE + 40] == [120]
    assert watch.elapsed == 120 * MINUTE - 20


LOOKS = st.lists(
    st.tuples(
        st.integers(1, 1500),
        st.sampled_from([0, 0, 0, 86400, -86400, 3600, -3600, 59, -59]),
        st.sampled_from(["", "", "", "", "restart", "extend", "forget"]),
    ),
    min_size=1,
    max_size=60,
)


@pytest.mark.fault(46)
@given(LOOKS, st.integers(1, 4 * HOUR))
def test_never_a_stop_out_of_the_blue(looks: list[tuple[int, int, str]], limit: int) -> None:
    """Whatever clocks, restarts and extensions do, a stop comes a grace after a warning of the same process
    and the same end; no step is repeated for the same end, except the last one after a restart."""
    watch = Watch(lease(limit=limit))
    warned_at: float | None = None
    steps: set[tuple[datetime, int]] = set()
    for wait, jump, event in looks:
        before = dict(watch.extensions)
        if event == "restart":
            watch.restart()
            warned_at = None
            steps = {(ends, step) for ends, step in steps if step != LAST_STEP}
        elif event == "extend":
            now = watch.leases[0].ends_with(watch.extensions)
            assert now is not None
            watch.extensions["kim"] = now + timedelta(hours=1)
        elif event == "forget":
            watch.extensions.clear()
        if watch.extensions != before:
            warned_at = None
            steps = set()
        watch.jumped += jump
        verdicts = watch.at(watch.elapsed + wait)
        assert len(verdicts) <= 1
        for verdict in verdicts:
            if isinstance(verdict, Stop):
                assert warned_at is not None
                assert watch.elapsed - warned_at >= POLICY.grace_seconds
            else:
                assert (verdict.ends, verdict.step_seconds) not in steps
                assert verdict.stops >= watch.clock.utc
                steps.add((verdict.ends, verdict.step_seconds))
                warned_at = watch.elapsed if warned_at is None else warned_at


@pytest.mark.fault(46)
@given(
    st.lists(st.tuples(st.integers(1, 600), st.sampled_from([0, 0, 86400, -86400, 7200, -7200])), max_size=80),
    st.integers(1, 6 * HOUR),
)
def test_a_lease_that_was_seen_gets_exactly_its_time(looks: list[tuple[int, int]], limit: int) -> None:
    """Jumps of more than a minute neither shorten nor lengthen it, as long as the watch runs."""
    watch = Watch(lease(limit=limit))
    watch.at(0)
    for wait, jump in looks:
        watch.jumped += jump
        stops = "stop" in short(watch.at(watch.elapsed + wait))
        assert not (stops and watch.elapsed < limit)
    watch.at(watch.elapsed + max(limit, HOUR))
    assert short(watch.at(watch.elapsed + POLICY.grace_seconds)) == ["stop"]


# --- extending -------------------------------------------------------------------------------------------------------

RULE = Extending(step_seconds=HOUR, max_seconds=90 * MINUTE)
END = NOON + timedelta(hours=2)


def test_an_extension_adds_an_hour_up_to_the_most() -> None:
    """The second press adds what is left of the hour and a half."""
    now = NOON + timedelta(minutes=100)
    first = may_extend(lease(), END, RULE, someone_waits=False, now=now)
    assert first == END + timedelta(hours=1)
    second = may_extend(lease(), END + timedelta(hours=1), RULE, someone_waits=False, now=now)
    assert second == END + timedelta(minutes=90)


def test_a_double_click_adds_one_hour() -> None:
    """Both presses see the same end, so both ask for the same new one."""
    now = NOON + timedelta(minutes=100)
    answers = {may_extend(lease(), END, RULE, someone_waits=False, now=now) for _ in range(2)}
    assert answers == {END + timedelta(hours=1)}


def test_an_extension_in_the_grace_counts_from_now() -> None:
    """Two minutes after the end there is still somebody who wants to go on."""
    now = END + timedelta(seconds=90)
    assert may_extend(lease(), END, RULE, someone_waits=False, now=now) == now + timedelta(hours=1)


@pytest.mark.parametrize(
    ("limit", "ends", "rule", "waits", "after", "english", "korean"),
    [
        pytest.param(None, None, RULE, False, 60, "has no time limit", "시간 한도가 없어", id="no limit"),
        pytest.param(
            2 * HOUR, END, Extending(), False, 60, "switched off on this Hub. Save your work within 1 h;",
            "이 허브에서는 연장할 수 없습니다. 1시간 안에", id="switched off",
        ),
        pytest.param(
            2 * HOUR, END, RULE, True, 95, "somebody is waiting for this kind of card. Save your work within 25 min;",
            "기다리는 사용자가 있습니다. 25분 안에", id="somebody waits",
        ),
        pytest.param(
            2 * HOUR, END + timedelta(minutes=90), RULE, False, 200, "by 1 h 30 min at most, and that is used up.",
            "최대 연장 시간(1시간 30분)을 모두 사용했습니다.", id="used up",
        ),
        pytest.param(
            2 * HOUR, END, RULE, False, 600, "used up. Save your work now;", "지금 작업을 저장하세요.", id="long over"
        ),
    ],
)  # fmt: skip
def test_an_extension_is_refused_with_a_sentence(
    limit: int | None, ends: datetime | None, rule: Extending, waits: bool, after: int, english: str, korean: str
) -> None:
    """What was asked, why not, what to do now; in both languages."""
    now = NOON + timedelta(minutes=after)
    answer = may_extend(lease(limit=limit), ends, rule, someone_waits=waits, now=now)
    assert isinstance(answer, Text)
    assert answer.en.startswith("You asked for more time, but ")
    assert english in answer.en
    assert korean in answer.ko


@given(
    st.integers(1, 12 * HOUR),
    st.integers(0, 24 * HOUR),
    st.integers(1, 4 * HOUR),
    st.lists(st.integers(0, 2 * HOUR), max_size=20),
)
def test_extensions_never_pass_the_most(limit: int, most: int, step: int, waits: list[int]) -> None:
    """However often and whenever somebody presses, the end moves forward only, and not beyond the most."""
    one = lease(limit=limit)
    ends, now = one.ends, NOON
    assert ends is not None
    for wait in waits:
        now += timedelta(seconds=wait)
        answer = may_extend(one, ends, Extending(step, most), someone_waits=False, now=now)
        if isinstance(answer, datetime):
            assert ends < answer <= NOON + timedelta(seconds=limit + most)
            assert answer > now
            ends = answer
