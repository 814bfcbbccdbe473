"""What the lowest image stands on: pulled, or made from this machine's archive; certificates on top."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuspawner.builder import ground as module
from gpuspawner.builder.build import Builder, find_tool
from gpuspawner.builder.children import Children
from gpuspawner.builder.ground import PACKAGES_LABEL, Ground, Grounds
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes.image import Image
from tests.standins.engine import BuildFails, Fault, NoSuchImage, RegistryDown, RegistrySilent, StandinEngine
from tests.unit.fakedocker import FakeDocker
from tests.unit.machine import MIRROR, debootstrap_in, etc_in, pem, tools_in
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap is only tried by root")

BASE = "debian:12-slim"
MADE = "gpuspawner/debian:12"


class Place:
    """A Debian machine with an engine; a registry holds the usual base."""

    def __init__(self, root: Path, engine: StandinEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.docker = FakeDocker.make(root / "docker")
        self.tools = tools_in(root / "tools", "sh", "mkdir", "tar")
        monkeypatch.setenv("PATH", f"{self.docker.root}:{self.tools}")
        self.images = Images({"DOCKER_HOST": engine.url})
        environ = {**os.environ, "DOCKER_HOST": engine.url}
        children = Children()
        self.grounds = Grounds(self.images, Builder(find_tool(environ), environ, children), children, etc_in(root))
        self.said: list[str] = []

    def lowest(self, wanted: str | None = None, *certificates: str, refresh: bool = False) -> Ground:
        return self.grounds.lowest(
            wanted=wanted, default=BASE, certificates=certificates, refresh=refresh, say=self.said.append
        )

    def image(self, reference: str) -> Image:
        found = self.images.get(reference)
        assert found is not None
        return found

    def count(self, operation: str) -> int:
        return sum(call.operation == operation for call, _ in self.engine.calls)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """No image is there yet."""
    monkeypatch.setattr(module, "REGISTRY_SECONDS", 0.2)
    with StandinEngine() as engine:
        engine.add_image(BASE, remote=True)
        one = Place(tmp_path, engine, monkeypatch)
        yield one
        engine.faults.clear()
        if "client" in vars(one.images):
            one.images.client.close()


# --- from a registry --------------------------------------------------------------------------------------------------


def test_the_base_is_pulled_once(place: Place) -> None:
    """The second run finds it in the engine and asks no registry."""
    first = place.lowest()
    assert first == Ground(BASE, BASE, place.image(BASE).digest)
    assert "Pulling debian:12-slim" in place.said
    assert place.lowest() == first
    assert (place.count("pull"), place.count("distribution")) == (1, 1)


def test_a_refresh_pulls_only_what_is_newer(place: Place) -> None:
    """A registry is asked for the digest; nothing is downloaded where that is the same."""
    first = place.lowest()
    assert place.lowest(refresh=True) == first
    assert (place.count("pull"), place.count("distribution")) == (1, 2)
    place.engine.add_image(BASE, remote=True)
    newer = place.lowest(refresh=True)
    assert (newer.name, place.count("pull")) == (BASE, 2)
    assert newer.digest == place.image(BASE).digest != first.digest


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(RegistryDown(message="no such host"), "no such host", id="refuses"),
        pytest.param(RegistrySilent(), "the registry gave no answer within 0.2 seconds", id="silent"),
    ],
)
def test_a_registry_that_does_not_answer_leaves_what_is_here(place: Place, fault: Fault, reason: str) -> None:
    """A refresh says why, and goes on with what there is."""
    first = place.lowest()
    place.engine.faults.add(fault)
    assert place.lowest(refresh=True) == first
    assert place.said[-1] == f"{BASE} cannot be refreshed ({reason}): the one that is here stays."


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(RegistryDown(message="no such host"), "no such host", id="refuses"),
        pytest.param(RegistrySilent(), r"the registry gave no answer within 0\.2 seconds", id="silent"),
        pytest.param(None, "manifest unknown", id="does not have it"),
    ],
)
@needs_root
def test_a_base_that_was_named_is_never_replaced_by_another(place: Place, fault: Fault | None, reason: str) -> None:
    """Asked for by name means that one or none."""
    debootstrap_in(place.tools)
    if fault:
        place.engine.faults.add(fault)
    with pytest.raises(BuildError, match=f"school/debian:1 is not in the engine and cannot be pulled: {reason}"):
        place.lowest("school/debian:1")
    place.engine.add_image("school/debian:1")
    assert place.lowest("school/debian:1").reference == "school/debian:1"
    assert not (place.tools / "debootstrap.asked").exists()


def test_a_base_that_was_made_here_and_named_is_not_asked_for_elsewhere(place: Place) -> None:
    """No registry has it."""
    place.engine.add_image(MADE)
    assert place.lowest(MADE, refresh=True).name == MADE
    assert place.count("distribution") == 0


def test_what_was_pulled_and_is_not_there_is_told(place: Place) -> None:
    """The engine said that all was well."""
    with (
        place.engine.faults.during(NoSuchImage("debian*")),
        pytest.raises(BuildError, match="was pulled and is not in the engine: is its disk full"),
    ):
        place.grounds.foreign(BASE, refresh=False, say=place.said.append)


def test_what_goes_while_it_is_looked_at_is_told(place: Place) -> None:
    """Somebody prunes at the same time."""
    place.lowest()

    class Gone(NoSuchImage):
        """Gone at the second look."""

        def strikes(self, name: str) -> bool:
            return super().strikes(name) and self.struck > 1

    with place.engine.faults.during(Gone("debian*")), pytest.raises(BuildError, match="is gone from the engine"):
        place.lowest()


# --- from this machine's archive --------------------------------------------------------------------------------------


@needs_root
def test_where_no_registry_answers_the_base_is_made_from_the_archive_once(place: Place) -> None:
    """With this machine's mirror; it is used from then on, even if a registry answers later."""
    place.engine.faults.add(RegistryDown(message="no such host"))
    debootstrap_in(place.tools)
    first = place.lowest()
    made = place.image(MADE)
    assert first == Ground(MADE, MADE, made.id)
    assert made.labels.keys() == {PACKAGES_LABEL}
    assert place.said[0].startswith(f"{BASE} is not in the engine and cannot be pulled: no such host")
    assert f"Making {MADE} from this machine's package archive, {MIRROR} (half a minute)." in place.said
    assert "I: Retrieving Release" in place.said
    asked = (place.tools / "debootstrap.asked").read_text().split()
    assert asked[:2] == ["--variant=minbase", "--include=ca-certificates"]
    assert "--components=main" in asked
    assert (asked[-3], asked[-1]) == ("bookworm", MIRROR)
    assert not Path(asked[-2]).exists()
    place.engine.faults.clear()
    (place.tools / "debootstrap").unlink()
    assert place.lowest() == first


