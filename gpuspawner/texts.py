"""Words in two languages: a sentence that a person reads exists in English and in Korean.

No I/O, no environment. Everything above takes its language from `language_of` once, at the edge, and passes it down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_QVALUE = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")  # RFC 9110 section 12.4.2


@dataclass(frozen=True)
class Text:
    """The same words in English and in Korean. A language that is missing falls back to the other one."""

    en: str
    ko: str = ""

    def into(self, language: Language) -> str:
        """The words in `language`, or in the other language where it is missing."""
        return (self.ko or self.en) if language == "ko" else (self.en or self.ko)

    def __str__(self) -> str:
        return self.into("en")


def language_of(accept_language: str | None) -> Language:
    """The language to answer in, by the rules of RFC 9110 section 12.5.4.

    Only English and Korean are known; English is the answer to everything else, garbage included.
    """
    best: Language = "en"
    best_quality = 0.0
    for part in (accept_language or "").split(","):
        tag, _, parameters = part.partition(";")
        primary = tag.strip().lower().split("-")[0]
        quality = _quality(parameters)
        for language in LANGUAGES:
            if primary == language and quality > best_quality:
                best, best_quality = language, quality
    return best


def _quality(parameters: str) -> float:
    """The q value of one Accept-Language element: 1 where there is none, 0 where it cannot be read."""
    name, _, value = parameters.strip().partition("=")
    if name.strip().lower() != "q":
        return 1.0
    return float(value) if _QVALUE.fullmatch(value.strip()) else 0.0
