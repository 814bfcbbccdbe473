"""Limits: which of several counts, when somebody is over one, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.errors import ConfigError, OverLimit, Reason
from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import CardShare, Held, Owner
from gpuspawner.limits import LEAST_SECONDS, Allowance, Asker, Left, Limits, Use, check, left
from gpuspawner.profiles import GpuRequest
from gpuspawner.units import GIB
from gpuspawner.usage import Spell
from tests import strategies

HOUR, DAY, WEEK = 3600, 86400, 7 * 86400
NOON = datetime(2026, 12, 1, 12, tzinfo=timezone.utc)
SEOUL = ZoneInfo("Asia/Seoul")


def whole(count: int = 1) -> GpuRequest:
    """A request for whole cards."""
    return GpuRequest.model_validate({"count": count})


def share(gib: int) -> GpuRequest:
    """A request for a share of one card."""
    return GpuRequest.model_validate({"memory": gib * GIB})


def ran(hours: float, *, ended: float = 0, user: str = "ada") -> Spell:
    """One card for so many hours until `ended` hours before noon."""
    end = NOON - timedelta(hours=ended)
    return Spell(f"{user}-{ended}", user, frozenset(), end - timedelta(hours=hours), end, 1.0)


def asker(groups: str = "", *, together: Mapping[str, Use] | None = None, **use: Any) -> Asker:
    """A person in these groups (words) who has `use`."""
    return Asker(frozenset(groups.split()), Use(**use), together or {})


def refusal(limits: Limits, who: Asker, request: GpuRequest, now: datetime = NOON, **more: Any) -> OverLimit | None:
    """Why the request is over a limit, or None."""
    try:
        check(limits, who, request, now, **more)
    except OverLimit as error:
        return error
    return None


# Reading the configuration


def test_a_configuration() -> None:
    """All keys are read, with the units of profiles."""
    limits = Limits.parse(
        {
            "user": {"gpus": 2, "gpu_memory": "24G", "waiting": 1, "gpu_hours": "20h/7d"},
            "groups": {"staff": {"gpus": None}},
            "groups_total": {"students": {"gpus": 4, "gpu_hours": "4d/1w"}},
        }
    )
    assert limits.user.gpus == 2
    assert limits.user.gpu_memory_bytes == 24 * GIB
    assert limits.user.waiting == 1
    assert limits.user.gpu_hours == Allowance(20 * HOUR, WEEK)
    assert limits.groups["staff"].gpus is None
    assert limits.groups_total["students"].gpu_hours == Allowance(4 * DAY, WEEK)
    assert limits.longest_window_seconds == WEEK


@pytest.mark.parametrize("raw", [None, {}, {"user": None, "groups": None}, {"groups_total": {}}], ids=str)
def test_no_limits(raw: object) -> None:
    """Nothing given, nothing limited."""
    limits = Limits.parse(raw)
    check(limits, asker("students", gpus=100, share_bytes=10**15, waiting=50), whole(64), NOON, waits=True)
    assert left(limits, asker(), NOON) is None
    assert limits.longest_window_seconds == 0


def test_the_short_form_joins_the_entry_of_the_group() -> None:
    """`gpu_hours` beside `limits` is each member's own, and the other keys of the group stay."""
    limits = Limits.parse({"groups": {"students": {"gpus": 1}}}, {"students": "20h/7d", "lab": "1d/2d"})
    assert limits.groups["students"].gpus == 1
    assert limits.groups["students"].gpu_hours == Allowance(20 * HOUR, WEEK)
    assert limits.groups["lab"].gpu_hours == Allowance(DAY, 2 * DAY)


