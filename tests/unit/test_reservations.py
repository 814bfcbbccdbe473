"""What a class reservation leaves to others: never the card that the class needs, and otherwise as much as there is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuspawner.errors import NoRoom, Reason, Refused
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held, Owner
from gpuspawner.placement import Occupancy, Policy, place
from gpuspawner.profiles import GpuRequest
from gpuspawner.reservations import LEAST, Bound, Situation, around, bound, cards_kept_for_others
from gpuspawner.texts import Text
from gpuspawner.timetable import Calendar, Window
from gpuspawner.units import GIB
from tests import strategies

RTX4090, RTX3060 = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060"
HOUR = 3600
# 2026-12-07 is a Monday. The class is from 09:00 to 12:00 in Seoul.
NINE = datetime(2026, 12, 7, 0, tzinfo=timezone.utc)
TWELVE = NINE + timedelta(hours=3)
POLICY = Policy(reserve_bytes=0)
PEOPLE = {"ada": ("ai",), "ann": ("ai",), "bob": ("law",), "cal": ()}
ONE = GpuRequest.model_validate({"count": 1})
TWO = GpuRequest.model_validate({"count": 2})
SHARE = GpuRequest.model_validate({"memory": "8G"})


def at(hours: float) -> datetime:
    """So many hours after the class begins."""
    return NINE + timedelta(hours=hours)


def machine(*names: str) -> Inventory:
    """Cards with short UUIDs, of 24 GiB each."""
    return Inventory(tuple(Gpu(GpuUuid(f"GPU-{n}"), n, name, 24 * GIB) for n, name in enumerate(names)))


def held(number: int, user: str | None, ends: float | None = None, share: int | None = None) -> Held:
    """A card in somebody's hands until so many hours after the class begins."""
    card = CardShare(GpuUuid(f"GPU-{number}"), share and share * GIB)
    return Held((card,), None if user is None else Owner(user), None if ends is None else at(ends))


def reserve(gpus: int, *, group: str = "ai", **more: Any) -> dict[str, Any]:
    """One entry of the configuration: Monday from nine to twelve."""
    usual = {} if "from" in more else {"weekly": "Mon 09:00-12:00"}
    return {"group": group, "gpus": gpus, "timezone": "Asia/Seoul", **usual, **more}


def situation(inventory: Inventory, *holdings: Held, now: float = 0) -> Situation:
    """So many hours after the class begins."""
    return Situation(inventory, holdings, POLICY, at(now), PEOPLE)


def numbers(uuids: Collection[str]) -> list[int]:
    """The numbers of these cards."""
    return sorted(int(uuid.removeprefix("GPU-")) for uuid in uuids)


def kept(entries: Sequence[Mapping[str, Any]], where: Situation, groups: str = "") -> list[int]:
    """What a member of these groups (words) may not get now."""
    return numbers(cards_kept_for_others(Calendar.parse(entries), groups.split(), where))


def limit(
    entries: Sequence[Mapping[str, Any]],
    where: Situation,
    hours: float | None,
    request: GpuRequest | None = ONE,
    groups: str = "",
) -> Bound:
    """What becomes of a request with a time limit of so many hours."""
    seconds = None if hours is None else int(hours * HOUR)
    return bound(Calendar.parse(entries), groups.split(), request, where, seconds)


# During the class


FOUR = machine(*4 * [RTX4090])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        pytest.param(situation(FOUR), [0, 1], id="the first two of an idle machine"),
        pytest.param(situation(FOUR, now=-0.1), [], id="none before"),
        pytest.param(situation(FOUR, now=3), [], id="none afterwards"),
        pytest.param(situation(FOUR, held(0, "cal")), [1, 2], id="idle ones first"),
        pytest.param(situation(FOUR, held(3, "ada")), [0, 3], id="what a member holds counts"),
        pytest.param(situation(FOUR, held(3, "ada"), held(2, "ann")), [2, 3], id="the class has all it needs"),
        pytest.param(situation(FOUR, held(2, "ada", share=8)), [0, 2], id="nobody else shares with a member"),
        pytest.param(
            situation(FOUR, held(2, "ada", share=8), held(2, "cal", share=8)), [0, 1], id="a card that others share"
        ),
        pytest.param(
            situation(FOUR, held(0, "cal", 2), held(1, "cal"), held(2, "cal", 1), held(3, "cal", 1.5)),
            [2, 3],
            id="those that come back first",
        ),
        pytest.param(situation(FOUR, held(0, "cal", -1), held(1, "cal")), [2, 3], id="overdue is still held"),
        pytest.param(situation(FOUR, held(0, None), held(1, "bob")), [2, 3], id="unknown holders are no members"),
        pytest.param(situation(machine(RTX4090)), [0], id="all that there is"),
        pytest.param(situation(machine()), [], id="no cards"),
    ],
)
def test_what_is_kept_for_the_class(where: Situation, expected: list[int]) -> None:
    """Two cards are reserved: these are not for others."""
    assert kept([reserve(2)], where) == expected


