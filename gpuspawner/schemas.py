"""Words: how a mistake in the configuration is said, for every setting that is checked by pydantic. No I/O.

A line names the path (`profile_list[2].gpu.count`), the rule and what was given. What the settings mean is not known
here: `profiles`, `limits` and `reservations` bring their models.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from gpuspawner.units import parse_bytes, parse_duration

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[int, BeforeValidator(parse_duration)]


class Frozen(BaseModel):
    """A part of the configuration: unknown keys are mistakes, and nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def mistake(here: str, error: Mapping[str, Any], keys: Iterable[str]) -> str:
    """One of pydantic's errors as a line for the admin: path, rule, what was given. `keys` are all that exist."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part.endswith("]"))]
    where = here + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    kind, context, given = error["type"], error.get("ctx", {}), shorten(error["input"])
    match kind:
        case "extra_forbidden":
            return f"{where} is not a known key{_did_you_mean(location, keys)}"
        case "missing":
            return f"{where} is required"
        case "greater_than_equal":
            return f"{where} must be at least {context['ge']}, got {given}"
        case "greater_than":
            return f"{where} must be more than {context['gt']:g}, got {given}"
        case "value_error":
            rule = str(context.get("error", error["msg"]))
            return f"{where} {rule}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where} must be a mapping of keys to values, got {given}"
        case "string_pattern_mismatch":
            return f"{where} must match {context['pattern']}, got {given}"
        case _:
            message = error["msg"].replace("Input should be", "must be")
            return f"{where} {message[0].lower()}{message[1:]}, got {given}"


def _did_you_mean(location: Sequence[object], keys: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(location[-1]), sorted(keys), n=1) if location else []
    return f"; did you mean {near[0]!r}?" if near else ""


class _Quote(reprlib.Repr):
    """`repr` that stays small and shallow, so that neither a megabyte nor a thousand nested lists can break it."""

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print numbers of more than 4300 digits.
        return super().repr_int(x, level) if x.bit_length() < 1000 else "a number of very many digits"


_quote = _Quote()
_quote.maxstring = _quote.maxother = 60


def shorten(value: object, limit: int = 60) -> str:
    """`repr`, short enough for a sentence however large the value is."""
    text = _quote.repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
