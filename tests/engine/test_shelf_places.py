"""Where images come from and go to, and what an engine without room says: a real registry, a real full disk."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.shelf import Shelf
from tests.engine.test_shelf import LEAF, wait_until
from tests.standins.netns_engine import PrivateEngine
from tests.standins.rootfs import import_rootfs

pytestmark = pytest.mark.engine

REGISTRY = "127.0.0.1:5077"
FAR = f"{REGISTRY}/lab/gpuspawner/t-leaf"


class Registry:
    """A registry of this test's own, as Debian packages it."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "registry.yml"
        self._config.write_text(
            f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder / 'registry'}\n"
            f"http:\n  addr: {REGISTRY}\n"
        )
        self._log = folder / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["docker-registry", "serve", str(self._config)], stdout=log, stderr=log)
        wait_until(self._answers, 20)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://{REGISTRY}/v2/", timeout=2).status == 200)
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("there is no registry: install the package docker-registry")
    made = Registry(tmp_path)
    made.start()
    yield made
    made.stop()


def test_images_go_to_a_registry_and_a_newer_base_comes_from_there(
    engine: PrivateEngine, tmp_path: Path, registry: Registry
) -> None:
    """--push, a foreign FROM that is pulled, --pull that sees a new digest, and a registry that is gone."""
    near, far = Shelf(tmp_path / "near", engine), Shelf(tmp_path / "far", engine)
    names = ("t-leaf", "t-far", "t-lost")
    near.sweep(names)
    near.copy("base")
    near.write("t-leaf", Dockerfile=LEAF, note_txt="one\n")
    try:
        pushed = near.run("--json", "--push", f"{REGISTRY}/lab", "t-leaf", seconds=580)
        assert pushed.status == 0, pushed
        assert f"{FAR}:latest" in pushed.image("t-leaf")["pushed"]
        assert near.id(f"{FAR}:latest") is None

        far.write("t-far", Dockerfile=f"FROM {FAR}:latest\n")
        assert far.run("--json").results() == {"t-far": "built"}
        labels = far.labels("gpuspawner/t-far:latest")
        assert labels["org.opencontainers.image.base.name"] == f"{FAR}:latest"
        assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
        assert far.run("--json", "--pull").results() == {"t-far": "unchanged"}

        near.write("t-leaf", note_txt="two\n")
        assert near.run("--json", "--push", f"{REGISTRY}/lab", "t-leaf").status == 0
        assert far.run("--dry-run", "--json").image("t-far")["reasons"] == []
        asked = far.run("--dry-run", "--pull", "--json").image("t-far")["reasons"]
        assert asked == [f"base tag {FAR}:latest has a new digest"]
        assert far.run("--json", "--pull").results() == {"t-far": "built"}
        assert engine.docker("run", "--rm", "gpuspawner/t-far", "cat", "/etc/note.txt") == "two"

        registry.stop()
        assert far.run("--json", "--pull").results() == {"t-far": "unchanged"}
        far.write("t-lost", Dockerfile=f"FROM {REGISTRY}/lab/nothing:1\n")
        lost = far.run()
        assert lost.status == 1
        assert f"{REGISTRY}/lab/nothing:1 is not in the engine and cannot be pulled" in lost.out
        refused = near.run("--push", f"{REGISTRY}/lab", "t-leaf")
        assert refused.status == 1
        assert f"base was not pushed, nor what comes after it. Look whether {REGISTRY}/lab runs" in refused.out
        assert refused.err == ""
    finally:
        near.sweep(names)
        engine.docker("rmi", "--force", f"{FAR}:latest", check=False)


@pytest.fixture
def small_engine(tmp_path: Path) -> Iterator[PrivateEngine]:
    """An engine with room for 48 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)], check=True)
    try:
        # Below the mount: an engine that starts takes away what an earlier one has left mounted in its folder.
        with PrivateEngine("small", data_root=disk / "engine") as engine:
            yield engine
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("path", [{}, {"PATH": "/nowhere"}], ids=["BuildKit", "classic builder"])
def test_a_full_disk_is_named_and_nothing_is_published(
    small_engine: PrivateEngine, tmp_path: Path, path: dict[str, str]
) -> None:
    """What to do stands in the sentence."""
    import_rootfs(small_engine, "local/small:1")
    shelf = Shelf(tmp_path, small_engine, path)
    shelf.write("t-big", Dockerfile="FROM local/small:1\nRUN dd if=/dev/zero of=/big bs=1M count=100\n")
    done = shelf.run("--plain")
    assert done.status == 1, done
    assert "because the disk of the Docker engine is full" in done.out
    assert "--prune" in done.out
    assert shelf.tags("t-big") == set()
