"""The classic builder, as far as a test can see it: steps, cache, layers, labels, and what it refuses.

Nothing is run: a ``RUN`` is one line of history, but ``RUN false`` and ``RUN exit 3`` fail as they would. With
``buildkit`` it takes what only BuildKit takes, and leaves no parent behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from . import answers
from .answers import ApiError
from .state import Image, Layer, new_id

_WORDS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_PAIR = re.compile(r"([\w.\-/]+)=(\"(?:[^\"\\]|\\.)*\"|'[^']*'|\S*)")
_HEREDOC = re.compile(r"<<-?[\"']?(\w+)")
_FAILS = re.compile(r"(?:exit (\d+)|false)")
_NEEDS_BUILDKIT = (
    "the --mount option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to build images "
    "with BuildKit enabled"
)


class BuildError(Exception):
    """A build that fails on its way: the text of the last line of its stream."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Order:
    """What a build was asked for."""

    tag: str
    files: Mapping[str, bytes]
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    buildkit: bool = False


def unpack(context: bytes) -> dict[str, bytes]:
    """The files of a tar by their paths; links have their target as content. Raises ApiError for what is no tar."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(context)) as tar:
            for entry in tar:
                stream = tar.extractfile(entry) if entry.isreg() else None
                if stream is not None or entry.issym():
                    content = stream.read() if stream is not None else entry.linkname.encode()
                    found[entry.name.removeprefix("./")] = content
    except tarfile.TarError as broken:
        text = "Error processing tar file(exit status 1): archive/tar: invalid tar header"
        raise ApiError(500, text) from broken
    return found


def steps_of(dockerfile: bytes | None, *, buildkit: bool) -> list[tuple[str, str]]:
    """The instructions in capitals with the rest of their lines. Raises ApiError 400 or 500."""
    if dockerfile is None:
        raise ApiError(500, "Cannot locate specified Dockerfile: Dockerfile")
    if not dockerfile:
        raise ApiError(400, "the Dockerfile (Dockerfile) cannot be empty")
    lines = list(enumerate(dockerfile.decode().splitlines(), 1))
    steps: list[tuple[str, str]] = []
    while lines:
        number, text = lines.pop(0)
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        while text.endswith("\\") and lines:
            text = text[:-1] + lines.pop(0)[1].strip()
        word, _, rest = text.strip().partition(" ")
        if word.upper() not in _WORDS:
            raise ApiError(400, f"dockerfile parse error line {number}: unknown instruction: {word.upper()}")
        steps.append((word.upper(), rest.strip()))
        heredoc = _HEREDOC.search(rest) if buildkit and word.upper() in ("RUN", "COPY", "ADD") else None
        while heredoc and lines and lines.pop(0)[1].strip() != heredoc[1]:
            pass
    if not steps:
        raise ApiError(400, "failed to parse Dockerfile: file with no instructions")
    if not any(word == "FROM" for word, _ in steps):
        raise ApiError(400, "no build stage in current context")
    return steps


class Builder:
    """Builds; the cache lives as long as the engine. ``find`` gives an image that is there, or pulls it."""

    def __init__(self, find: Callable[[str], Image]) -> None:
        self._find = find
        self._cache: dict[str, Layer] = {}

    def build(self, order: Order, steps: list[tuple[str, str]]) -> Iterator[str | Image]:
        """The lines of the stream, then the image. Raises BuildError."""
        return _Build(self._find, self._cache, order).run(steps)


class _Build:
    def __init__(self, find: Callable[[str], Image], cache: dict[str, Layer], order: Order) -> None:
        self._find, self._cache, self._order = find, cache, order
        self._image = Image("", "")
        self._stages: dict[str, Image] = {}
        self._values: dict[str, str] = {}
        self._unused = set(order.arguments)

    def run(self, steps: list[tuple[str, str]]) -> Iterator[str | Image]:
        labels = " ".join(f"{key}={value}" for key, value in sorted(self._order.labels.items()))
        todo = [*steps, *([("LABEL", labels)] if labels else [])]
        stage = ""
        for number, (word, rest) in enumerate(todo, 1):
            yield f"Step {number}/{len(todo)} : {word} {rest}"
            yield "\n"
            if word == "FROM":
                stage = self._begin(rest)
            elif number == len(todo) and labels:
                self._set(labels={**self._image.labels, **self._order.labels})
                yield from self._layer(f"LABEL {labels}")
            else:
                yield from self._do(word, rest)
            if stage:
                self._stages[stage] = self._image
            yield f" ---> {answers.short(self._id())}\n"
        image = self._finished()
        for name in sorted(name for name in self._unused if "proxy" not in name.lower()):
            yield f"[Warning] One or more build-args [{name}] were not consumed\n"
        yield image
        yield f"Successfully built {answers.short(image.id)}\n"
        yield f"Successfully tagged {answers.with_tag(self._order.tag)}\n"

    def _begin(self, rest: str) -> str:
        words = [word for word in self._filled(rest).split() if not word.startswith("--")]
        stage = words[2].lower() if len(words) == 3 else str(len(self._stages))
        before = self._stages.get(words[0].lower())
        if before is None:
            try:
                found = self._find(words[0])
            except ApiError as missing:
                raise BuildError(missing.message) from missing
            before = replace(found, ref="", parent=found.id, created=time.time())
        self._image = before
        return stage

    def _do(self, word: str, rest: str) -> Iterator[str]:
        filled = rest if word == "RUN" else self._filled(rest)
        size, content, made = 0, b"", f"/bin/sh -c #(nop)  {word} {filled}"
        if word == "ARG":
            name, _, default = filled.partition("=")
            self._unused.discard(name)
            self._values[name] = self._order.arguments.get(name, default.strip("\"'"))
        elif word == "RUN":
            made, content = self._ran(rest), json.dumps(self._values, sort_keys=True).encode()
        elif word in ("COPY", "ADD"):
            size, content, made = self._copied(word, filled)
        else:
            self._configure(word, filled)
        if self._stages or self._image.id:
            yield from self._layer(made, size, content)

    def _ran(self, rest: str) -> str:
        if rest.startswith("--mount") and not self._order.buildkit:
            raise BuildError(_NEEDS_BUILDKIT)
        if failure := _FAILS.fullmatch(rest):
            code = int(failure[1] or 1)
            raise BuildError(f"The command '/bin/sh -c {rest}' returned a non-zero code: {code}", code)
        known = " ".join(f"{key}={value}" for key, value in sorted(self._values.items()))
        return f"|{len(self._values)} {known} /bin/sh -c {rest}" if known else f"/bin/sh -c {rest}"

    def _copied(self, word: str, rest: str) -> tuple[int, bytes, str]:
        options = [each for each in rest.split() if each.startswith("--")]
        *sources, target = [each for each in rest.split() if not each.startswith("--")]
        lender = next((each.partition("=")[2] for each in options if each.startswith("--from=")), None)
        if lender is not None:
            image = self._stages.get(lender.lower()) or self._find(lender)
            return 0, image.id.encode(), f"/bin/sh -c #(nop) {word} {rest}"
        taken: dict[str, bytes] = {}
        for source in (each.strip("/").removeprefix("./") for each in sources if not each.startswith("<<")):
            files = self._order.files
            found = {path: files[path] for path in files if source in (".", "") or _within(path, source)}
            if not found and "*" in source:
                raise BuildError(f"{word} failed: no source files were specified")
            if not found:
                raise BuildError(
                    f"{word} failed: file not found in build context or excluded by .dockerignore: stat {source}: "
                    "file does not exist"
                )
            taken |= found
        content = b"".join(path.encode() + b"\0" + data for path, data in sorted(taken.items()))
        kind = "file" if len(taken) == 1 else "multi"
        made = f"/bin/sh -c #(nop) {word} {kind}:{hashlib.sha256(content).hexdigest()} in {target} "
        return sum(map(len, taken.values())), content, made

    def _configure(self, word: str, rest: str) -> None:
        if word == "ENV":
            pairs = pairs_in(rest)
            kept = [each for each in self._image.env if each.partition("=")[0] not in pairs]
            self._set(env=(*kept, *(f"{key}={value}" for key, value in pairs.items())))
        elif word == "LABEL":
            self._set(labels={**self._image.labels, **pairs_in(rest)})
        elif word in ("CMD", "ENTRYPOINT"):
            words = words_in(rest)
            self._set(cmd=words) if word == "CMD" else self._set(entrypoint=words, cmd=())
        elif word in ("USER", "WORKDIR"):
            self._set(user=rest) if word == "USER" else self._set(workdir=rest)

    def _set(self, **more: Any) -> None:
        # What is changed is another image than the one that it began as.
        self._image = replace(self._image, **{"id": "", **more})

    def _layer(self, made: str, size: int = 0, content: bytes = b"") -> Iterator[str]:
        key = hashlib.sha256(f"{self._id()} {made} ".encode() + content).hexdigest()
        cached = None if self._order.no_cache else self._cache.get(key)
        if cached is not None:
            yield " ---> Using cache\n"
        layer = self._cache[key] = cached or Layer(f"sha256:{new_id()}", made, size)
        self._set(layers=(*self._image.layers, layer))

    def _filled(self, text: str) -> str:
        known = dict(each.partition("=")[::2] for each in self._image.env) | self._values
        return re.sub(r"\$\{?(\w+)\}?", lambda match: known.get(match[1], ""), text)

    def _id(self) -> str:
        image = self._image
        about = [[layer.id for layer in image.layers], image.env, image.cmd, image.entrypoint, dict(image.labels)]
        text = json.dumps([*about, image.workdir, image.user], sort_keys=True)
        return image.id or "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def _finished(self) -> Image:
        parent = "" if self._order.buildkit or self._image.id else self._image.parent
        return replace(self._image, id=self._id(), parent=parent)


def _within(path: str, source: str) -> bool:
    return fnmatchcase(path, source) or path.startswith(source + "/")


def pairs_in(text: str) -> dict[str, str]:
    """``a=b c="d e"`` as a dictionary, or the old form ``a b c``."""
    if not _PAIR.match(text):
        name, _, value = text.partition(" ")
        return {name: value.strip()}
    return {
        key: value.strip('"').replace('\\"', '"') if value.startswith('"') else value.strip("'")
        for key, value in _PAIR.findall(text)
    }


def words_in(text: str) -> tuple[str, ...]:
    """The JSON form of a command, or the shell form."""
    try:
        return tuple(json.loads(text))
    except ValueError:
        return ("/bin/sh", "-c", text)
