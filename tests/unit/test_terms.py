"""Limits and reservations for one who asks; their own rules are tested in their own rooms."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from gpuspawner.errors import ConfigError, GpusUnknown, NoRoom, OverLimit, Reason
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held, Owner
from gpuspawner.placement import Policy
from gpuspawner.profiles import GpuRequest
from gpuspawner.queueing import Scene
from gpuspawner.terms import Claim, History, People, Rules, Terms, may_wait
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from gpuspawner.usage import Spell

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc)
A, B = GpuUuid("GPU-a"), GpuUuid("GPU-b")
ONE = GpuRequest.model_validate({"count": 1})
CARDS = Inventory(tuple(Gpu(uuid, n, "NVIDIA GeForce RTX 4090", 24 * GIB) for n, uuid in enumerate((A, B))))
HOUR = 3600


def scene(*held: Held) -> Scene:
    """Two cards at nine on a Monday."""
    return Scene(CARDS, held, Policy(0), NOW)


def claim(user: str = "ann", *groups: str, request: GpuRequest | None = ONE, lease_id: str = "new") -> Claim:
    """An hour of one card."""
    return Claim(lease_id, request, Owner(user), HOUR, frozenset(groups))


def rules(limits: object = None, hours: object = None, reservations: object = ()) -> Rules:
    """Those of a configuration."""
    return Rules.parse(limits, hours, reservations, timezone.utc)


def test_without_rules_everybody_may_have_everything() -> None:
    """And nobody has to be known."""
    assert rules().trivial
    assert rules().terms(claim(), scene(), People()) == Terms(time_limit_seconds=HOUR)


def test_a_request_without_a_gpu_has_no_terms() -> None:
    """Whatever the rules are."""
    strict = rules(
        {"user": {"gpu_hours": "1h/7d"}},
        reservations=[{"group": "ai", "gpus": 2, "weekly": "Mon 08:00-12:00", "timezone": "UTC"}],
    )
    lost = People(history=History(trouble=Text("lost")))
    assert strict.terms(claim(request=None), scene(), lost) == Terms(time_limit_seconds=HOUR)


def test_what_one_holds_and_waits_for_is_counted() -> None:
    """Not what others do, and not the claim itself."""
    limited = rules({"user": {"gpus": 1, "waiting": 1}})
    held = Held((CardShare(A),), Owner("ann", "first"))
    assert isinstance(limited.terms(claim(), scene(held), People()).refusal, OverLimit)
    assert limited.terms(claim("bob"), scene(held), People()).refusal is None
    mine, other = claim(), claim(lease_id="other")
    assert limited.terms(mine, scene(), People(waiting=[mine]), waits=True).refusal is None
    assert isinstance(limited.terms(mine, scene(), People(waiting=[mine, other]), waits=True).refusal, OverLimit)


def test_a_group_is_counted_together() -> None:
    """By the groups of everybody who holds something."""
    limited = rules({"groups_total": {"students": {"gpus": 1}}})
    held = Held((CardShare(A),), Owner("bob"))
    people = People(groups_of={"bob": {"students"}})
    assert isinstance(limited.terms(claim("ann", "students"), scene(held), people).refusal, OverLimit)
    assert limited.terms(claim("ann"), scene(held), people).refusal is None


def test_hours_that_cannot_be_known_are_not_zero() -> None:
    """Law 10; where nobody asks for hours, nothing is missed."""
    lost = People(history=History(trouble=Text("The journal is lost.")))
    refusal = rules(hours={"students": "20h/7d"}).terms(claim("ann", "students"), scene(), lost).refusal
    assert isinstance(refusal, GpusUnknown)
    assert not may_wait(refusal)
    assert rules({"user": {"gpus": 1}}).terms(claim(), scene(), lost).refusal is None
    assert rules(hours={"students": "20h/7d"}).left("ann", frozenset({"students"}), (), lost, NOW) is None


def test_hours_that_are_left() -> None:
    """Of the person, from the journal."""
    spell = Spell("old", "ann", frozenset(), NOW - timedelta(hours=3), NOW - timedelta(hours=1), 1.0)
    left = rules({"user": {"gpu_hours": "5h/1d"}}).left("ann", frozenset(), (), People(history=History((spell,))), NOW)
    assert left is not None
    assert left.seconds == 3 * HOUR


def test_a_class_shortens_and_bars() -> None:
    """The lease ends a minute before; during the class the refusal may be waited for."""
    class_at = {"group": "ai", "gpus": 2, "timezone": "UTC"}
    later = rules(reservations=[{**class_at, "weekly": "Mon 09:30-12:00"}]).terms(claim(), scene(), People())
    assert (later.time_limit_seconds, later.refusal) == (29 * 60, None)
    assert later.notice is not None
    during = rules(reservations=[{**class_at, "weekly": "Mon 08:00-12:00"}])
    refusal = during.terms(claim(), scene(), People()).refusal
    assert isinstance(refusal, NoRoom)
    assert refusal.reason is Reason.RESERVED
    assert may_wait(refusal)
    assert during.terms(claim("eve", "ai"), scene(), People()).refusal is None
    one = rules(reservations=[{**class_at, "gpus": 1, "weekly": "Mon 08:00-12:00"}]).terms(claim(), scene(), People())
    assert len(one.barred) == 1


def test_mistakes_of_all_settings_are_told_together() -> None:
    """Each with its path."""
    with pytest.raises(ConfigError) as wrong:
        Rules.parse({"user": {"gpus": 0}}, {"a": "b"}, [{"group": "ai"}], timezone.utc, "c.GPUSpawner.")
    for path in ("c.GPUSpawner.limits.user.gpus", "c.GPUSpawner.gpu_hours.a", "c.GPUSpawner.reservations[0]"):
        assert path in str(wrong.value)
