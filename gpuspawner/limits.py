"""Rules: how much one person, or one group, may have of the cards. Pure: no await, no clock, no environment, no I/O.

1. `gpus` counts whole cards at once, `gpu_memory` what is held in shares at once, `waiting` the requests in line,
   `gpu_hours` the use in a rolling window ("20h/7d"; `usage` says how shares count). A key that is not given, or is
   None, limits nothing.
2. `user` is for everybody. An entry of `groups` replaces it, key by key, for each member's own use.
3. Of several groups that have a key the most generous one counts: the largest number, or the most hours left now.
4. An entry of `groups_total` is for all members together. Every one of them holds, whatever the person's own limits.
5. A request without a GPU is never over a limit.
6. Hours are asked about when a server starts: `LEAST_SECONDS` of GPU time must be left. A server that runs is not cut
   off by them; `Left.lasts` says how far they reach, for whoever bounds the lease.

Who holds what is told by the caller (`Use`), from the labels, the line and the journal.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError

from gpuspawner.errors import ConfigError, OverLimit
from gpuspawner.leases import Held
from gpuspawner.placement import wording
from gpuspawner.profiles import GpuRequest
from gpuspawner.schemas import Bytes, Frozen, mistake, shorten
from gpuspawner.texts import Text
from gpuspawner.units import format_bytes, format_duration, format_moment, parse_duration
from gpuspawner.usage import Spell, falls_to, used_seconds

LEAST_SECONDS = 600


@dataclass(frozen=True)
class Allowance:
    """`seconds` of GPU time in each rolling window of `window_seconds`."""

    seconds: int
    window_seconds: int

    @property
    def least_seconds(self) -> int:
        """How much must be left for a start."""
        return min(LEAST_SECONDS, self.seconds)


def _allowance(value: object) -> Allowance:
    if isinstance(value, Allowance):
        return value
    if isinstance(value, str) and value.count("/") == 1:
        amount, window = value.split("/")
        try:
            return Allowance(parse_duration(amount), parse_duration(window))
        except ValueError:
            pass
    raise ValueError(f"must be GPU time and a window such as '20h/7d', got {shorten(value)}")


class Caps(Frozen):
    """The limits of one person, or of one group together. None: no limit."""

    gpus: int | None = Field(default=None, ge=1, strict=True)
    gpu_memory_bytes: Bytes | None = Field(default=None, alias="gpu_memory")
    waiting: int | None = Field(default=None, ge=0, strict=True)
    gpu_hours: Annotated[Allowance, BeforeValidator(_allowance)] | None = None


_KEYS = tuple(field.alias or name for name, field in Caps.model_fields.items())
_PARTS = ("user", "groups", "groups_total")


@dataclass(frozen=True)
class Limits:
    """All limits of the configuration: for everybody, by group for each member, by group for all members together."""

    user: Caps = field(default_factory=Caps)
    groups: Mapping[str, Caps] = field(default_factory=dict)
    groups_total: Mapping[str, Caps] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, raw: object, gpu_hours: object = None, path: str = "limits", hours_path: str = "gpu_hours"
    ) -> Limits:
        """Read a configuration; `gpu_hours` is the short form, group → "20h/7d" for each member.

        Raises:
            ConfigError: one line for each mistake, with its path, what is accepted and what was given.
        """
        mistakes: list[str] = []
        parts = _mapping(raw, path, mistakes)
        mistakes += [f"{path}.{key} is not a known key: use {', '.join(_PARTS)}" for key in parts if key not in _PARTS]
        user = _caps(parts.get("user") or {}, f"{path}.user", mistakes)
        groups = dict(_mapping(parts.get("groups"), f"{path}.groups", mistakes))
        for group, hours in _mapping(gpu_hours, hours_path, mistakes).items():
            entry = groups.get(group, {})
            if isinstance(entry, Mapping) and "gpu_hours" in entry:
                mistakes.append(f"{hours_path}.{group} is given twice: {path}.groups.{group}.gpu_hours is there, too")
            elif _caps({"gpu_hours": hours}, f"{hours_path}.{group}", mistakes, bare=True) and isinstance(
                entry, Mapping
            ):
                groups[group] = {**entry, "gpu_hours": hours}
        each = {group: _caps(entry, f"{path}.groups.{group}", mistakes) for group, entry in groups.items()}
        totals = _mapping(parts.get("groups_total"), f"{path}.groups_total", mistakes)
        together = {group: _caps(entry, f"{path}.groups_total.{group}", mistakes) for group, entry in totals.items()}
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return cls(user or Caps(), _read(each), _read(together))

    @property
    def longest_window_seconds(self) -> int:
        """How far back the use matters; 0 where hours are not limited."""
        every = (self.user, *self.groups.values(), *self.groups_total.values())
        return max((caps.gpu_hours.window_seconds for caps in every if caps.gpu_hours), default=0)

    def rules_for(self, groups: Collection[str]) -> tuple[Caps, ...]:
        """The entries that a member of `groups` may choose from, those of the groups before everybody's."""
        return (*(self.groups[group] for group in sorted(groups) if group in self.groups), self.user)

    def totals_for(self, groups: Collection[str]) -> dict[str, Caps]:
        """Group → what all of its members may have together, for the groups of this person."""
        return {group: self.groups_total[group] for group in sorted(groups) if group in self.groups_total}


