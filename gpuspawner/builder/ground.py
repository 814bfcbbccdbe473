"""What the lowest image stands on: pulled from a registry, or made from the distribution's archive where none answers.

The archive is the one that this machine's own apt uses, so a school's mirror serves here too. Certificates that this
machine trusts beyond its distribution's (a TLS-inspecting proxy) go into a thin layer on top, before any download.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuspawner.builder.docker_cli import Builder, BuildError, Job, Say, stream

REGISTRY_SECONDS = 10.0
HOST_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
DISTRIBUTION_CERTIFICATES = Path("/usr/share/ca-certificates")

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----")
_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)")
# As in Debian's own slim images: 60 MB that nobody reads in a container. Licences stay.
_SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
"""


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
        return f"gpuspawner/{self.distribution}:{self.version}"


@dataclass(frozen=True)
class Ground:
    """What goes into `FROM`, and the name of the system in it, without the thin layer of certificates."""

    reference: str
    name: str


def find_ground(
    builder: Builder,
    *,
    wanted: str | None,
    default: str,
    certificates: tuple[str, ...],
    say: Say,
    etc: Path = Path("/etc"),
) -> Ground:
    """The image that the lowest recipe is built on, pulled or made if need be. `wanted` is never replaced by another.

    What an earlier run made stays in use, also when a registry answers now: images do not change for that.

    Raises:
        BuildError: it can be had neither way, with the reasons.
    """
    name = wanted or _made_before(builder, etc) or default
    if builder.image(name) is None:
        say(f"Pulling {name}")
        said: list[str] = []
        if not builder.pull(name, said.append, answer_within_seconds=REGISTRY_SECONDS):
            reason = said[-1] if said else f"no answer within {REGISTRY_SECONDS:g} seconds"
            if wanted:
                raise BuildError(f"{name} is not in the engine and cannot be pulled: {reason}")
            say(f"{name} cannot be pulled ({reason}).")
            name = _make_system(builder, say, reason, etc)
    return Ground(_trusting(builder, name, certificates, say), name)


def _made_before(builder: Builder, etc: Path) -> str | None:
    try:
        reference = host_archive(etc).reference
    except BuildError:
        return None
    return reference if builder.image(reference) else None


def _make_system(builder: Builder, say: Say, why: str, etc: Path) -> str:
    """Make this machine's distribution into an image with debootstrap; the image's name."""
    archive = host_archive(etc)
    search = builder.environment.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    program = shutil.which("debootstrap", path=search)
    instead = "or name a base image that this machine can reach, with --base IMAGE"
    if program is None:
        raise BuildError(f"No base image: {why}. Install debootstrap ('apt-get install debootstrap'), {instead}.")
    if os.geteuid() != 0:
        raise BuildError(f"No base image: {why}. Making one with debootstrap needs root: use sudo, {instead}.")
    say(f"Making {archive.reference} from this machine's package archive, {archive.mirror} (half a minute).")
    # Not the usual folder for temporary files: that one is often small, or mounted without device nodes.
    with tempfile.TemporaryDirectory(prefix="gpuspawner-", dir="/var/tmp") as folder:
        root = Path(folder) / "root"
        argv = [program, "--variant=minbase", "--include=ca-certificates"]
        argv += [f"--keyring={archive.keyring}"] if Path(archive.keyring).is_file() else []
        argv += [f"--components={','.join(archive.components)}", archive.suite, str(root), archive.mirror]
        last = ["it said nothing"]

        def note(line: str) -> None:
            last[0] = line
            say(line)

        if stream(argv, note, environ={**builder.environment, "PATH": search}) != 0:
            raise BuildError(f"debootstrap failed: {last[0]}. Look at the mirror, {instead}.")
        _tidy(root, archive)
        builder.load_tree(root, archive.reference)
    return archive.reference


def _tidy(root: Path, archive: Archive) -> None:
    """Leave nothing of this machine in the image, and nothing that only a whole system needs."""
    (root / "etc/apt/sources.list").write_text("\n".join(archive.source_lines) + "\n")
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(_SLIM)
    for name in ("etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/log/bootstrap.log"):
        (root / name).unlink(missing_ok=True)
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "usr/share/doc/*/*"):
        for path in root.glob(pattern):
            if path.name != "copyright" and not path.is_dir():
                path.unlink()
    for name in ("usr/share/locale", "usr/share/man", "usr/share/info"):
        shutil.rmtree(root / name, ignore_errors=True)


def _trusting(builder: Builder, name: str, certificates: tuple[str, ...], say: Say) -> str:
    """The system with further certificates where apt and pip will look for them; its name where there are none."""
    if not certificates:
        return name
    image = builder.image(name)
    identity = "\n".join((image.id if image else name, *certificates))
    reference = f"gpuspawner/ground:{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if builder.image(reference) is None:
        with tempfile.TemporaryDirectory(prefix="gpuspawner-") as folder:
            for number, certificate in enumerate(certificates, 1):
                (Path(folder) / f"this-machine-{number}.crt").write_text(certificate)
            dockerfile = f"FROM {name}\nCOPY *.crt /usr/local/share/ca-certificates/\n"
            (Path(folder) / "Dockerfile").write_text(dockerfile)
            builder.build(Job(Path(folder), reference), say)
    return reference


# --- certificates -----------------------------------------------------------------------------------------------------


def certificates_in(text: str) -> tuple[str, ...]:
    """The certificates of a PEM bundle, each once and spelled the same way, in a fixed order."""
    bodies = {"".join(match[1].split()) for match in _PEM.finditer(text)}
    return tuple(
        "-----BEGIN CERTIFICATE-----\n"
        + "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
        + "\n-----END CERTIFICATE-----\n"
        for body in sorted(bodies)
    )


def extra_certificates(bundle: Path | None) -> tuple[str, ...]:
    """What a bundle (by default this machine's) holds beyond the distribution's own certificates, which images have.

    Raises:
        BuildError: a bundle was named that cannot be read or holds no certificate.
    """
    try:
        found = certificates_in((bundle or HOST_BUNDLE).read_text(errors="replace"))
    except OSError as error:
        if bundle is None:
            return ()
        raise BuildError(f"The certificates in {bundle} cannot be read: {error.strerror}.") from error
    if bundle and not found:
        raise BuildError(f"{bundle} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----).")
    usual: set[str] = set()
    for path in DISTRIBUTION_CERTIFICATES.rglob("*.crt"):
        usual.update(certificates_in(path.read_text(errors="replace")))
    return tuple(certificate for certificate in found if certificate not in usual)


# --- this machine's apt sources ---------------------------------------------------------------------------------------


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
