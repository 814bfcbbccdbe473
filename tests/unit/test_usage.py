"""How much was used: a rolling window of spells, never less than nothing, whatever the clock does."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import CardShare
from gpuspawner.units import GIB
from gpuspawner.usage import Spell, falls_to, of_group, of_user, used_seconds, weight_of
from tests import strategies

HOUR, DAY = 3600, 86400
NOON = datetime(2026, 12, 1, 12, tzinfo=timezone.utc)


def ago(hours: float) -> datetime:
    """So many hours before noon."""
    return NOON - timedelta(hours=hours)


def spell(began: float, ended: float | None, *, weight: float = 1.0, user: str = "ada", groups: str = "") -> Spell:
    """A spell in hours before noon; `groups` are words."""
    closed = None if ended is None else ago(ended)
    return Spell(f"{user}-{began}", user, frozenset(groups.split()), ago(began), closed, weight)


@pytest.mark.parametrize(
    ("spells", "hours"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([spell(3, 1)], 2, id="one that is over"),
        pytest.param([spell(3, None)], 3, id="one that lasts counts until now"),
        pytest.param([spell(30, 23)], 1, id="one that began before the window"),
        pytest.param([spell(30, None)], 24, id="one that fills the window"),
        pytest.param([spell(30, 24)], 0, id="one that has left the window"),
        pytest.param([spell(3, 1, weight=2.0)], 4, id="two cards"),
        pytest.param([spell(4, 0, weight=0.25)], 1, id="a quarter of a card"),
        pytest.param([spell(3, 1), spell(2, 0)], 4, id="two servers at once"),
        pytest.param([spell(1, 3)], 0, id="ended before it began"),
        pytest.param([spell(-2, None)], 0, id="begins after now"),
        pytest.param([spell(1, -5)], 1, id="ended after now"),
    ],
)
def test_what_counts(spells: list[Spell], hours: float) -> None:
    """The part of each spell that lies in the last day, times its cards."""
    assert used_seconds(spells, DAY, NOON) == hours * HOUR


@pytest.mark.parametrize(
    ("share_bytes", "known", "weight"),
    [
        pytest.param(None, 24 * GIB, 1.0, id="a whole card"),
        pytest.param(6 * GIB, 24 * GIB, 0.25, id="a quarter"),
        pytest.param(6 * GIB, None, 1.0, id="a share of an unknown card counts as whole"),
        pytest.param(6 * GIB, 0, 1.0, id="a share of a card that was never readable counts as whole"),
        pytest.param(48 * GIB, 24 * GIB, 1.0, id="never more than the card"),
    ],
)
def test_weight(share_bytes: int | None, known: int | None, weight: float) -> None:
    """A share weighs its part of the card's memory."""
    card = GpuUuid("GPU-a")
    assert weight_of([CardShare(card, share_bytes)], {} if known is None else {card: known}) == weight


def test_weights_add_up() -> None:
    """Two whole cards weigh two, no card weighs nothing."""
    assert weight_of([CardShare(GpuUuid("GPU-a")), CardShare(GpuUuid("GPU-b"))], {}) == 2.0
    assert weight_of([], {}) == 0.0


def test_whose() -> None:
    """Spells by user, and by the groups at the beginning of the lease."""
    ada, bob = spell(3, 1, groups="students lab"), spell(2, 1, user="bob", groups="lab")
    assert of_user([ada, bob], "ada") == (ada,)
    assert of_group([ada, bob], "lab") == (ada, bob)
    assert of_group([ada, bob], "staff") == ()


@pytest.mark.parametrize(
    ("spells", "target", "hours"),
    [
        pytest.param([], 0, 0, id="nothing was used"),
        pytest.param([spell(3, 1)], 2, 0, id="as much as allowed is there already"),
        pytest.param([spell(3, 1)], 1, 22, id="half of it has left"),
        pytest.param([spell(3, 1)], 0, 23, id="all of it has left"),
        pytest.param([spell(30, 20)], 0, 4, id="part of it left before"),
        pytest.param([spell(20, 16, weight=2.0)], 2, 7, id="two cards leave twice as fast"),
        pytest.param([spell(3, None)], 1, 23, id="what runs counts as ended now"),
        pytest.param([spell(20, 18), spell(10, 8)], 1, 15, id="the second one has to leave in part"),
    ],
)
def test_when_it_comes_back(spells: list[Spell], target: float, hours: float) -> None:
    """The moment in hours after noon at which no more than `target` hours are in the window of a day."""
    assert falls_to(spells, target * HOUR, DAY, NOON) == NOON + timedelta(hours=hours)


def spells() -> st.SearchStrategy[list[Spell]]:
    """Spells of one user around noon, in whatever order, with clocks that jump."""
    hours = st.floats(-100, 400)
    weights = st.sampled_from((0.0, 0.1, 1 / 3, 1.0, 4.0))
    one = st.builds(lambda began, ended, weight: spell(began, ended, weight=weight), hours, st.none() | hours, weights)
    return st.lists(one, max_size=8)


@given(spells(), st.integers(1, 14 * DAY), st.integers(-400 * HOUR, 400 * HOUR))
def test_hours_are_never_negative(some: list[Spell], window: int, later: int) -> None:
    """Whatever the clock says, nothing is below zero, and nothing is above what all cards could have done."""
    used = used_seconds(some, window, NOON + timedelta(seconds=later))
    assert 0 <= used <= window * sum(one.weight for one in some) + 0.001


@given(spells(), st.integers(0, 50 * HOUR), st.integers(60, 14 * DAY))
def test_the_moment_keeps_its_promise(some: list[Spell], target: int, window: int) -> None:
    """At that moment the use is down to the target if nothing runs until then, and two seconds earlier it is not."""
    moment = falls_to(some, target, window, NOON)
    stopped = [
        Spell(s.lease_id, s.user, s.groups, s.began, min(s.ended or NOON, NOON), s.weight)
        for s in some
        if s.began < NOON
    ]
    assert NOON <= moment <= NOON + timedelta(seconds=window)
    assert used_seconds(stopped, window, moment) <= target + 0.001
    if moment - NOON > timedelta(seconds=2):
        assert used_seconds(stopped, window, moment - timedelta(seconds=2)) > target - 0.001


@given(spells(), spells(), st.integers(1, 14 * DAY))
def test_use_adds_up(some: list[Spell], others: list[Spell], window: int) -> None:
    """The use of a group is the sum of its members' use."""
    together = used_seconds([*some, *others], window, NOON)
    assert together == pytest.approx(used_seconds(some, window, NOON) + used_seconds(others, window, NOON))


@given(strategies.uuids(), strategies.share_sizes(), st.integers(0, 100 * GIB))
def test_a_share_weighs_at_most_a_card(uuid: GpuUuid, size: int, memory: int) -> None:
    """No share counts more than the whole card, and none counts nothing."""
    assert 0 < weight_of([CardShare(uuid, size)], {uuid: memory}) <= 1
