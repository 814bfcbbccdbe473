"""Bytes, durations, Docker's times: how they are read from a configuration and how a person reads them.

No I/O. A bare number with a unit in its name (`memory_bytes`, `time_limit_seconds`) is what everything else stores.
"""

from __future__ import annotations

import re
from datetime import datetime

from gpuspawner.texts import Text

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

# The engine's API counts bytes in 64 bits with a sign; moments past the year 9999 cannot be written down.
_MOST_BYTES = 2**63 - 1
_LONGEST_SECONDS = 100 * 365 * 86400

_BYTE_UNITS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")

# strftime's names follow the locale of the process.
_DAYS = tuple(zip(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"), "월화수목금토일", strict=True))
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,6})?\d*(Z|[+-]\d\d:\d\d)")


def parse_bytes(value: object) -> int:
    """A number of bytes from 8589934592, "8G", "8GiB" or "512M" (powers of 1024, as JupyterHub and Docker count).

    Raises:
        ValueError: with a sentence that names the accepted forms.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_BYTES:
        return value
    if isinstance(value, str) and (match := _BYTES.fullmatch(value.strip())):
        number = float(match[1]) * _BYTE_UNITS[match[2].lower()]
        if 1 <= number < _MOST_BYTES:
            return int(number)
    raise ValueError(f"must be a size such as '8G' or '512M' (powers of 1024), got {value!r}")


def parse_duration(value: object) -> int:
    """A number of whole seconds from 7200, "2h", "90m", "1d12h" or "1w".

    Raises:
        ValueError: with a sentence that names the accepted forms.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LONGEST_SECONDS:
        return value
    if isinstance(value, str) and _DURATION.fullmatch(text := value.strip().lower().replace(" ", "")):
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
        if 1 <= seconds <= _LONGEST_SECONDS:
            return int(seconds)
    raise ValueError(f"must be a time such as '2h', '90m' or '1d12h', got {value!r}")


def format_bytes(number: int) -> str:
    """ "8 GiB", "23.5 GiB", "512 MiB": at most one decimal, the largest unit that keeps the number at 1 or more."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{number} B"


def format_duration(seconds: int) -> Text:
    """ "2 h 30 min" and "2시간 30분": the two largest units that are not zero."""
    units = ((86400, "d", "일"), (3600, "h", "시간"), (60, "min", "분"), (1, "s", "초"))
    english, korean = [], []
    rest = max(0, seconds)
    for size, en, ko in units:
        amount, rest = divmod(rest, size)
        if amount:
            english.append(f"{amount} {en}")
            korean.append(f"{amount}{ko}")
    return Text(" ".join(english[:2]) or "0 s", " ".join(korean[:2]) or "0초")


def moment_of(text: str) -> float:
    """Docker's time (up to nine decimals, any zone) in seconds since 1970; 0 where it is none, or means "never"."""
    match = _MOMENT.fullmatch(text)
    if not match or text.startswith("0001"):
        return 0.0
    # Before Python 3.11 fromisoformat reads three or six decimals only.
    fraction = (match[2] or ".0").ljust(7, "0")
    return datetime.fromisoformat(match[1] + fraction + match[3].replace("Z", "+00:00")).timestamp()


def format_moment(moment: datetime) -> Text:
    """ "Mon 7 Dec 09:00" and "12월 7일(월) 09:00", on the clock of the moment's own time zone."""
    english, korean = _DAYS[moment.weekday()]
    clock = f"{moment.hour:02}:{moment.minute:02}"
    return Text(
        f"{english} {moment.day} {_MONTHS[moment.month - 1]} {clock}",
        f"{moment.month}월 {moment.day}일({korean}) {clock}",
    )


def format_clock(at: datetime, now: datetime) -> Text:
    """ "15:40", and with the day where that is another one; on the clock of the time zone of `now`."""
    local = at.astimezone(now.tzinfo)
    if local.date() != now.date():
        return format_moment(local)
    clock = f"{local.hour:02}:{local.minute:02}"
    return Text(clock, clock)