@pytest.mark.parametrize(
    ("raw", "hours", "lines"),
    [
        pytest.param([], None, ["limits must be a mapping of keys to values, got []"], id="a list"),
        pytest.param(
            {"users": {}}, None, ["limits.users is not a known key: use user, groups, groups_total"], id="unknown part"
        ),
        pytest.param(
            {"groups": {"students": {"gpus": 0}}},
            None,
            ["limits.groups.students.gpus must be at least 1, got 0"],
            id="no card at all",
        ),
        pytest.param({"user": {"gpus": "2"}}, None, ["limits.user.gpus must be a valid integer, got '2'"], id="a text"),
        pytest.param({"user": {"waiting": -1}}, None, ["limits.user.waiting must be at least 0, got -1"], id="below 0"),
        pytest.param(
            {"user": {"gpu": 2}}, None, ["limits.user.gpu is not a known key; did you mean 'gpus'?"], id="a wrong key"
        ),
        pytest.param(
            {"user": {"gpu_memory": "much"}},
            None,
            ["limits.user.gpu_memory must be a size such as '8G' or '512M' (powers of 1024), got 'much'"],
            id="no size",
        ),
        pytest.param(
            {"groups_total": {"lab": {"gpu_hours": "20h"}}},
            None,
            ["limits.groups_total.lab.gpu_hours must be GPU time and a window such as '20h/7d', got '20h'"],
            id="no window",
        ),
        pytest.param(
            None,
            {"students": "20/7"},
            ["gpu_hours.students must be GPU time and a window such as '20h/7d', got '20/7'"],
            id="no units",
        ),
        pytest.param(None, "20h/7d", ["gpu_hours must be a mapping of keys to values, got '20h/7d'"], id="no group"),
        pytest.param(
            {"groups": {"students": {"gpu_hours": "1h/1d"}}},
            {"students": "20h/7d"},
            ["gpu_hours.students is given twice: limits.groups.students.gpu_hours is there, too"],
            id="given twice",
        ),
        pytest.param({"groups": {"lab": 3}}, {"lab": "1h/1d"}, ["limits.groups.lab must be a mapping"], id="no entry"),
        pytest.param(
            {"user": {"gpus": 0}, "groups": []},
            {"lab": 7},
            ["limits.user.gpus must be", "limits.groups must be a mapping", "gpu_hours.lab must be GPU time"],
            id="all mistakes at once",
        ),
    ],
)
def test_mistakes_name_their_path(raw: object, hours: object, lines: list[str]) -> None:
    """One line for each mistake: path, rule, what was given."""
    with pytest.raises(ConfigError) as caught:
        Limits.parse(raw, hours)
    said = str(caught.value).splitlines()
    assert len(said) == len(lines)
    for line in lines:
        assert any(one.startswith(line) for one in said), said


@given(strategies.json_values(), strategies.json_values())
def test_garbage_is_a_configuration_error(raw: object, hours: object) -> None:
    """Whatever is written there, it is read or refused with a sentence."""
    said = "limits"
    try:
        Limits.parse(raw, hours)
    except ConfigError as error:
        said = str(error)
    assert said.startswith(("limits", "gpu_hours"))


# Which of several counts


BOTH = Limits.parse(
    {
        "user": {"gpus": 1, "waiting": 1},
        "groups": {"students": {"gpus": 2}, "lab": {"gpus": 3, "waiting": 0}, "staff": {"gpus": None}},
    }
)


@pytest.mark.parametrize(
    ("groups", "most"),
    [
        pytest.param("", 1, id="everybody's"),
        pytest.param("chess", 1, id="a group without an entry"),
        pytest.param("students", 2, id="the group's replaces everybody's"),
        pytest.param("students lab", 3, id="the most generous of two"),
        pytest.param("students staff", 64, id="a group without limit"),
    ],
)
def test_the_most_generous_group_counts(groups: str, most: int) -> None:
    """So many whole cards at once, and not one more."""
    assert refusal(BOTH, asker(groups, gpus=most - 1), whole()) is None
    if most < 64:
        assert refusal(BOTH, asker(groups, gpus=most), whole()) is not None


def test_a_group_replaces_key_by_key() -> None:
    """What the group's entry does not speak of stays everybody's, whether that is more or less."""
    assert refusal(BOTH, asker("students", waiting=1), whole(), waits=True) is not None
    assert refusal(BOTH, asker("lab", waiting=0), whole(), waits=True) is not None
    assert refusal(BOTH, asker("lab", waiting=0), whole()) is None


