"""What the lowest image stands on: pulled from a registry, or made from the distribution's archive where none answers.

The archive is the one that this machine's own apt uses, so a school's mirror serves here too. Certificates that this
machine trusts beyond its distribution's (a TLS-inspecting proxy) go into a thin layer on top, before any download.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuspawner.builder.archive import Archive, host_archive
from gpuspawner.builder.build import Builder, Job
from gpuspawner.builder.children import Children, Say
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes import PREFIX, ContextFile
from gpuspawner.recipes.image import Image

PACKAGES_LABEL = "gpuspawner.packages"
REGISTRY_SECONDS = 10.0

# As in Debian's own slim images: 60 MB that nobody reads in a container. Licences stay.
_SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
"""


@dataclass(frozen=True)
class Ground:
    """What goes into `FROM`; the name of the system in it, without the thin layer of certificates, and its digest."""

    reference: str
    name: str
    digest: str


class Grounds:
    """Finds, refreshes and makes the images that come from elsewhere.

    Every method raises BuildError with the reasons where an image can be had in no way.
    """

    def __init__(self, images: Images, builder: Builder, children: Children, etc: Path = Path("/etc")) -> None:
        self._images = images
        self._builder = builder
        self._children = children
        self._etc = etc
        # What could not be refreshed, and why: the images of before are used.
        self.kept: dict[str, str] = {}

    def lowest(
        self, *, wanted: str | None, default: str, certificates: tuple[str, ...], refresh: bool, say: Say
    ) -> Ground:
        """The image that the lowest recipe is built on, pulled or made if need be.

        `wanted` is never replaced by another. What an earlier run made stays in use, also when a registry answers now:
        images do not change for that. `refresh` asks for the newest.
        """
        name = wanted or self._made_before() or default
        if name.startswith(PREFIX) and self._images.get(name):
            if refresh and not wanted:
                try:
                    self._make(say)
                except BuildError as error:
                    self._keep(name, error, say)
        else:
            try:
                self.foreign(name, refresh=refresh, say=say)
            except BuildError as error:
                if wanted:
                    raise
                say(str(error))
                name = self._make(say)
        return self._trusting(name, certificates, say)

    def foreign(self, reference: str, *, refresh: bool, say: Say) -> Image:
        """An image from a registry: pulled where it is missing, or where `refresh` finds a newer one."""
        image = self._images.get(reference)
        if image and not refresh:
            return image
        try:
            digest = self._images.remote_digest(reference, answer_within_seconds=REGISTRY_SECONDS)
            if image is None or digest != image.digest:
                say(f"Pulling {reference}")
                self._images.pull(reference, say)
                image = self._images.get(reference)
        except BuildError as error:
            if image is None:
                raise BuildError(f"{reference} is not in the engine and cannot be pulled: {error}") from error
            self._keep(reference, error, say)
        if image is None:
            raise BuildError(f"{reference} was pulled and is not in the engine: is its disk full?")
        return image

    def _keep(self, reference: str, reason: BuildError, say: Say) -> None:
        self.kept[reference] = str(reason)
        say(f"{reference} cannot be refreshed ({reason}): the one that is here stays.")

    def _made_before(self) -> str | None:
        try:
            reference = host_archive(self._etc).reference
        except BuildError:
            return None
        return reference if self._images.get(reference) else None

    def _make(self, say: Say) -> str:
        """Make this machine's distribution into an image with debootstrap; the image's name."""
        archive = host_archive(self._etc)
        search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
        program = shutil.which("debootstrap", path=search)
        instead = "or name a base image that this machine can reach, with --base IMAGE"
        if program is None:
            raise BuildError(
                f"A base system is made with debootstrap. Install it (apt-get install debootstrap), {instead}."
            )
        if os.geteuid() != 0:
            raise BuildError(f"Making a base system with debootstrap needs root: use sudo, {instead}.")
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

            if self._children.run(argv, note, environ={**os.environ, "PATH": search}) != 0:
                raise BuildError(f"debootstrap failed: {last[0]}. Look at the mirror, {instead}.")
            packages = hashlib.sha256((root / "var/lib/dpkg/status").read_bytes()).hexdigest()
            before = self._images.get(archive.reference)
            if before and before.labels.get(PACKAGES_LABEL) == packages:
                say(f"{archive.reference} holds the newest packages already.")
            else:
                _tidy(root, archive)
                self._load(root, archive.reference, {PACKAGES_LABEL: packages})
        return archive.reference

    def _load(self, root: Path, reference: str, labels: Mapping[str, str]) -> None:
        argv = ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-c", "."]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None  # noqa: S101  (asked for above)
            self._images.load(tar.stdout, reference, labels=labels)
        if tar.returncode != 0:
            raise BuildError(f"The files of {reference} could not be packed: tar ended with {tar.returncode}.")

    def _trusting(self, name: str, certificates: tuple[str, ...], say: Say) -> Ground:
        """The system with further certificates where apt and pip will look for them."""
        image = self._images.get(name)
        if image is None:
            raise BuildError(f"{name} is gone from the engine. Try again.")
        if not certificates:
            return Ground(name, name, image.digest)
        identity = "\n".join((image.id, *certificates))
        reference = f"{PREFIX}ground:{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        if self._images.get(reference) is None:
            dockerfile = f"FROM {name}\nCOPY *.crt /usr/local/share/ca-certificates/\n"
            files = {f"this-machine-{number}.crt": text for number, text in enumerate(certificates, 1)}
            folder = {path: ContextFile(text.encode()) for path, text in {**files, "Dockerfile": dockerfile}.items()}
            self._builder.build(Job(reference, folder), say)
        return Ground(reference, name, image.digest)


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