@needs_root
def test_nothing_of_this_machine_gets_into_what_is_made(place: Place) -> None:
    """Its name and its documents stay out, licences and the archive's lines go in."""
    place.engine.faults.add(RegistryDown())
    debootstrap_in(place.tools)
    place.lowest()
    size = place.image(MADE).size_bytes
    sources = f"deb {MIRROR} bookworm main\ndeb {MIRROR} bookworm-updates main\n"
    expected = len(sources + "deb http://mirror.example/security bookworm-security main\n" + module._SLIM)
    assert size == expected + len("law\n") + len("bash 5\n")


@needs_root
def test_a_refresh_of_the_same_packages_keeps_the_image(place: Place) -> None:
    """It costs half a minute; what stands on it is not stale for that."""
    place.engine.faults.add(RegistryDown())
    debootstrap_in(place.tools)
    first = place.lowest()
    assert place.lowest(refresh=True) == first
    assert place.said[-1] == f"{MADE} holds the newest packages already."
    debootstrap_in(place.tools, packages="bash 6")
    newer = place.lowest(refresh=True)
    assert (newer.name, newer.digest != first.digest) == (MADE, True)


@needs_root
def test_a_refresh_without_the_archive_goes_on_with_what_was_made(place: Place) -> None:
    """As with a registry: a mirror that is down at night stops nothing, and is told."""
    place.engine.faults.add(RegistryDown())
    debootstrap_in(place.tools)
    first = place.lowest()
    debootstrap_in(place.tools, status=1)
    assert place.lowest(refresh=True) == first
    assert place.said[-1].startswith(f"{MADE} cannot be refreshed (debootstrap failed: E: no mirror.")