def test_of_several_allowances_the_one_with_most_left_counts() -> None:
    """A long window may leave more than a short one today, and less tomorrow."""
    limits = Limits.parse(None, {"students": "2h/1d", "lab": "10h/7d"})
    hours = left(limits, asker("students lab", spells=(ran(9, ended=30),)), NOON)
    assert hours is not None
    assert (hours.seconds, hours.allowance.window_seconds) == (2 * HOUR, DAY)
    hours = left(limits, asker("students lab", spells=(ran(1.5),)), NOON)
    assert hours is not None
    assert (hours.seconds, hours.allowance.window_seconds) == (8.5 * HOUR, WEEK)


def test_a_total_holds_whatever_the_person_may() -> None:
    """All of a group together have a lid, also for the one who may have more."""
    limits = Limits.parse({"groups_total": {"students": {"gpus": 4}}})
    used = {"students": Use(gpus=4)}
    assert refusal(limits, asker("students", together=used), whole()) is not None
    assert refusal(limits, asker("staff", together=used), whole()) is None
    assert refusal(limits, asker("students"), whole(4)) is None


def test_the_hours_of_a_group_together() -> None:
    """The group that has least left is what the form speaks of."""
    limits = Limits.parse({"user": {"gpu_hours": "20h/7d"}, "groups_total": {"students": {"gpu_hours": "30h/7d"}}})
    used = {"students": Use(spells=(ran(15, user="bob"), ran(14, ended=20)))}
    hours = left(limits, asker("students", together=used, spells=(ran(14, ended=20),)), NOON)
    assert hours is not None
    assert (hours.seconds, hours.group) == (HOUR, "students")


# What counts


def test_what_is_held() -> None:
    """Whole cards and shares are counted apart; what is nobody's counts for nobody."""
    a, b, c = (GpuUuid(f"GPU-{letter}") for letter in "abc")
    held = [
        Held((CardShare(a), CardShare(b)), Owner("ada")),
        Held((CardShare(c, 8 * GIB),), Owner("ada", "second")),
        Held((CardShare(c, 4 * GIB),), Owner("bob")),
        Held((CardShare(c),), None),
    ]
    assert Use.of(held, {"ada"}, waiting=1) == Use(2, 8 * GIB, 1)
    assert Use.of(held, {"ada", "bob"}) == Use(2, 12 * GIB)
    assert Use.of(held, ()) == Use()


def test_cards_and_shares_are_limited_apart() -> None:
    """Whoever may not have another card may still have a share, and the reverse."""
    limits = Limits.parse({"user": {"gpus": 1, "gpu_memory": "8G"}})
    assert refusal(limits, asker(gpus=1), share(8)) is None
    assert refusal(limits, asker(gpus=1), share(9)) is not None
    assert refusal(limits, asker(share_bytes=8 * GIB), whole()) is None
    assert refusal(limits, asker(share_bytes=1), share(8)) is not None


def test_a_request_without_a_gpu_is_never_over() -> None:
    """Who has used everything up may still work on the CPU."""
    limits = Limits.parse({"user": {"gpus": 1, "waiting": 0, "gpu_hours": "1h/1d"}})
    check(limits, asker(gpus=5, waiting=5, spells=(ran(20),)), None, NOON, waits=True)


def test_a_start_needs_ten_minutes() -> None:
    """Less GPU time than that is no start; an allowance below it can be used in one go."""
    limits = Limits.parse({"user": {"gpu_hours": "1h/1d"}})
    assert refusal(limits, asker(spells=(ran(50 / 60),)), whole()) is None
    assert refusal(limits, asker(spells=(ran(51 / 60),)), whole()) is not None
    little = Limits.parse({"user": {"gpu_hours": "5m/1d"}})
    assert refusal(little, asker(), whole()) is None