@dataclass(frozen=True)
class Use:
    """What one person, or a whole group, has now, and the spells that may count toward the hours."""

    gpus: int = 0
    share_bytes: int = 0
    waiting: int = 0
    spells: tuple[Spell, ...] = ()

    @classmethod
    def of(cls, held: Iterable[Held], users: Container[str], *, waiting: int = 0, spells: Sequence[Spell] = ()) -> Use:
        """The sum of what these users hold; what nobody can be named for is nobody's."""
        cards = [card for one in held if one.owner is not None and one.owner.user in users for card in one.cards]
        shares = sum(card.memory_bytes for card in cards if card.memory_bytes is not None)
        return cls(sum(card.whole for card in cards), shares, waiting, tuple(spells))


@dataclass(frozen=True)
class Asker:
    """Who asks, the groups at this moment, and what the person and each of these groups has now.

    `groups_use` needs an entry only for the groups of `Limits.groups_total`; a missing one counts as nothing.
    """

    groups: frozenset[str]
    use: Use = Use()
    groups_use: Mapping[str, Use] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """What is left of the GPU-hours of a person, or of a group (`group`) that uses them up first.

    `back` is when more comes: the moment from which a server may start again where too little is left, else the
    moment from which the oldest use that counts leaves the window; None where nothing was used. In UTC, and only if
    nothing runs until then.
    """

    seconds: float
    allowance: Allowance
    back: datetime | None = None
    group: str | None = None

    @property
    def enough(self) -> bool:
        """Whether a server may start."""
        # A thousandth of a second is what sums of fractions may be wrong by.
        return self.seconds + 0.001 >= self.allowance.least_seconds

    def lasts(self, weight: float, now: datetime) -> datetime | None:
        """When it is used up at the latest that is certain, by `weight` cards from now on; None for weight 0.

        `weight` is of everything that runs (`usage.weight_of`). Hours that come back meanwhile are not counted.
        """
        return now + timedelta(seconds=max(0.0, self.seconds) / weight) if weight > 0 else None


def left(limits: Limits, asker: Asker, now: datetime) -> Left | None:
    """What the form says about GPU-hours: of the person's own and the groups' the one with least left; None: no limit.

    `now` is aware.
    """
    found = []
    if _given(limits, asker, "gpu_hours"):
        own = [_left(allowance, asker.use, now) for allowance in _given(limits, asker, "gpu_hours")]
        found.append(max(own, key=lambda one: one.seconds))
    for group, caps in limits.totals_for(asker.groups).items():
        if caps.gpu_hours is not None:
            found.append(_left(caps.gpu_hours, asker.groups_use.get(group, Use()), now, group))
    return min(found, key=lambda one: (one.enough, one.seconds), default=None)


