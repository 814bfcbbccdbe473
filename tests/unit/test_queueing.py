"""Who is next: each of the ten rules at the top of `queueing` is a property here, and has its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.errors import Refused
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held
from gpuspawner.placement import Occupancy, Policy, able_cards, budget, place
from gpuspawner.profiles import GpuRequest
from gpuspawner.queueing import ESTIMATED, GOING, Decision, Scene, Waiter, _Desk, decide, forecast, forecast_newcomers
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests import strategies

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc)
POLICY = Policy(reserve_bytes=0)
A, B = GpuUuid("GPU-a"), GpuUuid("GPU-b")
ONE = GpuRequest.model_validate({"count": 1})
BOTH = GpuRequest.model_validate({"count": 2})
SHARE = GpuRequest.model_validate({"memory": "8G"})
HOUR = 3600


def cards(*uuids: GpuUuid) -> Inventory:
    """Cards of 24 GiB."""
    return Inventory(tuple(Gpu(uuid, index, "NVIDIA GeForce RTX 4090", 24 * GIB) for index, uuid in enumerate(uuids)))


def scene(*held: Held, inventory: Inventory | None = None, now: datetime = NOW) -> Scene:
    """Two cards, unless others are given."""
    return Scene(cards(A, B) if inventory is None else inventory, held, POLICY, now)


def after(minutes: float) -> datetime:
    """A moment of that morning."""
    return NOW + timedelta(minutes=minutes)


def whole(uuid: GpuUuid, minutes: float | None) -> Held:
    """A card that somebody has alone, for so long."""
    return Held((CardShare(uuid),), ends=None if minutes is None else after(minutes))


def share(uuid: GpuUuid, minutes: float | None, size: int = 8 * GIB) -> Held:
    """A share of a card that somebody has for so long."""
    return Held((CardShare(uuid, size),), ends=None if minutes is None else after(minutes))


def waiting(name: str, request: GpuRequest, seconds: int | None = HOUR, overtaken: int = 0) -> Waiter:
    """Somebody in the line."""
    return Waiter(name, request, seconds, overtaken=overtaken)


def serve(line: Sequence[Waiter], at: Scene, max_overtakes: int = 3) -> Decision:
    """A decision by the usual number of overtakes."""
    return decide(line, at, max_overtakes=max_overtakes)


# --- legal situations of any kind -------------------------------------------------------------------------------------


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Cards of mixed kinds, some out of order, some of them held until some moment or without end."""
    inventory = draw(strategies.inventories(max_cards=4))
    policy = draw(strategies.policies())
    taken = draw(strategies.occupancies(inventory, policy))
    ends = st.none() | st.integers(-30, 600).map(after)
    return Scene(inventory, tuple(Held((card,), ends=draw(ends)) for card in taken.cards), policy, NOW)


@st.composite
def lines(draw: st.DrawFn, inventory: Inventory) -> list[Waiter]:
    """Requests of a few kinds, so that some are alike."""
    kinds = draw(st.lists(strategies.requests(), min_size=1, max_size=3))
    uuids = [gpu.uuid for gpu in inventory.gpus]
    bars = st.just(frozenset[GpuUuid]()) | (
        st.frozensets(st.sampled_from(uuids), max_size=2) if uuids else st.nothing()
    )
    line = draw(
        st.lists(
            st.builds(
                Waiter,
                st.just(""),
                st.sampled_from(kinds),
                st.sampled_from((None, 600, HOUR, 4 * HOUR)),
                bars,
                st.integers(0, 3),
            ),
            max_size=8,
        )
    )
    return [replace(waiter, id=f"{number}") for number, waiter in enumerate(line)]


@st.composite
def situations(draw: st.DrawFn) -> tuple[Scene, list[Waiter]]:
    """A scene and a line before it."""
    drawn = draw(scenes())
    return drawn, draw(lines(drawn.inventory))


