"""Rules: on which terms somebody may have cards now: limits and class reservations together. Pure: no await, no I/O.

`ledger` asks for each that wants cards, newcomer or waiting, and again for those that one decision serves together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone, tzinfo

from gpuspawner import limits as limiting
from gpuspawner.errors import ConfigError, GpusUnknown, OverLimit, Reason, Refused
from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import Held, Owner
from gpuspawner.limits import Asker, Left, Limits, Use
from gpuspawner.profiles import GpuRequest
from gpuspawner.queueing import GOING, Scene
from gpuspawner.reservations import Calendar, Situation, bound
from gpuspawner.texts import Text
from gpuspawner.usage import Spell, of_group, of_user


@dataclass(frozen=True)
class Claim:
    """Somebody asks for cards. `time_limit_seconds`: how long the lease would last; None: without end.

    `groups` are the person's at the moment of asking.
    """

    lease_id: str
    request: GpuRequest | None
    owner: Owner | None = None
    time_limit_seconds: int | None = None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Terms:
    """What applies to one claim. With a `refusal` it gets nothing now; LIMIT is not waited for, RESERVED may be.

    `barred` are cards that are kept from it, `time_limit_seconds` is what is left of its time, `notice` says why it is
    shorter than the profile's.
    """

    barred: frozenset[GpuUuid] = frozenset()
    time_limit_seconds: int | None = None
    refusal: Refused | None = None
    notice: Text | None = None


@dataclass(frozen=True)
class History:
    """The use of the past that limits count. `trouble` says why it cannot be known; then `spells` says nothing."""

    spells: tuple[Spell, ...] = ()
    trouble: Text | None = None


@dataclass(frozen=True)
class People:
    """What is known of others: `groups_of` maps users to groups, `waiting` are the claims in the line, `history`."""

    groups_of: Mapping[str, Collection[str]] = field(default_factory=dict)
    waiting: Sequence[Claim] = ()
    history: History = History()


@dataclass(frozen=True)
class Rules:
    """The rules of this house; `zone` is where its people read the clock."""

    limits: Limits = field(default_factory=Limits)
    calendar: Calendar = field(default_factory=Calendar)
    zone: tzinfo = timezone.utc

    @classmethod
    def parse(cls, limits: object, gpu_hours: object, reservations: object, zone: tzinfo, prefix: str = "") -> Rules:
        """Read the settings of these names.

        Raises:
            ConfigError: with every mistake, its path, what is accepted and what was given.
        """
        mistakes, found = [], cls(zone=zone)
        try:
            read = Limits.parse(limits, gpu_hours, f"{prefix}limits", f"{prefix}gpu_hours")
            found = replace(found, limits=read)
        except ConfigError as error:
            mistakes.append(str(error))
        try:
            found = replace(found, calendar=Calendar.parse(reservations, f"{prefix}reservations"))
        except ConfigError as error:
            mistakes.append(str(error))
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return found

    @property
    def trivial(self) -> bool:
        """Whether everybody may have everything."""
        return not self.calendar.reservations and self.limits == Limits()

    def terms(self, claim: Claim, scene: Scene, people: People, *, waits: bool = False) -> Terms:
        """What applies to `claim` now; `waits`: it would join the line."""
        if self.trivial or claim.request is None:
            return Terms(time_limit_seconds=claim.time_limit_seconds)
        if refusal := self._over_limit(claim, scene, people, waits=waits):
            return Terms(time_limit_seconds=claim.time_limit_seconds, refusal=refusal)
        situation = Situation(scene.inventory, scene.held, scene.policy, scene.now, people.groups_of)
        found = bound(self.calendar, claim.groups, claim.request, situation, claim.time_limit_seconds)
        seconds = claim.time_limit_seconds
        if found.window is not None and found.ends is not None:
            # The class finds its cards free, and a server takes a moment to go.
            seconds = max(1, int((found.ends - scene.now - GOING).total_seconds()))
        return Terms(found.avoid, seconds, found.refusal, found.notice)

    def left(
        self, user: str, groups: frozenset[str], held: Sequence[Held], people: People, now: datetime
    ) -> Left | None:
        """What is left of somebody's GPU-hours, for the form; None where they have no limit or nothing can be known."""
        if people.history.trouble is not None:
            return None
        return limiting.left(self.limits, self._asker(user, groups, held, people), now)

    def _over_limit(self, claim: Claim, scene: Scene, people: People, *, waits: bool) -> Refused | None:
        if self.limits == Limits():
            return None
        if self.limits.longest_window_seconds and people.history.trouble is not None:
            return GpusUnknown(people.history.trouble)
        user = claim.owner.user if claim.owner else ""
        others = [each for each in people.waiting if each.lease_id != claim.lease_id]
        asker = self._asker(user, claim.groups, scene.held, People(people.groups_of, others, people.history))
        try:
            limiting.check(self.limits, asker, claim.request, scene.now, waits=waits, zone=self.zone)
        except OverLimit as refusal:
            return refusal
        return None

    def _asker(self, user: str, groups: frozenset[str], held: Sequence[Held], people: People) -> Asker:
        spells = people.history.spells
        own = Use.of(held, {user}, waiting=_waiting(people, {user}), spells=of_user(spells, user))
        together = {}
        for group in self.limits.totals_for(groups):
            members = {name for name, theirs in people.groups_of.items() if group in theirs} | {user}
            use = Use.of(held, members, waiting=_waiting(people, members), spells=of_group(spells, group))
            together[group] = use
        return Asker(groups, own, together)


def _waiting(people: People, users: Collection[str]) -> int:
    return sum(claim.owner is not None and claim.owner.user in users for claim in people.waiting)


def may_wait(refusal: Refused) -> bool:
    """Whether what is refused now may be had later by waiting for it."""
    return refusal.reason in (Reason.BUSY, Reason.RESERVED)