def check(
    limits: Limits,
    asker: Asker,
    request: GpuRequest | None,
    now: datetime,
    *,
    waits: bool = False,
    zone: tzinfo = timezone.utc,
) -> None:
    """Whether this person may have `request` now, or (`waits`) may join the line for it.

    Ask again when somebody who waited is served: the same person may have got cards meanwhile. `zone` is for the
    moments in sentences.

    Raises:
        OverLimit: with a sentence for the person who asked.
    """
    if request is None:
        return
    own = _Counts(*(max(_given(limits, asker, key), default=None) for key in _Counts._fields))
    _check_counts(own, asker.use, request, waits, None)
    for group, caps in limits.totals_for(asker.groups).items():
        together = _Counts(caps.gpus, caps.gpu_memory_bytes, caps.waiting)
        _check_counts(together, asker.groups_use.get(group, Use()), request, waits, group)
    hours = left(limits, asker, now)
    if hours is not None and not hours.enough:
        raise _hours_gone(request, hours, now, zone)


class _Counts(NamedTuple):
    gpus: int | None
    gpu_memory_bytes: int | None
    waiting: int | None


def _check_counts(caps: _Counts, use: Use, request: GpuRequest, waits: bool, group: str | None) -> None:
    count, size = request.count, request.memory_bytes
    if caps.gpus is not None and count is not None and use.gpus + count > caps.gpus:
        cap = Text(_cards(caps.gpus), f"GPU {caps.gpus}장")
        raise _too_much(request, cap, Text(str(use.gpus), f"{use.gpus}장"), group, never=count > caps.gpus)
    most = caps.gpu_memory_bytes
    if most is not None and size is not None and use.share_bytes + size > most:
        words, now = format_bytes(most), format_bytes(use.share_bytes)
        cap = Text(f"{words} in shares of GPUs", f"GPU 메모리 {words}")
        raise _too_much(request, cap, Text(now, now), group, never=size > most)
    if waits and caps.waiting is not None and use.waiting + 1 > caps.waiting:
        raise _waits_already(request, caps.waiting, group)


def _given(limits: Limits, asker: Asker, key: str) -> list[Any]:
    """The values of this key that apply: those of the person's groups, else everybody's. Empty: no limit."""
    rules = limits.rules_for(asker.groups)
    values = [getattr(caps, key) for caps in rules[:-1] if key in caps.model_fields_set] or [getattr(rules[-1], key)]
    return [] if None in values else values


def _left(allowance: Allowance, use: Use, now: datetime, group: str | None = None) -> Left:
    window = allowance.window_seconds
    seconds = allowance.seconds - used_seconds(use.spells, window, now)
    found = Left(max(0.0, seconds), allowance, group=group)
    if not found.enough:
        back: datetime | None = falls_to(use.spells, allowance.seconds - allowance.least_seconds, window, now)
    else:
        since = now - timedelta(seconds=window)
        counted = [max(s.began, since) for s in use.spells if s.weight and s.began < now and (s.ended or now) > since]
        back = min(counted) + timedelta(seconds=window) if counted else None
    return Left(found.seconds, allowance, back, group)


def _cards(count: int) -> str:
    return "one whole GPU" if count == 1 else f"{count} whole GPUs"


def _too_much(request: GpuRequest, cap: Text, now: Text, group: str | None, *, never: bool) -> OverLimit:
    asked = wording(request)
    who = _who(group)
    hold = Text(f"{who.en} may hold {cap.en} at once", f"{who.ko} 동시에 {cap.ko}까지 사용할 수 있습니다")
    if never:
        rest = Text("Choose a smaller profile, or ask the admin.", "더 작은 프로필을 선택하거나 관리자에게 문의하세요.")
        why = Text(f"{hold.en}.", f"{hold.ko}.")
    elif group is None:
        rest = Text(
            "Stop a server that you no longer need, or choose another profile.",
            "더 이상 필요 없는 서버를 중지하거나 다른 프로필을 선택하세요.",
        )
        why = Text(f"{hold.en}, and hold {now.en} now.", f"{hold.ko}. 현재 {now.ko} 사용 중입니다.")
    else:
        rest = Text(
            "Choose another profile, or try again when somebody of the group has stopped a server.",
            "다른 프로필을 선택하거나, 그룹의 다른 사용자가 반납한 뒤 다시 시도하세요.",
        )
        why = Text(f"{hold.en}, and hold {now.en} now.", f"{hold.ko}. 현재 {now.ko} 사용 중입니다.")
    return OverLimit(Text(f"You asked for {asked.en}, but {why.en} {rest.en}", f"{asked.ko}: {why.ko} {rest.ko}"))