def able(waiter: Waiter, at: Scene) -> set[GpuUuid]:
    """The cards that could serve it one day."""
    found = set(able_cards(waiter.request, at.inventory, at.policy)) - waiter.barred
    return found if len(found) >= (waiter.request.count or 1) else set()


def compete(one: Waiter, other: Waiter, at: Scene) -> bool:
    """Rule 2, in other words than the code."""
    return bool(able(one, at) & able(other, at))


def fits(waiter: Waiter, at: Scene, held: Sequence[Held]) -> bool:
    """Whether it could be placed beside these."""
    closed = tuple(CardShare(uuid) for uuid in waiter.barred)
    try:
        place(waiter.request, at.inventory, Occupancy.of(*(each.cards for each in held), closed), at.policy)
    except Refused:
        return False
    return True


def first_fit(waiter: Waiter, at: Scene, held: Sequence[Held]) -> datetime | None:
    """Rule 5 by trying out every moment at which something ends."""
    moments = sorted({max(each.ends, at.now) for each in held if each.ends is not None} | {at.now})
    for moment in moments:
        left = [each for each in held if each.ends is None or max(each.ends, at.now) > moment]
        if moment == at.now and fits(waiter, at, held):
            return moment
        if fits(waiter, at, left):
            return moment
    return None


# --- the ten rules ----------------------------------------------------------------------------------------------------


@given(situations())
def test_rule_1_of_two_alike_the_first_is_served_first(situation: tuple[Scene, list[Waiter]]) -> None:
    """The served ones of a kind are those who came first."""
    at, line = situation
    grants = serve(line, at).grants
    for kind in {(waiter.want, waiter.time_limit_seconds) for waiter in line}:
        alike = [waiter.id in grants for waiter in line if (waiter.want, waiter.time_limit_seconds) == kind]
        assert alike == sorted(alike, reverse=True)


@given(situations())
def test_rules_2_and_3_whoever_competes_with_nobody_ahead_and_fits_is_served(
    situation: tuple[Scene, list[Waiter]],
) -> None:
    """A card that nobody else in the line can use never stays idle."""
    at, line = situation
    grants = serve(line, at).grants
    held = list(at.held)
    left: list[Waiter] = []
    for waiter in line:
        if waiter.id in grants:
            held.append(Held(grants[waiter.id]))
        else:
            assert not fits(waiter, at, held) or any(compete(waiter, other, at) for other in left)
            left.append(waiter)


@pytest.mark.fault(6)
@given(situations())
def test_a_decision_never_promises_more_than_there_is(situation: tuple[Scene, list[Waiter]]) -> None:
    """Law 2, for all that one decision gives away."""
    at, line = situation
    given_away = serve(line, at).grants
    occupancy = Occupancy.of(*(held.cards for held in at.held), *given_away.values())
    for granted in given_away.values():
        for card in granted:
            gpu = at.inventory.get(card.uuid)
            assert gpu is not None
            assert gpu.fault is None
            assert [other.uuid for other in occupancy.cards if other.whole].count(card.uuid) == (1 if card.whole else 0)
            if card.whole:
                assert card.uuid not in occupancy.shared_bytes
            else:
                assert occupancy.shared_bytes[card.uuid] <= budget(gpu, at.policy)


@given(situations())
def test_rule_5_the_promise_is_the_first_moment_at_which_it_fits(situation: tuple[Scene, list[Waiter]]) -> None:
    """As somebody finds it who tries out every moment; and the cards of the promise are free then."""
    at, line = situation
    for waiter in line:
        promise = _Desk(at).promise(waiter)
        assert (promise.at if promise else None) == first_fit(waiter, at, at.held)