def test_members_get_what_they_want() -> None:
    """For the class nothing is kept from its members, and everything is as on any other day."""
    assert kept([reserve(2)], situation(FOUR), "ai") == []
    assert limit([reserve(2)], situation(FOUR), 48, groups="ai") == Bound(at(48))


def test_sick_cards_serve_no_class() -> None:
    """Well cards are kept instead."""
    cards = machine(*3 * [RTX4090]).gpus
    sick = Inventory((replace(cards[0], fault=Text("sick")), *cards[1:]))
    assert kept([reserve(1)], situation(sick)) == [1]


def test_cards_of_a_model() -> None:
    """Only they count; and who may use few cards chooses before who may use all."""
    cards = machine(RTX3060, RTX4090)
    assert kept([reserve(1, gpu_model="RTX 4090")], situation(cards)) == [1]
    both = [reserve(1), reserve(1, group="law", gpu_model="3060")]
    assert kept(both, situation(cards)) == [0, 1]
    assert kept(both, situation(cards), "ai") == [0]
    assert kept(both, situation(cards), "law") == [1]


def test_classes_at_the_same_time_keep_different_cards() -> None:
    """Members of one get the cards of neither the other, nor of an entry that is given twice."""
    two = [reserve(1), reserve(2, group="law")]
    assert kept(two, situation(FOUR)) == [0, 1, 2]
    assert kept(two, situation(FOUR), "ai") == [1, 2]
    assert kept(two, situation(FOUR), "ai law") == []
    assert kept([reserve(1), reserve(1)], situation(FOUR)) == [0, 1]


# Before the class


BUSY = machine(RTX4090, RTX4090)


@pytest.mark.parametrize(
    ("where", "hours", "ends", "avoid"),
    [
        pytest.param(situation(BUSY, now=-4), 4, 0, [], id="over when the class begins"),
        pytest.param(situation(BUSY, now=-4), 6, 2, [0], id="another card is left for the class"),
        pytest.param(situation(BUSY, held(0, "cal", 1), now=-4), 6, 0, [], id="the other one is not back by then"),
        pytest.param(situation(BUSY, held(0, "cal", 0), now=-4), 6, 2, [0], id="the other one is back by then"),
        pytest.param(situation(BUSY, held(0, "cal"), now=-4), 6, 0, [], id="nobody knows when the other one is back"),
        pytest.param(situation(BUSY, held(0, "ada"), now=-4), 6, 2, [0], id="a member has the other one"),
        pytest.param(situation(BUSY, held(0, "ada", -1), now=-4), None, None, [0], id="a member gives it back"),
    ],
)
def test_a_lease_before_the_class(where: Situation, hours: float | None, ends: float | None, avoid: list[int]) -> None:
    """One of two cards is reserved: the lease ends at this hour, and may not have these cards."""
    found = limit([reserve(1)], where, hours)
    assert (found.ends, found.refusal) == (None if ends is None else at(ends), None)
    assert numbers(found.avoid) == avoid
    assert (found.window is not None) == (ends == 0 and hours == 6)


def test_a_card_that_the_class_cannot_use_is_free_for_all() -> None:
    """Who asks for any card gets the one of the other model, without an end."""
    cards = machine(RTX4090, RTX3060)
    assert limit([reserve(1, gpu_model="4090")], situation(cards, now=-1), None).avoid == {"GPU-0"}


def test_the_class_takes_the_card_that_the_request_cannot_use() -> None:
    """The class takes any card: who needs a certain model keeps it."""
    cards = machine(RTX4090, RTX3060)
    wanted = GpuRequest.model_validate({"count": 1, "model": "4090"})
    found = limit([reserve(1)], situation(cards, now=-1), 8, wanted)
    assert (found.ends, numbers(found.avoid)) == (at(7), [1])