def _waits_already(request: GpuRequest, most: int, group: str | None) -> OverLimit:
    asked = wording(request)
    who = _who(group)
    if most == 0:
        barred = "이 계정은" if group is None else f"{group!r} 그룹은"
        why = Text(f"{who.en} may not wait in line", f"{barred} 대기열을 사용할 수 없습니다")
        advice = Text("Choose a profile that is free.", "사용 가능한 다른 프로필을 선택하세요.")
    else:
        many = "one request" if most == 1 else f"{most} requests"
        why = Text(
            f"{who.en} may have {many} in line, and no more", f"{who.ko} 대기열에 {most}건까지만 등록할 수 있습니다"
        )
        advice = Text(
            "Stop the server that is waiting, or choose a profile that is free.",
            "대기 중인 서버를 취소하거나 사용 가능한 다른 프로필을 선택하세요.",
        )
        if group is not None:
            advice = Text(
                "Choose a profile that is free, or try again later.",
                "사용 가능한 다른 프로필을 선택하거나 나중에 다시 시도하세요.",
            )
    return OverLimit(Text(f"You asked for {asked.en}, but {why.en}. {advice.en}", f"{asked.ko}: {why.ko}. {advice.ko}"))


def _hours_gone(request: GpuRequest, hours: Left, now: datetime, zone: tzinfo) -> OverLimit:
    asked, group = wording(request), hours.group
    amount = format_duration(hours.allowance.seconds)
    window = format_duration(hours.allowance.window_seconds)
    rest = format_duration(int(hours.seconds))
    who = _who(group)
    # No clock on a wall shows seconds: up to the next minute, lest somebody comes too early.
    back = (hours.back or now) + timedelta(seconds=59)
    wait, moment = format_duration(int((back - now).total_seconds())), format_moment(back.astimezone(zone))
    return OverLimit(
        Text(
            f"You asked for {asked.en}, but {who.en} may use {amount.en} of GPU time in {window.en}, and {rest.en} of "
            f"it is left. Time comes back in {wait.en} ({moment.en}) if no GPU is used until then. "
            "Choose a profile without a GPU meanwhile.",
            f"{asked.ko}: {who.ko} {window.ko} 동안 GPU를 {amount.ko}까지 사용할 수 있으며, {rest.ko} 남았습니다. "
            f"그때까지 GPU를 사용하지 않으면 {wait.ko} 뒤({moment.ko})에 다시 시작할 수 있습니다. "
            "그동안 GPU가 없는 프로필을 선택하세요.",
        )
    )


def _who(group: str | None) -> Text:
    return Text("you", "1인당") if group is None else Text(f"all of {group!r} together", f"{group!r} 그룹 전체가")


def _mapping(raw: object, path: str, mistakes: list[str]) -> Mapping[Any, Any]:
    if raw is None:
        return {}
    if isinstance(raw, Mapping):
        return raw
    mistakes.append(f"{path} must be a mapping of keys to values, got {shorten(raw)}")
    return {}


def _caps(raw: object, path: str, mistakes: list[str], *, bare: bool = False) -> Caps | None:
    """The limits of one entry; None after a mistake. `bare`: the path is the value's own, not that of an entry."""
    try:
        return Caps.model_validate(raw)
    except ValidationError as error:
        for item in error.errors():
            mistakes.append(mistake(path, {**item, "loc": ()} if bare else item, _KEYS))
        return None


def _read(entries: Mapping[str, Caps | None]) -> dict[str, Caps]:
    return {group: caps for group, caps in entries.items() if caps is not None}