@given(situations())
def test_rules_4_and_6_the_promise_to_a_head_never_gets_later(situation: tuple[Scene, list[Waiter]]) -> None:
    """Whoever was served from behind it, a minute over its time included."""
    at, line = situation
    grants = serve(line, at).grants
    for index, head in enumerate(line):
        if head.id in grants or any(w.id not in grants and compete(w, head, at) for w in line[:index]):
            continue
        ahead = [*at.held, *(Held(grants[w.id], ends=w.ends(NOW)) for w in line[:index] if w.id in grants)]
        passed = [w for w in line[index:] if w.id in grants and compete(w, head, at)]
        behind = [Held(grants[w.id], ends=ends + GOING if (ends := w.ends(NOW)) else None) for w in passed]
        before, now = first_fit(head, at, ahead), first_fit(head, at, [*ahead, *behind])
        if passed:
            assert before is not None
            assert now is not None
            assert now <= before


@given(situations(), st.integers(0, 3))
def test_rule_9_nobody_is_passed_more_often_than_allowed(
    situation: tuple[Scene, list[Waiter]], max_overtakes: int
) -> None:
    """Counting those of whom it was one too many already before, and exactly."""
    at, line = situation
    decision = decide(line, at, max_overtakes=max_overtakes)
    for index, waiter in enumerate(line):
        passed = [w for w in line[index:] if w.id in decision.grants and compete(w, waiter, at)]
        if waiter.id not in decision.grants:
            assert decision.overtaken.get(waiter.id, waiter.overtaken) == waiter.overtaken + len(passed)
            assert not passed or waiter.overtaken + len(passed) <= max_overtakes


@pytest.mark.fault(8)
@given(situations())
def test_rule_10_nobody_gets_a_card_that_is_kept_from_them(situation: tuple[Scene, list[Waiter]]) -> None:
    """However free it is."""
    at, line = situation
    grants = serve(line, at).grants
    for waiter in line:
        assert not {card.uuid for card in grants.get(waiter.id, ())} & waiter.barred


def test_rule_6_a_short_request_passes_where_it_is_gone_in_time() -> None:
    """Card B is idle until both are free at ten: half an hour on it harms nobody, an hour would."""
    at = scene(whole(A, 60))
    assert serve([waiting("head", BOTH), waiting("short", ONE, 1800)], at).grants == {"short": (CardShare(B),)}
    assert serve([waiting("head", BOTH), waiting("long", ONE, 2 * HOUR)], at).grants == {}
    assert serve([waiting("head", BOTH), waiting("endless", ONE, None)], at).grants == {}


def test_rule_7_a_minute_is_kept_for_the_one_who_goes() -> None:
    """Exactly an hour would end exactly when the head begins, and a server takes a moment to stop."""
    at = scene(whole(A, 60))
    assert serve([waiting("head", BOTH), waiting("exact", ONE, 3600)], at).grants == {}
    assert serve([waiting("head", BOTH), waiting("exact", ONE, 3540)], at).grants == {"exact": (CardShare(B),)}


def test_rule_8_a_share_goes_where_the_head_is_not_expected() -> None:
    """The card that is shared already would be best for it, but its last share ends soon and the head wants it."""
    at = scene(share(A, 10), share(B, 600, 4 * GIB), inventory=cards(A, B))
    decision = serve([waiting("head", ONE), waiting("share", SHARE, 2 * HOUR)], at)
    assert decision.grants == {"share": (CardShare(B, 8 * GIB),)}
    assert decision.overtaken == {"head": 1}


def test_nobody_passes_where_no_promise_can_be_given() -> None:
    """A lease without a time limit may end at any moment, and then the head has to find the cards."""
    assert serve([waiting("head", BOTH), waiting("short", ONE, 60)], scene(whole(A, None))).grants == {}


def test_nothing_is_given_away_on_unknown_cards() -> None:
    """Law 10."""
    lost = Inventory(trouble=Text("the driver does not answer"))
    assert serve([waiting("head", ONE)], scene(inventory=lost)) == Decision()


