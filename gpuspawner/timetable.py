"""Nouns: when which cards are reserved for a class. Pure: no await, no clock; zones come from the time zone database.

What an admin writes is wall-clock time in a time zone; what comes out (`Window`) is in UTC. Days and weeks are
dateutil's, zones are zoneinfo's, and two moments need a rule, since a clock that is changed for summer skips or repeats
an hour:

- A time that is skipped is taken later by what is skipped: 02:30 becomes 03:30. A window of which nothing is left by
  then does not take place that day.
- Of a time that happens twice the first one is meant, for the beginning and for the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.rrule import WEEKLY, rrule
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from gpuspawner.errors import ConfigError
from gpuspawner.gpus import Gpu
from gpuspawner.schemas import Frozen, mistake, shorten

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKLY = re.compile(r"(?P<days>[a-z][a-z ,-]*?)\s+(?P<begin>\d\d?:\d\d)\s*-\s*(?P<end>\d\d?:\d\d)", re.IGNORECASE)
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)|(24):(00)")
# Beyond these years a moment may have no counterpart in another zone.
_LOCAL = re.compile(r"(2\d{3}-\d\d-\d\d)(?:[ T](\d\d:\d\d))?")
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Weekly:
    """Days of the week (0 is Monday), beginning and end on the wall clock, as time since midnight.

    Where the end is not after the beginning it is that of the next day.
    """

    days: tuple[int, ...]
    begin: timedelta
    end: timedelta


@dataclass(frozen=True)
class Local:
    """A wall-clock moment, or a day (`whole_day`: `moment` is its first)."""

    moment: datetime
    whole_day: bool = False


def _weekly(value: object) -> Weekly:
    rule = "must be days and hours such as 'Mon 09:00-12:00', 'Mon,Wed 09:00-12:00' or 'Mon-Fri 22:00-02:00'"
    match = _WEEKLY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{rule}, got {shorten(value)}")
    begin, end, days = _clock(match["begin"]), _clock(match["end"]), _days(match["days"].lower())
    if begin is None or end is None or days is None or begin >= _DAY:
        raise ValueError(f"{rule}, got {shorten(value)}")
    if begin == end:
        raise ValueError(f"must end at another time than it begins (a whole day is 00:00-24:00), got {shorten(value)}")
    return Weekly(days, begin, end if end > begin else end + _DAY)


def _clock(text: str) -> timedelta | None:
    match = _CLOCK.fullmatch(text)
    return timedelta(hours=int(match[1] or match[3]), minutes=int(match[2] or match[4])) if match else None


def _days(text: str) -> tuple[int, ...] | None:
    """Weekdays from "mon", "mon,wed" and "mon-fri", in any mixture; None where one cannot be read."""
    found: set[int] = set()
    for part in text.split(","):
        names = [name.strip() for name in part.split("-")]
        if len(names) > 2 or not all(name[:3] in DAYS and _FULL[name[:3]].startswith(name) for name in names):
            return None
        first, last = DAYS.index(names[0][:3]), DAYS.index(names[-1][:3])
        found |= {(first + step) % 7 for step in range((last - first) % 7 + 1)}
    return tuple(sorted(found))


_FULL = dict(zip(DAYS, ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"), strict=True))


def _local(value: object) -> Local:
    match = _LOCAL.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        try:
            return Local(datetime.fromisoformat(f"{match[1]}T{match[2] or '00:00'}"), match[2] is None)
        except ValueError:
            pass
    raise ValueError(f"must be a time such as '2026-12-01 09:00', or a day such as '2026-12-01', got {shorten(value)}")


def _zone(value: object) -> ZoneInfo:
    if isinstance(value, str):
        try:
            return ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise ValueError(f"must be the name of a time zone such as 'Asia/Seoul', got {shorten(value)}")


class Reservation(Frozen):
    """One entry of `reservations`: `gpus` cards for the members of `group`, every week, or once (`from`, `until`).

    With `weekly`, `from` and `until` are the bounds of the term. A day as `until` belongs to it. `gpu_model` narrows it
    to cards whose name holds these words. `before` says what becomes of a lease that would run into it.
    """

    group: str = Field(min_length=1)
    gpus: int = Field(ge=1, strict=True)
    zone: Annotated[ZoneInfo, BeforeValidator(_zone)] = Field(alias="timezone")
    weekly: Annotated[Weekly, BeforeValidator(_weekly)] | None = None
    begins: Annotated[Local, BeforeValidator(_local)] | None = Field(default=None, alias="from")
    ends: Annotated[Local, BeforeValidator(_local)] | None = Field(default=None, alias="until")
    gpu_model: str | None = Field(default=None, pattern=r"\S")
    before: Literal["shorten", "refuse"] = "shorten"

    @model_validator(mode="after")
    def _has_a_time(self) -> Reservation:
        if self.weekly is None and (self.begins is None or self.ends is None):
            raise ValueError("must have 'weekly' (every week), or both 'from' and 'until' (once)")
        if self.begins and self.ends and self.first >= self.last:
            raise ValueError("must have an 'until' after its 'from'")
        return self

    @property
    def first(self) -> datetime:
        """The first moment at which it may begin, in UTC."""
        return _EVER if self.begins is None else self._utc(self.begins.moment)

    @property
    def last(self) -> datetime:
        """The moment at which all of it is over, in UTC."""
        if self.ends is None:
            return _NEVER
        return self._utc(self.ends.moment + (_DAY if self.ends.whole_day else timedelta()))

    def _utc(self, wall: datetime) -> datetime:
        # By PEP 495 fold=0 means: the first of two, and the offset before the gap, which moves what is skipped forward.
        return wall.replace(tzinfo=self.zone, fold=0).astimezone(timezone.utc)

    def windows(self, start: datetime, end: datetime) -> list[Window]:
        """Its windows that touch the time from `start` to `end`, both aware, in order."""
        if self.weekly is None:
            spans = [(self.first, self.last)]
        else:
            # A window may have begun on the day before yesterday's evening, as seen from another zone.
            since, until = max(start, self.first), min(end, self.last)
            spans = self._weeks(self.weekly, since.date() - 3 * _DAY, until.date() + 2 * _DAY)
            spans = [(begin, min(over, self.last)) for begin, over in spans if self.first <= begin]
        return [self._window(begin, over) for begin, over in spans if begin < over and begin < end and over > start]

    def _weeks(self, weekly: Weekly, first: date, last: date) -> list[tuple[datetime, datetime]]:
        if first > last:
            return []
        first_day, last_day = (datetime.combine(day, time()) for day in (first, last))
        days = rrule(WEEKLY, byweekday=weekly.days, dtstart=first_day, until=last_day)
        return [(self._utc(day + weekly.begin), self._utc(day + weekly.end)) for day in days]

    def _window(self, begin: datetime, over: datetime) -> Window:
        return Window(self.group, self.gpus, self.gpu_model, begin, over, self.zone, self.before)


@dataclass(frozen=True)
class Window:
    """`count` cards for the members of `group` from `start` until just before `end`, both in UTC.

    `zone` is where the class is: sentences say its time. `before` is "shorten" or "refuse".
    """

    group: str
    count: int
    model: str | None
    start: datetime
    end: datetime
    zone: ZoneInfo
    before: Literal["shorten", "refuse"] = "shorten"

    def overlaps(self, other: Window) -> bool:
        """Whether there is a moment in both."""
        return self.start < other.end and other.start < self.end

    def takes(self, gpu: Gpu) -> bool:
        """Whether the card may serve the class: it is well and of the model."""
        return gpu.fault is None and gpu.matches(self.model)


_KEYS = tuple(field.alias or name for name, field in Reservation.model_fields.items())
_EVER = datetime(2000, 1, 1, tzinfo=timezone.utc)
_NEVER = datetime(3001, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Calendar:
    """All reservations, in the order of the configuration."""

    reservations: tuple[Reservation, ...] = ()

    @classmethod
    def parse(cls, raw: object, path: str = "reservations") -> Calendar:
        """Read a configuration.

        Raises:
            ConfigError: one line for each mistake, with its path, what is accepted and what was given.
        """
        if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
            raise ConfigError(f"{path} must be a list of reservations, got {shorten(raw)}")
        mistakes: list[str] = []
        found: list[Reservation] = []
        for index, entry in enumerate(raw):
            try:
                found.append(Reservation.model_validate(entry))
            except ValidationError as error:
                mistakes += [mistake(f"{path}[{index}]", item, _KEYS) for item in error.errors()]
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return cls(tuple(found))

    def windows(self, start: datetime, end: datetime) -> list[Window]:
        """The windows that touch the time from `start` to `end`, both aware, by their beginnings."""
        found: list[Window] = []
        for reservation in self.reservations:
            found += reservation.windows(start, end)
        return sorted(found, key=lambda window: window.start)

    def active(self, now: datetime) -> list[Window]:
        """The windows of this moment: the beginning belongs to one, the end does not."""
        return [window for window in self.windows(now, now + timedelta.resolution) if window.start <= now < window.end]
