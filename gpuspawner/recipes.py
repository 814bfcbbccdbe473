"""Pure rules: the folders of `images/` → which image stands on which, the order to build them, and what is stale.

A recipe is one folder: its name is the image's name, and its `FROM` line, declared nowhere else, is its parent. What is
in the folders is given as values; nothing here reads a disk or asks an engine.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gpuspawner.errors import GPUSpawnerError

PREFIX = "gpuspawner/"
HASH_LABEL = "gpuspawner.context-hash"
PARTS_LABEL = "gpuspawner.context-parts"
TITLE_LABEL = "org.opencontainers.image.title"
CREATED_LABEL = "org.opencontainers.image.created"
BASE_NAME_LABEL = "org.opencontainers.image.base.name"

# Through which door the packages come says nothing about what is in them.
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
NEUTRAL_ARGUMENTS = frozenset(
    {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", *_PROXIES, *(name.upper() for name in _PROXIES)}
)
# More than this would make a label of tens of kilobytes; such a folder is only known as a whole.
MOST_PARTS = 200

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?([-+])([^}]*))?\})")
_HEREDOC = re.compile(r"<<-?([\"']?)(\w+)\1")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)")
_ARGUMENT = re.compile(r"(\w+)(?:=(\"[^\"]*\"|'[^']*'|\S*))?")
_BORROWED = re.compile(r"--(?:mount=\S*?)?from=([^\s,]+)")
_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|\\.|.", re.DOTALL)
_GLOB_WORDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_ON_THE_SHELF = re.compile(re.escape(PREFIX) + r"([^:@/]+)(?::latest)?")


class RecipeError(GPUSpawnerError):
    """A Dockerfile, or what it stands on, is wrong. The message begins with its path and line."""


@dataclass(frozen=True)
class ContextFile:
    """One file of a folder: its bytes (or where a symbolic link points), and whether it may be executed."""

    content: bytes
    executable: bool = False
    is_link: bool = False


Folder = Mapping[str, ContextFile]


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
class Recipe:
    """One image folder.

    `arguments` are those that it declares, `inner_arguments` those that its steps can see: the others only fill in
    `FROM` lines. `files` is what the build sees: the folder after its .dockerignore, Dockerfile included.
    """

    name: str
    path: str
    parent: Source
    sources: tuple[Source, ...]
    arguments: Mapping[str, str | None]
    inner_arguments: frozenset[str]
    needs_buildkit: bool
    files: Folder = field(repr=False)

    @property
    def reference(self) -> str:
        """The image without a tag, as a `FROM` line and a profile name it."""
        return f"{PREFIX}{self.name}"

    @property
    def parents(self) -> tuple[str, ...]:
        """The folders that have to be built before this one."""
        return tuple(sorted({source.recipe for source in self.sources if source.recipe}))


Shelf = Mapping[str, Recipe]


@dataclass(frozen=True)
class Fingerprint:
    """What an image is made of: a digest over everything, and a short one of each part, so that a change has a name."""

    digest: str
    parts: Mapping[str, str]

    @property
    def tag(self) -> str:
        """The tag that only this content has."""
        return self.digest[:12]

    def labels(self) -> dict[str, str]:
        """The labels by which `reasons` recognises the image later."""
        parts = self.parts if len(self.parts) <= MOST_PARTS else {}
        return {HASH_LABEL: self.digest, PARTS_LABEL: json.dumps(parts, sort_keys=True, separators=(",", ":"))}


def read_shelf(folders: Mapping[str, Folder], arguments: Mapping[str, str] | None = None) -> Shelf:
    """Every recipe by its name; `arguments` are the build arguments that will be given.

    Raises:
        RecipeError: a Dockerfile cannot be read, stands on a folder that is not there, or on itself.
    """
    shelf = {name: _read(name, folder, dict(arguments or {})) for name, folder in sorted(folders.items())}
    for recipe in shelf.values():
        for source in recipe.sources:
            if source.recipe and source.recipe not in shelf:
                raise RecipeError(
                    f"{recipe.path}:{source.line}: it stands on {source.reference}, but there is no folder "
                    f"'{source.recipe}' beside it. There is: {', '.join(sorted(shelf))}."
                )
    in_order(shelf, shelf)
    return shelf


def in_order(shelf: Shelf, names: Iterable[str]) -> tuple[Recipe, ...]:
    """The named recipes and all that they stand on, parents first, otherwise by name.

    Raises:
        RecipeError: a name that is not on the shelf, or recipes that stand on each other in a circle.
    """
    ordered: dict[str, Recipe] = {}

    def visit(name: str, below: tuple[str, ...]) -> None:
        if name in below:
            circle = [shelf[step] for step in (*below[below.index(name) :], name)]
            steps = "; ".join(
                f"{child.path}:{_line_of(child, parent.name)} stands on {parent.reference}"
                for child, parent in pairwise(circle)
            )
            raise RecipeError(f"{steps}: a circle, so none of them can be built first.")
        if name not in ordered:
            for parent in shelf[name].parents:
                visit(parent, (*below, name))
            ordered[name] = shelf[name]

    for name in sorted(names):
        if name not in shelf:
            raise RecipeError(f"There is no image '{name}'. There is: {', '.join(sorted(shelf)) or 'none'}.")
        visit(name, ())
    return tuple(ordered.values())


def _line_of(recipe: Recipe, parent: str) -> int:
    return next(source.line for source in recipe.sources if source.recipe == parent)


def fingerprints(shelf: Shelf, *, outside: Mapping[str, str] | None = None) -> dict[str, Fingerprint]:
    """What each image is made of.

    Neither the order of the files, nor their times, nor line endings matter; content, the executable bit, build
    arguments, what the image stands on and `outside` do. `outside` names what else goes into every image that does not
    stand on one of the shelf (certificates, for example), by a word that a person understands.
    """
    found: dict[str, Fingerprint] = {}
    for recipe in in_order(shelf, shelf):
        parts = {path: _digest_of(file) for path, file in recipe.files.items()}
        for name in recipe.inner_arguments - NEUTRAL_ARGUMENTS:
            if (value := recipe.arguments[name]) is not None:
                parts[f"argument {name}"] = _sha(value.encode())
        for parent in recipe.parents:
            parts[f"parent {parent}"] = found[parent].digest
        if foreign := sorted(source.reference for source in recipe.sources if not source.recipe):
            parts["base image"] = _sha("\n".join(foreign).encode())
        if not recipe.parents:
            parts.update({word: _sha(value.encode()) for word, value in (outside or {}).items()})
        digest = _sha(json.dumps(parts, sort_keys=True).encode())
        found[recipe.name] = Fingerprint(digest, {part: value[:12] for part, value in parts.items()})
    return found


def _digest_of(file: ContextFile) -> str:
    is_text = b"\0" not in file.content
    content = file.content.replace(b"\r\n", b"\n") if is_text else file.content
    kind = b"link " if file.is_link else b"program " if file.executable else b"file "
    return _sha(kind + content)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def reasons(wanted: Fingerprint, labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """Why an image has to be built, in words; nothing where the one that exists is what is wanted.

    `labels` are those of the existing image, None where there is none.
    """
    if labels is None:
        return ("never built",)
    if labels.get(HASH_LABEL) == wanted.digest:
        return ()
    if HASH_LABEL not in labels:
        return ("not built by this program",)
    try:
        before = json.loads(labels.get(PARTS_LABEL, ""))
    except ValueError:
        before = None
    if not isinstance(before, dict) or not before or len(wanted.parts) > MOST_PARTS:
        return ("its folder changed",)
    changed = [f"{part} changed" for part in before.keys() & wanted.parts if before[part] != wanted.parts[part]]
    new = [f"{part} is new" for part in wanted.parts.keys() - before]
    gone = [f"{part} is gone" for part in before.keys() - wanted.parts]
    return tuple(sorted(changed) + sorted(new) + sorted(gone)) or ("its folder changed",)


def visible(folder: Folder) -> dict[str, ContextFile]:
    """What a build sees of a folder: all that its .dockerignore does not leave out, and in any case the Dockerfile.

    The rules are Docker's, which are not Git's: each pattern is rooted at the folder and covers all that is below what
    it matches, `**` crosses folders, `!` takes back, the last match decides. (pathspec knows only Git's.)
    """
    ignore = folder.get(".dockerignore", ContextFile(b"")).content.decode("utf-8", "replace").removeprefix("\ufeff")
    rules = [rule for line in ignore.splitlines() if (rule := _rule(line))]

    def is_left_out(path: str) -> bool:
        decisive = next((taken_back for taken_back, pattern in reversed(rules) if pattern.fullmatch(path)), True)
        return not decisive

    return {path: file for path, file in folder.items() if path == "Dockerfile" or not is_left_out(path)}


def _rule(line: str) -> tuple[bool, re.Pattern[str]] | None:
    """(whether it takes back, what it matches) for a line of .dockerignore; None for a comment or an empty one."""
    written = line.strip()
    taken_back = written.startswith("!")
    pattern = posixpath.normpath("/" + written.removeprefix("!").strip()).lstrip("/")
    if line.startswith("#") or not pattern:
        return None
    expression = "".join(_GLOB_WORDS.get(word) or _literal(word) for word in _GLOB.findall(pattern))
    try:
        return taken_back, re.compile(expression + "(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise RecipeError(f"'{written}' in .dockerignore is no pattern that Docker knows: {error}.") from error


def _literal(word: str) -> str:
    if word.startswith("[") and len(word) > 1:
        return word
    return re.escape(word.removeprefix("\\") if len(word) > 1 else word)


def _read(name: str, folder: Folder, given: Mapping[str, str]) -> Recipe:
    path = f"images/{name}/Dockerfile"
    if not _NAME.fullmatch(name):
        raise RecipeError(f"images/{name}: no image can be named so: use small letters and digits, between them - . _")
    if "Dockerfile" not in folder:
        raise RecipeError(f"images/{name}: there is no Dockerfile in this folder. Write one, or remove the folder.")
    steps = _instructions(folder["Dockerfile"].content.decode("utf-8", "replace"))
    sources, parent, declared = _lineage(steps, given, path)
    first = next(index for index, step in enumerate(steps) if step.word == "FROM")
    return Recipe(
        name=name,
        path=path,
        parent=parent,
        sources=sources,
        arguments={argument: given.get(argument, default) for argument, default in declared.items()},
        inner_arguments=frozenset(
            name for step in steps[first:] if step.word == "ARG" for name, _ in _arguments(step.rest)
        ),
        needs_buildkit=any(_needs_buildkit(step) for step in steps),
        files=visible(folder),
    )


@dataclass(frozen=True)
class _Step:
    """One instruction of a Dockerfile, continuation lines joined."""

    line: int
    word: str
    rest: str

    @property
    def heredocs(self) -> tuple[str, ...]:
        takes_them = self.word in ("RUN", "COPY", "ADD")
        return tuple(match[2] for match in _HEREDOC.finditer(self.rest)) if takes_them else ()


def _needs_buildkit(step: _Step) -> bool:
    return bool(step.heredocs) or (step.word == "RUN" and step.rest.startswith("--"))


def _instructions(text: str) -> list[_Step]:
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
        step = _Step(first, word.upper(), rest.strip())
        steps.append(step)
        for end in step.heredocs:
            while at < len(lines) and lines[at].lstrip("\t") != end:
                at += 1
            at += 1
    return steps


def _lineage(
    steps: Sequence[_Step], given: Mapping[str, str], path: str
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
            for argument, default in _arguments(step.rest):
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


def _arguments(rest: str) -> list[tuple[str, str | None]]:
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