def test_what_the_form_says_of_hours() -> None:
    """What is left, and when the oldest use that counts leaves the window."""
    limits = Limits.parse({"user": {"gpu_hours": "20h/7d"}})
    assert left(limits, asker(), NOON) == Left(20 * HOUR, Allowance(20 * HOUR, WEEK), None)
    hours = left(limits, asker(spells=(ran(3, ended=2), ran(1, ended=200))), NOON)
    assert hours == Left(17 * HOUR, Allowance(20 * HOUR, WEEK), NOON + timedelta(days=7, hours=-5))
    hours = left(limits, asker(spells=(ran(2, ended=167),)), NOON)
    assert hours == Left(19 * HOUR, Allowance(20 * HOUR, WEEK), NOON)


def test_how_far_hours_reach() -> None:
    """Two cards use them up twice as fast; without a card they last for ever."""
    hours = Left(2 * HOUR, Allowance(20 * HOUR, WEEK))
    assert hours.lasts(2.0, NOON) == NOON + timedelta(hours=1)
    assert hours.lasts(0.25, NOON) == NOON + timedelta(hours=8)
    assert hours.lasts(0.0, NOON) is None


# What is said


STRICT = Limits.parse(
    {
        "user": {"gpus": 2, "gpu_memory": "24G", "waiting": 1, "gpu_hours": "20h/7d"},
        "groups": {"guests": {"waiting": 0}},
        "groups_total": {"students": {"gpus": 3, "gpu_memory": "32G", "waiting": 4}},
    }
)


@pytest.mark.parametrize(
    ("who", "request_", "more", "en", "ko"),
    [
        pytest.param(
            asker(gpus=1),
            whole(2),
            {},
            "You asked for 2 whole GPUs, but you may hold 2 whole GPUs at once, and hold 1 now. "
            "Stop a server that you no longer need, or choose another profile.",
            "GPU 2장 전체: 1인당 동시에 GPU 2장까지 사용할 수 있습니다. 현재 1장 사용 중입니다. "
            "더 이상 필요 없는 서버를 중지하거나 다른 프로필을 선택하세요.",
            id="cards",
        ),
        pytest.param(
            asker(),
            whole(3),
            {},
            "You asked for 3 whole GPUs, but you may hold 2 whole GPUs at once. "
            "Choose a smaller profile, or ask the admin.",
            "GPU 3장 전체: 1인당 동시에 GPU 2장까지 사용할 수 있습니다. "
            "더 작은 프로필을 선택하거나 관리자에게 문의하세요.",
            id="more than ever",
        ),
        pytest.param(
            asker(share_bytes=20 * GIB),
            share(8),
            {},
            "You asked for 8 GiB of one GPU, but you may hold 24 GiB in shares of GPUs at once, and hold 20 GiB now. "
            "Stop a server that you no longer need, or choose another profile.",
            "GPU 1장 중 8 GiB: 1인당 동시에 GPU 메모리 24 GiB까지 사용할 수 있습니다. 현재 20 GiB 사용 중입니다. "
            "더 이상 필요 없는 서버를 중지하거나 다른 프로필을 선택하세요.",
            id="memory",
        ),
        pytest.param(
            asker("students", together={"students": Use(gpus=3)}),
            whole(),
            {},
            "You asked for one whole GPU, but all of 'students' together may hold 3 whole GPUs at once, "
            "and hold 3 now. "
            "Choose another profile, or try again when somebody of the group has stopped a server.",
            "GPU 1장 전체: 'students' 그룹 전체가 동시에 GPU 3장까지 사용할 수 있습니다. 현재 3장 사용 중입니다. "
            "다른 프로필을 선택하거나, 그룹의 다른 사용자가 반납한 뒤 다시 시도하세요.",
            id="cards of a group",
        ),
        pytest.param(
            asker(waiting=1),
            whole(),
            {"waits": True},
            "You asked for one whole GPU, but you may have one request in line, and no more. "
            "Stop the server that is waiting, or choose a profile that is free.",
            "GPU 1장 전체: 1인당 대기열에 1건까지만 등록할 수 있습니다. "
            "대기 중인 서버를 취소하거나 사용 가능한 다른 프로필을 선택하세요.",
            id="waiting",
        ),
        pytest.param(
            asker("guests"),
            whole(),
            {"waits": True},
            "You asked for one whole GPU, but you may not wait in line. Choose a profile that is free.",
            "GPU 1장 전체: 이 계정은 대기열을 사용할 수 없습니다. 사용 가능한 다른 프로필을 선택하세요.",
            id="no waiting",
        ),
        pytest.param(
            asker("students", together={"students": Use(waiting=4)}),
            whole(),
            {"waits": True},
            "You asked for one whole GPU, but all of 'students' together may have 4 requests in line, and no more. "
            "Choose a profile that is free, or try again later.",
            "GPU 1장 전체: 'students' 그룹 전체가 대기열에 4건까지만 등록할 수 있습니다. "
            "사용 가능한 다른 프로필을 선택하거나 나중에 다시 시도하세요.",
            id="waiting of a group",
        ),
        pytest.param(
            asker(spells=(ran(20, ended=10),)),
            whole(),
            {"zone": SEOUL},
            "You asked for one whole GPU, but you may use 20 h of GPU time in 7 d, and 0 s of it is left. "
            "Time comes back in 5 d 18 h (Mon 7 Dec 15:10) if no GPU is used until then. "
            "Choose a profile without a GPU meanwhile.",
            "GPU 1장 전체: 1인당 7일 동안 GPU를 20시간까지 사용할 수 있으며, 0초 남았습니다. "
            "그때까지 GPU를 사용하지 않으면 5일 18시간 뒤(12월 7일(월) 15:10)에 다시 시작할 수 있습니다. "
            "그동안 GPU가 없는 프로필을 선택하세요.",
            id="hours",
        ),
    ],
)
def test_the_sentence(who: Asker, request_: GpuRequest, more: dict[str, Any], en: str, ko: str) -> None:
    """What was asked, which limit, what is held, what to do now; 403, and a reason of its own."""
    error = refusal(STRICT, who, request_, **more)
    assert error is not None
    assert (error.text.en, error.text.ko) == (en, ko)
    assert (error.status_code, error.reason) == (403, Reason.LIMIT)