@pytest.mark.parametrize(
    ("request_", "end"),
    [pytest.param(SHARE, 5, id="a share"), pytest.param(ONE, 0, id="a whole card"), pytest.param(TWO, None, id="busy")],
)
def test_shares_before_the_class(request_: GpuRequest, end: float | None) -> None:
    """A share goes to the card that is shared past the class anyway; a whole card has to be back."""
    where = situation(BUSY, held(0, "cal", share=8), now=-1)
    found = limit([reserve(1)], where, 6, request_)
    assert found.refusal is None
    assert found.ends == at(5 if end is None else end)


def test_too_little_time_is_no_lease() -> None:
    """Ten minutes before the class a server may still start, a minute later it may not."""
    ten = LEAST.total_seconds() / HOUR
    full = [reserve(2)]
    assert limit(full, situation(BUSY, now=-ten), 4).ends == NINE
    late = limit(full, situation(BUSY, now=-ten + 1 / 60), 4)
    assert late.refusal is not None
    assert late.refusal.text == Text(
        "You asked for one whole GPU, but a class has reserved the cards from Mon 7 Dec 09:00 (Asia/Seoul): less than "
        "10 minutes are left. Choose another profile, or try again after Mon 7 Dec 12:00 (Asia/Seoul).",
        "GPU 1장 전체: 12월 7일(월) 09:00(Asia/Seoul)부터 카드가 수업용으로 예약되어 있어 10분도 남지 않았습니다. "
        "다른 프로필을 선택하거나 12월 7일(월) 12:00(Asia/Seoul) 이후에 다시 시도하세요.",
    )


def test_a_class_that_wants_no_guests_before_it() -> None:
    """By policy a lease that would run into it does not start, one that would not does."""
    strict = [reserve(2, before="refuse")]
    assert limit(strict, situation(BUSY, now=-4), 4) == Bound(NINE)
    refused = limit(strict, situation(BUSY, now=-4), 4.5)
    assert refused.refusal is not None
    assert refused.refusal.text == Text(
        "You asked for one whole GPU, but a class has reserved the cards from Mon 7 Dec 09:00 (Asia/Seoul), and this "
        "server might still run then. Choose a profile with a shorter time limit, or try again after Mon 7 Dec 12:00 "
        "(Asia/Seoul).",
        "GPU 1장 전체: 12월 7일(월) 09:00(Asia/Seoul)부터 카드가 수업용으로 예약되어 있고, 이 서버는 그때까지 끝나지 "
        "않을 수 있습니다. "
        "시간 한도가 더 짧은 프로필을 선택하거나 12월 7일(월) 12:00(Asia/Seoul) 이후에 다시 시도하세요.",
    )
    assert (refused.refusal.reason, refused.refusal.status_code) == (Reason.RESERVED, 409)


def test_during_the_class_others_are_told_until_when() -> None:
    """Not that all cards are in use, for they are not."""
    found = limit([reserve(2)], situation(BUSY, now=1), 1)
    assert found.refusal is not None
    assert found.refusal.text == Text(
        "You asked for one whole GPU, but the cards that are free are kept for a class until Mon 7 Dec 12:00 "
        "(Asia/Seoul). Choose another profile, or try again then.",
        "GPU 1장 전체: 남은 카드는 12월 7일(월) 12:00(Asia/Seoul)까지 수업용으로 예약되어 있습니다. "
        "다른 프로필을 선택하거나 그 뒤에 다시 시도하세요.",
    )
    assert found.notice is None


def test_where_nothing_fits_anyway_the_reservation_is_silent() -> None:
    """Who would have to wait is not told of the class; what is kept now stays kept."""
    full = situation(BUSY, held(0, "cal"), held(1, "ada"), now=1)
    assert limit([reserve(1)], full, 4) == Bound(at(5), avoid=frozenset({GpuUuid("GPU-1")}))
    unknown = Situation(Inventory(trouble=Text("no driver")), (), POLICY, at(0), PEOPLE)
    assert limit([reserve(1)], unknown, 4) == Bound(at(4))


def test_without_a_card_there_is_no_bound() -> None:
    """Who computes on the CPU is in nobody's way."""
    assert limit([reserve(2)], situation(BUSY, now=-1), 4, None) == Bound(at(3))
    assert limit([reserve(2)], situation(BUSY, now=-1), None, None) == Bound(None)


def test_the_notice() -> None:
    """A shortened start says until when, on the clock of the class."""
    assert limit([reserve(2)], situation(BUSY, now=-4), 4.5).notice == Text(
        "This server has to stop by Mon 7 Dec 09:00 (Asia/Seoul): a class has reserved the cards.",
        "이 서버는 12월 7일(월) 09:00(Asia/Seoul)까지만 사용할 수 있습니다. "
        "그 뒤에는 카드가 수업용으로 예약되어 있습니다.",
    )
    assert limit([reserve(2)], situation(BUSY, now=-4), 4).notice is None


