"""The package archive that this machine installs from, read from its apt sources (the old form and the new one)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuspawner.errors import BuildError
from gpuspawner.recipes import PREFIX

_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)")


@dataclass(frozen=True)
class Archive:
    """The package archive of this machine's distribution, as its apt sources name it."""

    distribution: str
    version: str
    suite: str
    mirror: str
    keyring: str
    components: tuple[str, ...]
    source_lines: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The image that is made from it."""
        return f"{PREFIX}{self.distribution}:{self.version}"


def host_archive(etc: Path = Path("/etc")) -> Archive:
    """The archive that this machine installs from.

    Raises:
        BuildError: this machine is neither Debian nor Ubuntu, or its apt sources name no archive of it.
    """
    files = [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*"))]
    sources = {path.name: path.read_text(errors="replace") for path in files if path.is_file()}
    release = etc / "os-release"
    return archive_from(release.read_text() if release.is_file() else "", sources)


def archive_from(os_release: str, sources: Mapping[str, str]) -> Archive:
    """The same, from the text of os-release and of the files under apt's sources (old and new form)."""
    about = dict(word.split("=", 1) for word in shlex.split(os_release, comments=True) if "=" in word)
    distribution, suite = about.get("ID", ""), about.get("VERSION_CODENAME", "")
    if distribution not in ("debian", "ubuntu") or not suite:
        called = about.get("PRETTY_NAME", "unknown")
        raise BuildError(
            f"A base system can be made here only on Debian and Ubuntu, and this machine is '{called}'. "
            "Name a base image that it can reach, with --base IMAGE."
        )
    suites = (suite, f"{suite}-updates", f"{suite}-security")
    wanted = ("main", "universe") if distribution == "ubuntu" else ("main",)
    found: dict[str, _Entry] = {}
    for entry in _entries(sources):
        own = not entry.keyring or f"{distribution}-archive-keyring" in entry.keyring
        if entry.suite in suites and "main" in entry.components and own:
            found.setdefault(entry.suite, entry)
    if suite not in found:
        raise BuildError(
            f"The apt sources of this machine name no archive for '{suite} main', so no base system can be made from "
            "it. Name a base image, with --base IMAGE."
        )
    main = found[suite]
    components = tuple(word for word in wanted if word in main.components)
    return Archive(
        distribution=distribution,
        version=about.get("VERSION_ID", suite),
        suite=suite,
        mirror=main.uri,
        keyring=main.keyring or f"/usr/share/keyrings/{distribution}-archive-keyring.gpg",
        components=components,
        source_lines=tuple(f"deb {found[name].uri} {name} {' '.join(components)}" for name in suites if name in found),
    )


@dataclass(frozen=True)
class _Entry:
    uri: str
    suite: str
    components: tuple[str, ...]
    keyring: str


def _entries(sources: Mapping[str, str]) -> Iterator[_Entry]:
    for name, text in sources.items():
        parsed = _new_form(text) if name.endswith(".sources") else _old_form(text) if name.endswith(".list") else ()
        for entry in parsed:
            if entry.uri.startswith(("http://", "https://")):
                yield entry


def _old_form(text: str) -> Iterable[_Entry]:
    for line in text.splitlines():
        if match := _ONE_LINE.match(line.split("#", 1)[0].strip()):
            options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            yield _Entry(match[2], match[3], tuple(match[4].split()), options.get("signed-by", ""))


def _new_form(text: str) -> Iterable[_Entry]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        keyring = fields.get("signed-by", "").strip()
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield _Entry(uri, suite, tuple(fields.get("components", "").split()), keyring)
