"""Rules: how many GPU-seconds were used in a rolling window. Pure: no await, no clock, no I/O.

One second of one whole card is one GPU-second. A share counts by its part of the card's memory: 6 GiB of 24 GiB for an
hour are a quarter of a GPU-hour. What runs counts until now. A clock that was set back makes a lease end before it
began, or begin after now: such a time counts as nothing, never as less than nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import CardShare


@dataclass(frozen=True)
class Spell:
    """The time of one lease, in UTC; `ended` is None while it lasts.

    `groups` are those that the user was in when it began. `weight` is in cards: 2.0 for two whole ones, 0.25 for a
    quarter of one.
    """

    lease_id: str
    user: str
    groups: frozenset[str]
    began: datetime
    ended: datetime | None
    weight: float


def weight_of(cards: Iterable[CardShare], memory_of: Mapping[GpuUuid, int]) -> float:
    """How much of how many cards this is. `memory_of`: UUID → bytes of the card.

    A share of a card whose memory nobody knows counts as the whole card.
    """
    total = 0.0
    for card in cards:
        size = memory_of.get(card.uuid)
        total += 1.0 if card.memory_bytes is None or not size else min(1.0, card.memory_bytes / size)
    return total


def of_user(spells: Iterable[Spell], user: str) -> tuple[Spell, ...]:
    """The spells of one user."""
    return tuple(spell for spell in spells if spell.user == user)


def of_group(spells: Iterable[Spell], group: str) -> tuple[Spell, ...]:
    """The spells of everybody who was in the group when the lease began."""
    return tuple(spell for spell in spells if group in spell.groups)


def used_seconds(spells: Iterable[Spell], window_seconds: int, now: datetime) -> float:
    """GPU-seconds that fall into the last `window_seconds` before `now`. Never below zero."""
    return _used(spells, window_seconds, now, now)


def falls_to(spells: Sequence[Spell], target_seconds: float, window_seconds: int, now: datetime) -> datetime:
    """The first moment, now or later, at which no more than `target_seconds` are in the window.

    It holds if nothing runs from now on: what runs now counts as ended.
    """
    window = timedelta(seconds=window_seconds)
    leaving = (end + window for spell in spells for end in (spell.began, spell.ended or now))
    corners = sorted({now, now + window, *(moment for moment in leaving if now < moment < now + window)})

    def used(at: datetime) -> float:
        return _used(spells, window_seconds, now, at)

    # What is in the window only falls, and between two corners along a straight line.
    first = bisect_left(corners, True, hi=len(corners) - 1, key=lambda at: used(at) <= target_seconds)
    if first == 0:
        return now
    before, after = corners[first - 1], corners[first]
    more, less = used(before), used(after)
    part = max(0.0, more - target_seconds) / (more - less) if more > less else 1.0
    # Rounded up, so that the moment itself keeps what it promises.
    return min(after, _whole_second(before + (after - before) * min(1.0, part)))


def _used(spells: Iterable[Spell], window_seconds: int, now: datetime, at: datetime) -> float:
    """What is in the window that ends `at`, of the use until `now`."""
    since = at - timedelta(seconds=window_seconds)
    total = 0.0
    for spell in spells:
        ended = now if spell.ended is None else min(spell.ended, now)
        total += spell.weight * max(0.0, (min(ended, at) - max(spell.began, since)).total_seconds())
    return total


def _whole_second(moment: datetime) -> datetime:
    return moment if moment.microsecond == 0 else moment.replace(microsecond=0) + timedelta(seconds=1)
