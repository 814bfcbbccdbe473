"""Reads a Dockerfile as far as the shelf needs it: the images it names, its arguments, whether it needs BuildKit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpuspawner.errors import RecipeError
from gpuspawner.recipes.names import PREFIX

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?([-+])([^}]*))?\})")
_HEREDOC = re.compile(r"<<-?([\"']?)(\w+)\1")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)")
_ARGUMENT = re.compile(r"(\w+)(?:=(\"[^\"]*\"|'[^']*'|\S*))?")
_BORROWED = re.compile(r"--(?:mount=\S*?)?from=([^\s,]+)")
_ON_THE_SHELF = re.compile(re.escape(PREFIX) + r"([^:@/]+)(?::latest)?")


@dataclass(frozen=True)
class Source:
    """An image that a Dockerfile names in a `FROM` or `COPY --from` line, its variables filled in."""

    reference: str
    line: int

    @property
    def recipe(self) -> str | None:
        """The folder that this image is built from, or None for an image from elsewhere."""
        match = _ON_THE_SHELF.fullmatch(self.reference)
        return match[1] if match else None


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile, continuation lines joined."""

    line: int
    word: str
    rest: str

    @property
    def heredocs(self) -> tuple[str, ...]:
        takes_them = self.word in ("RUN", "COPY", "ADD")
        return tuple(match[2] for match in _HEREDOC.finditer(self.rest)) if takes_them else ()


def needs_buildkit(step: Step) -> bool:
    return bool(step.heredocs) or (step.word == "RUN" and step.rest.startswith("--"))


def instructions(text: str) -> list[Step]:
    lines = text.removeprefix("\ufeff").splitlines()
    escape, steps, at = "\\", [], 0
    while at < len(lines) and (directive := _DIRECTIVE.fullmatch(lines[at].strip())):
        escape = directive[2] if directive[1].lower() == "escape" else escape
        at += 1
    while at < len(lines):
        first, joined, goes_on = at + 1, "", True
        while goes_on and at < len(lines):
            line = lines[at].strip()
            at += 1
            # A comment or an empty line within an instruction does not end it.
            if line and not line.startswith("#"):
                goes_on = line.endswith(escape)
                joined += line.removesuffix(escape) + " "
            elif not joined:
                first = at + 1
        word, _, rest = joined.strip().partition(" ")
        if not word:
            continue
        step = Step(first, word.upper(), rest.strip())
        steps.append(step)
        for end in step.heredocs:
            while at < len(lines) and lines[at].lstrip("\t") != end:
                at += 1
            at += 1
    return steps


def lineage(
    steps: Sequence[Step], given: Mapping[str, str], path: str
) -> tuple[tuple[Source, ...], Source, dict[str, str | None]]:
    """Every image that the steps name, the one under the last stage, and the declared arguments with their defaults."""
    values: dict[str, str] = {}
    declared: dict[str, str | None] = {}
    stages: dict[str, Source] = {}
    sources: list[Source] = []
    parent: Source | None = None
    stage = 0
    for step in steps:
        if step.word == "ARG":
            for argument, default in arguments_in(step.rest):
                declared[argument] = declared.get(argument) if default is None else default
                value = given.get(argument, default)
                if parent is None and value is not None:
                    values[argument] = _expand(value, values)
        elif step.word == "FROM":
            words = [word for word in step.rest.split() if not word.startswith("--")]
            reference = _expand(words[0], values) if words else ""
            if not reference:
                raise RecipeError(
                    f"{path}:{step.line}: FROM {step.rest} names no image: give its ARG a default before this line."
                )
            parent = stages.get(reference.lower())
            if parent is None:
                parent = Source(reference, step.line)
                sources.append(parent)
            stages[str(stage)] = parent
            stage += 1
            if len(words) == 3 and words[1].upper() == "AS":
                stages[words[2].lower()] = parent
        for borrowed in _BORROWED.findall(step.rest) if step.word in ("COPY", "RUN") else ():
            if borrowed.lower() not in stages:
                sources.append(Source(_expand(borrowed, values), step.line))
    if parent is None:
        raise RecipeError(f"{path}:1: there is no FROM line, but an image has to stand on something.")
    return tuple(sources), parent, declared


def arguments_in(rest: str) -> list[tuple[str, str | None]]:
    return [(match[1], None if match[2] is None else match[2].strip("\"'")) for match in _ARGUMENT.finditer(rest)]


def _expand(text: str, values: Mapping[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        value = values.get(match[1] or match[2], "")
        if match[3] == "-":
            return value or _expand(match[4], values)
        if match[3] == "+":
            return _expand(match[4], values) if value else ""
        return value

    return _VARIABLE.sub(value_of, text).strip("\"'")