# Rules for any use


def uses() -> st.SearchStrategy[Use]:
    """What somebody may have at some time; hours in quarters."""
    hours = st.integers(0, 200).map(lambda quarters: quarters / 4)
    spells = st.lists(st.builds(lambda length, ended: ran(length, ended=ended), hours, hours), max_size=5).map(tuple)
    return st.builds(Use, st.integers(0, 4), st.integers(0, 40).map(lambda gib: gib * GIB), st.integers(0, 2), spells)


@given(uses(), strategies.requests(), st.booleans())
def test_limits_hold(use: Use, request: GpuRequest, waits: bool) -> None:
    """Whoever passes is within every limit with what was asked; whoever does not, is beyond one."""
    passes = refusal(STRICT, Asker(frozenset(), use), request, waits=waits) is None
    hours = left(STRICT, Asker(frozenset(), use), NOON)
    assert hours is not None
    within = (
        (request.count is None or use.gpus + request.count <= 2)
        and (request.memory_bytes is None or use.share_bytes + request.memory_bytes <= 24 * GIB)
        and (not waits or use.waiting == 0)
        and hours.seconds >= LEAST_SECONDS
    )
    assert passes == within


@given(uses())
def test_hours_are_back_when_it_was_said(use: Use) -> None:
    """At the moment that the sentence names a start is possible, and not a minute earlier."""
    who = Asker(frozenset(), use)
    hours = left(STRICT, who, NOON)
    assert hours is not None
    assert 0 <= hours.seconds <= 20 * HOUR
    if not hours.enough:
        assert hours.back is not None
        later, early = left(STRICT, who, hours.back), left(STRICT, who, hours.back - timedelta(minutes=1))
        assert later is not None
        assert later.enough
        assert early is not None
        assert not early.enough


@given(uses(), st.sampled_from(["", "students", "lab", "students lab", "staff", "lab staff"]))
def test_another_group_never_takes_away(use: Use, groups: str) -> None:
    """Being in one more group that has the key never makes a limit on cards smaller."""
    alone = refusal(BOTH, asker("students", gpus=use.gpus), whole())
    more = refusal(BOTH, asker(f"students {groups}", gpus=use.gpus), whole())
    assert alone is not None or more is None