def test_a_lease_without_end_is_bounded_by_the_next_class() -> None:
    """However far away it is, within the horizon; a class that is further away does not matter yet."""
    assert limit([reserve(2)], situation(BUSY, now=4), None).ends == NINE + timedelta(days=7)
    far = reserve(2, **{"from": "2027-06-01", "until": "2027-06-02"})
    assert limit([far], situation(BUSY), None).ends is None


def test_how_long_a_lease_may_go_on() -> None:
    """With its own cards: as long as the class finds others."""
    calendar = Calendar.parse([reserve(1)])
    mine = (CardShare(GpuUuid("GPU-0")),)
    alone = bound(calendar, (), ONE, situation(BUSY, now=-4), 6 * HOUR, cards=mine)
    assert (alone.ends, numbers(alone.avoid)) == (at(2), [1])
    beside = bound(calendar, (), ONE, situation(BUSY, held(1, "cal"), now=-4), 6 * HOUR, cards=mine)
    assert beside.ends == NINE
    assert bound(calendar, ("ai",), ONE, situation(BUSY, now=-4), 6 * HOUR, cards=mine).ends == at(2)


def test_around() -> None:
    """A placement does not touch what is to be avoided."""
    assert place(ONE, BUSY, around(Occupancy(), {GpuUuid("GPU-0")}), POLICY) == (CardShare(GpuUuid("GPU-1")),)
    with pytest.raises(NoRoom):
        place(ONE, BUSY, around(Occupancy(), {GpuUuid("GPU-0"), GpuUuid("GPU-1")}), POLICY)


# Whatever is asked


@dataclass
class Day:
    """Students who come and go on a machine with reservations, placed as the rules say."""

    inventory: Inventory
    calendar: Calendar
    leases: list[Held] = field(default_factory=list)

    def there(self, now: datetime) -> tuple[Held, ...]:
        """What is held at a moment: everybody leaves on time."""
        return tuple(one for one in self.leases if one.ends is None or one.ends > now)

    def ask(self, user: str, request: GpuRequest, hours: float | None, now: datetime) -> Bound:
        """Start a server if the rules let it start."""
        self.leases = list(self.there(now))
        where = Situation(self.inventory, tuple(self.leases), POLICY, now, PEOPLE)
        seconds = None if hours is None else int(hours * HOUR)
        found = bound(self.calendar, PEOPLE[user], request, where, seconds)
        if found.refusal is None:
            try:
                cards = place(request, self.inventory, around(where.occupancy, found.avoid), POLICY)
            except Refused:
                return found
            self.leases.append(Held(cards, Owner(user), found.ends))
        return found

    def missing(self, now: datetime) -> int:
        """How many cards the classes of this moment cannot have."""
        windows, there = self.calendar.active(now), self.there(now)
        holders: dict[str, set[str]] = {gpu.uuid: set() for gpu in self.inventory.gpus}
        for one in there:
            for card in one.cards:
                holders[card.uuid].add(one.owner.user if one.owner else "")
        free = sum(not users for users in holders.values())
        short = 0
        for group in {window.group for window in windows}:
            mine = sum(bool(users) and all(group in PEOPLE[u] for u in users) for users in holders.values())
            short += max(0, sum(window.count for window in windows if window.group == group) - mine)
        return max(0, short - free)


@st.composite
def days(draw: st.DrawFn) -> tuple[Day, list[datetime]]:
    """A machine and its reservations, in all not more cards than there are; and the moments that matter."""
    cards = draw(st.integers(1, 5))
    entries, left = [], cards
    for group in draw(st.lists(st.sampled_from(["ai", "law"]), min_size=1, max_size=4)):
        if left == 0:
            break
        count = draw(st.integers(1, left))
        left -= count
        begin = draw(st.integers(0, 20))
        length = draw(st.integers(1, 6))
        start = datetime(2026, 12, 7) + timedelta(hours=begin)
        text = {
            "from": start.isoformat(timespec="minutes"),
            "until": (start + timedelta(hours=length)).isoformat(timespec="minutes"),
        }
        before = draw(st.sampled_from(["shorten", "refuse"]))
        entries.append({**reserve(count, group=group, **text), "timezone": "UTC", "before": before})
    calendar = Calendar.parse(entries)
    windows = calendar.windows(NINE, NINE + timedelta(days=3))
    return Day(machine(*cards * [RTX4090]), calendar), [window.start for window in windows]