@given(st.data())
def test_a_promise_is_kept_whoever_comes_behind(data: st.DataObject) -> None:
    """A whole-card request at the head is not starved by shares: leases end on time, new requests come all day."""
    # Nothing ends between two steps of twenty minutes, so four hours are over after twelve.
    minutes = st.integers(1, 12).map(lambda steps: 20 * steps)
    held = [share(uuid, data.draw(minutes)) for uuid in (A, A, B, B)]
    line = [waiting("head", data.draw(st.sampled_from((ONE, BOTH))))]
    promised = first_fit(line[0], scene(*held), held)
    assert promised is not None
    clock = NOW
    for number in range(13):
        line.append(waiting(f"{number}", SHARE, 60 * data.draw(minutes)))
        at = scene(*held, now=clock)
        decision = serve(line, at, max_overtakes=1000)
        if "head" in decision.grants:
            assert clock <= promised
            return
        held += [Held(decision.grants[w.id], ends=w.ends(clock)) for w in line if w.id in decision.grants]
        line = [waiter for waiter in line if waiter.id not in decision.grants]
        assert clock < promised
        clock = min(min(each.ends for each in held if each.ends), promised)
        held = [each for each in held if each.ends and each.ends > clock]
    pytest.fail("the promised moment never came")


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_position_and_estimate_of_a_line() -> None:
    """Both cards come back at ten and eleven; the third has to wait for the first of the two that are before it."""
    at = scene(whole(A, 60), whole(B, 120))
    found = forecast([waiting("a", ONE), waiting("b", ONE), waiting("c", ONE)], at)
    assert [(found[name].position, found[name].at) for name in "abc"] == [
        (1, after(60)),
        (2, after(120)),
        (3, after(120)),
    ]


def test_those_who_want_other_cards_are_not_counted() -> None:
    """By card kind."""
    small = Gpu(GpuUuid("GPU-s"), 2, "NVIDIA GeForce RTX 3060", 12 * GIB)
    inventory = Inventory((*cards(A).gpus, small))
    at = scene(whole(A, 60), whole(small.uuid, 30), inventory=inventory)
    big, little = (GpuRequest.model_validate({"count": 1, "model": model}) for model in ("4090", "3060"))
    found = forecast([waiting("big", big), waiting("little", little), waiting("any", ONE)], at)
    assert [found[name].position for name in ("big", "little", "any")] == [1, 1, 3]
    assert found["little"].at == after(30)


def test_behind_somebody_without_an_estimate_there_is_none() -> None:
    """It is not said to be sooner than the one before it."""
    at = scene(whole(A, 60), whole(B, None))
    found = forecast([waiting("both", BOTH), waiting("one", ONE)], at)
    assert [found[name].at for name in ("both", "one")] == [None, None]


def test_estimates_end_with_the_first_twenty() -> None:
    """Positions go on."""
    found = forecast([waiting(f"{n}", ONE) for n in range(ESTIMATED + 1)], scene(whole(A, 60), whole(B, 60)))
    assert found[f"{ESTIMATED - 1}"].at is not None
    assert (found[f"{ESTIMATED}"].position, found[f"{ESTIMATED}"].at) == (ESTIMATED + 1, None)


@given(situations())
def test_whoever_is_said_to_be_first_and_fits_is_served(situation: tuple[Scene, list[Waiter]]) -> None:
    """What the page says and what is decided are one."""
    at, line = situation
    shown, grants = forecast(line, at), serve(line, at).grants
    for waiter in line:
        if shown[waiter.id].position == 1 and fits(waiter, at, [*at.held, *(Held(cards) for cards in grants.values())]):
            assert waiter.id in grants


@given(situations(), st.integers(0, 8))
def test_each_newcomer_is_told_what_it_would_be_told_alone(situation: tuple[Scene, list[Waiter]], ahead: int) -> None:
    """One walk along the line for all profiles of the form, and the same answers as a walk for each."""
    at, everybody = situation
    line, newcomers = everybody[:ahead], everybody[ahead:]
    alone = [forecast([*line, newcomer], at)[newcomer.id] for newcomer in newcomers]
    assert forecast_newcomers(line, newcomers, at) == alone
    assert forecast_newcomers(line, newcomers[::-1], at) == alone[::-1]