@needs_root
def test_a_debootstrap_that_fails_says_its_last_line(place: Place) -> None:
    """And nothing is made; the folder for it is gone."""
    place.engine.faults.add(RegistryDown())
    debootstrap_in(place.tools, status=1)
    with pytest.raises(BuildError, match=r"debootstrap failed: E: no mirror\. Look at the mirror, or name a base"):
        place.lowest()
    assert place.engine.images == []
    assert not Path((place.tools / "debootstrap.asked").read_text().split()[-2]).parent.exists()


@needs_root
def test_a_file_system_that_cannot_be_packed_is_no_base(place: Place) -> None:
    """Half an archive would be half a system."""
    place.engine.faults.add(RegistryDown())
    debootstrap_in(place.tools)
    (place.tools / "tar").unlink()
    (place.tools / "tar").write_text('#!/bin/sh\nexec /bin/tar "$@" /nowhere-at-all\n')
    (place.tools / "tar").chmod(0o755)
    with pytest.raises(BuildError, match=f"The files of {MADE} could not be packed: tar ended with 2"):
        place.lowest()


@needs_root
def test_a_keyring_of_the_archive_is_used_where_it_is_there(place: Place, tmp_path: Path) -> None:
    """Otherwise debootstrap takes its own."""
    keyring = tmp_path / "school.debian-archive-keyring.gpg"
    sources = tmp_path / "etc/apt/sources.list.d/debian.sources"
    sources.write_text(sources.read_text().replace("/usr/share/keyrings/debian-archive-keyring.gpg", str(keyring)))
    place.engine.faults.add(RegistryDown())
    debootstrap_in(place.tools)
    place.lowest()
    assert "--keyring" not in (place.tools / "debootstrap.asked").read_text()
    keyring.write_text("")
    place.lowest(refresh=True)
    assert f"--keyring={keyring}" in (place.tools / "debootstrap.asked").read_text()


def test_without_debootstrap_the_package_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other way on."""
    place.engine.faults.add(RegistryDown())
    monkeypatch.setattr(shutil, "which", lambda program, path: None)
    with pytest.raises(BuildError, match=r"Install it \(apt-get install debootstrap\), or name a base image"):
        place.lowest()


def test_who_is_not_root_is_told_to_become_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is tried."""
    place.engine.faults.add(RegistryDown())
    debootstrap_in(place.tools)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BuildError, match="needs root: use sudo, or name a base image"):
        place.lowest()
    assert not (place.tools / "debootstrap.asked").exists()


def test_a_machine_of_another_kind_is_told_to_name_a_base(place: Place, tmp_path: Path) -> None:
    """Only where a base would have to be made."""
    (tmp_path / "etc/os-release").write_text('ID=fedora\nPRETTY_NAME="Fedora 42"\n')
    with place.engine.faults.during(RegistryDown()), pytest.raises(BuildError, match="this machine is 'Fedora 42'"):
        place.lowest()
    assert place.lowest().name == BASE


# --- certificates -----------------------------------------------------------------------------------------------------


def test_further_certificates_go_into_a_layer_that_is_made_once(place: Place) -> None:
    """The name and digest stay those of the base: the layer is how it gets to trust a proxy."""
    first = place.lowest(None, pem("school"))
    assert (first.name, first.digest) == (BASE, place.image(BASE).digest)
    assert first.reference.startswith("gpuspawner/ground:")
    assert place.image(first.reference).size_bytes == place.image(BASE).size_bytes + len(pem("school"))
    assert place.lowest(None, pem("school")) == first
    assert len(place.docker.builds()) == 1
    assert place.lowest(None, pem("other")).reference != first.reference
    place.engine.add_image(BASE)
    assert place.lowest(None, pem("school")).reference != first.reference
    assert len(place.docker.builds()) == 3


def test_a_full_disk_is_told_as_such(place: Place) -> None:
    """Also where the layer of certificates is what does not fit."""
    place.engine.faults.add(BuildFails(message="no space left on device"))
    with pytest.raises(BuildError, match=r"The build of gpuspawner/ground:\w+ failed, because the disk"):
        place.lowest(None, pem("school"))