ASKED = st.tuples(
    st.integers(0, 90),
    st.sampled_from(sorted(PEOPLE)),
    st.sampled_from([ONE, ONE, TWO, SHARE]),
    st.sampled_from([None, 0.5, 2, 5, 30]),
)


@pytest.mark.fault(8)
@settings(max_examples=300)
@given(days(), st.lists(ASKED, max_size=14))
def test_outsiders_never_get_the_card_that_the_class_needs(
    made: tuple[Day, list[datetime]], asked: Sequence[tuple[int, str, GpuRequest, float | None]]
) -> None:
    """Whoever asked for whatever before: at each moment every class has its cards, in its hands or free."""
    day, moments = made
    for quarter, user, request, hours in sorted(asked, key=lambda one: one[0]):
        now = at(quarter / 4)
        found = day.ask(user, request, hours, now)
        assert found.ends is None or found.ends > now
        assert found.window is None or found.window.group not in PEOPLE[user]
        assert day.missing(now) == 0
        for moment in moments:
            if moment >= now:
                assert day.missing(moment) == 0
    strategies.assert_within_cards((card for one in day.there(at(0)) for card in one.cards), day.inventory, POLICY)


@given(days(), st.lists(ASKED, max_size=6), ASKED)
def test_what_is_kept_now_is_enough_for_now(
    made: tuple[Day, list[datetime]],
    before: Sequence[tuple[int, str, GpuRequest, float | None]],
    asked: tuple[int, str, GpuRequest, float | None],
) -> None:
    """Whoever gets a card that is not kept takes none that a class of this moment needs."""
    day, _ = made
    for quarter, user, request, hours in sorted(before, key=lambda one: one[0]):
        day.ask(user, request, hours, at(quarter / 4))
    now = at(max((one[0] for one in (*before, asked)), default=0) / 4)
    there = day.there(now)
    _, user, request, _ = asked
    where = Situation(day.inventory, there, POLICY, now, PEOPLE)
    barred = cards_kept_for_others(day.calendar, PEOPLE[user], where)
    try:
        cards = place(request, day.inventory, around(where.occupancy, barred), POLICY)
    except Refused:
        cards = ()
    day.leases = [*there, Held(cards, Owner(user), None)]
    assert day.missing(now) == 0


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.lists(st.sampled_from([None, -1, 0, 2]), max_size=5))
def test_nobody_is_shortened_without_need(cards: int, reserved: int, count: int, ends: list[float | None]) -> None:
    """A lease is cut short exactly if with it the class would find too few cards that are back by then."""
    holdings = [held(number, "cal", end) for number, end in enumerate(ends[:cards])]
    back = cards - sum(end is None or end > 0 for end in ends[:cards])
    request = GpuRequest.model_validate({"count": count})
    found = limit([reserve(reserved)], situation(machine(*cards * [RTX4090]), *holdings, now=-4), 6, request)
    fits = cards - len(holdings) >= count
    assert (found.window is not None) == (fits and back - count < reserved)
    assert found.ends == (NINE if found.window else at(2))


@given(days(), ASKED, st.randoms())
def test_the_answer_is_always_the_same(made: tuple[Day, list[datetime]], asked: Any, random: Any) -> None:
    """The order in which leases are listed changes nothing."""
    day, _ = made
    quarter, user, request, hours = asked
    for other in ("ada", "bob", "cal"):
        day.ask(other, SHARE, 12, NINE)
    first = Situation(day.inventory, tuple(day.leases), POLICY, at(quarter / 4), PEOPLE)
    random.shuffle(day.leases)
    second = replace(first, held=tuple(day.leases))
    seconds = None if hours is None else int(hours * HOUR)
    one, two = (bound(day.calendar, PEOPLE[user], request, where, seconds) for where in (first, second))
    assert (one.ends, one.window, one.avoid) == (two.ends, two.window, two.avoid)


def test_a_window_knows_its_neighbours() -> None:
    """Two that only touch do not overlap."""
    morning, later, noon = (
        Window("ai", 1, None, at(begin), at(end), Calendar.parse([reserve(1)]).reservations[0].zone)
        for begin, end in ((0, 3), (2, 4), (3, 5))
    )
    assert morning.overlaps(later)
    assert later.overlaps(morning)
    assert not morning.overlaps(noon)
