"""`build_images.py` over small folders and a docker program that remembers what it was asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gpuspawner.build_images import program
from gpuspawner.builder import ground
from gpuspawner.recipes import BASE_NAME_LABEL, CREATED_LABEL, HASH_LABEL, TITLE_LABEL
from tests.unit.fakedocker import FakeDocker

DOCKERFILES = {
    "base": "ARG BASE=debian:12-slim\nFROM ${BASE}\nARG PIP_INDEX_URL\n",
    "scipy": "FROM gpuspawner/base\n",
    "torch": "FROM gpuspawner/base\n",
    "vision": "FROM gpuspawner/torch\n",
}
SCRIPT = Path(__file__).parents[2] / "images/build_images.py"


class Lab:
    """A folder of images, an engine, and the program that an admin types."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = root / "images"
        self.docker = FakeDocker.make(root / "bin")
        for name, text in DOCKERFILES.items():
            self.write(name, "Dockerfile", text)
        for name in (
            "PIP_INDEX_URL",
            "PIP_EXTRA_INDEX_URL",
            "PIP_TRUSTED_HOST",
            "http_proxy",
            "https_proxy",
            "no_proxy",
        ):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in self.docker.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_STATE_HOME", str(root / "state"))
        monkeypatch.setattr(ground, "HOST_BUNDLE", root / "no bundle")

    def write(self, image: str, name: str, text: str) -> None:
        (self.folder / image).mkdir(parents=True, exist_ok=True)
        (self.folder / image / name).write_text(text)

    def run(self, *argv: str) -> Result:
        return CliRunner().invoke(program(self.folder), argv, env={"COLUMNS": "200"})

    def built(self) -> list[str]:
        """The images that were built, in order, since this was last asked."""
        calls, self._seen = self.docker.builds(), getattr(self, "_seen", 0)
        new, self._seen = calls[self._seen :], len(calls)
        return [call.values("--tag")[0].split(":")[0].removeprefix("gpuspawner/") for call in new]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def test_everything_is_built_in_order_and_then_nothing(lab: Lab) -> None:
    """Parents first; a second run finds nothing to do."""
    first = lab.run()
    assert first.exit_code == 0, first.output
    assert lab.built() == ["base", "scipy", "torch", "vision"]
    second = lab.run()
    assert second.exit_code == 0
    assert lab.built() == []
    assert second.output.count("unchanged") == len(DOCKERFILES)


def test_a_name_builds_it_and_what_it_stands_on(lab: Lab) -> None:
    """Nothing else is touched."""
    assert lab.run("vision").exit_code == 0
    assert lab.built() == ["base", "torch", "vision"]


def test_a_change_in_a_leaf_builds_only_the_leaf(lab: Lab) -> None:
    """And the table says why."""
    lab.run()
    lab.built()
    lab.write("scipy", "requirements.txt", "numpy\n")
    result = lab.run()
    assert lab.built() == ["scipy"]
    assert "requirements.txt is new" in result.output


def test_a_change_that_is_taken_back_needs_no_build(lab: Lab) -> None:
    """The image of before is still there under its own tag."""
    lab.run("base")
    before = lab.docker.images["gpuspawner/base:latest"]
    lab.write("base", "x", "1")
    lab.run("base")
    (lab.folder / "base/x").unlink()
    lab.built()
    assert "tagged" in lab.run("base").output
    assert lab.built() == []
    assert lab.docker.images["gpuspawner/base:latest"] == before


def test_the_labels_say_what_an_image_is(lab: Lab) -> None:
    """Our hash, and the words of the OCI for name, time and base."""
    lab.run("scipy")
    base, scipy = (lab.docker.images[f"gpuspawner/{name}:latest"]["Config"]["Labels"] for name in ("base", "scipy"))
    assert base[TITLE_LABEL] == "gpuspawner/base"
    assert base[BASE_NAME_LABEL] == "debian:12-slim"
    assert scipy[BASE_NAME_LABEL] == "gpuspawner/base"
    assert scipy[CREATED_LABEL].endswith("+00:00")
    assert f"gpuspawner/scipy:{scipy[HASH_LABEL][:12]}" in lab.docker.images


def test_a_failed_image_stops_its_children_and_not_its_siblings(lab: Lab) -> None:
    """The exit status tells, latest stays where it was, and the whole output is in a file that is named."""
    lab.run()
    lab.built()
    before = lab.docker.images
    lab.docker.set(broken=["gpuspawner/torch"])
    for name in ("torch", "scipy"):
        lab.write(name, "x", "1")
    result = lab.run()
    assert result.exit_code == 1
    assert lab.built() == ["scipy", "torch"]
    assert lab.docker.images["gpuspawner/torch:latest"] == before["gpuspawner/torch:latest"]
    assert lab.docker.images["gpuspawner/scipy:latest"] != before["gpuspawner/scipy:latest"]
    assert "torch was not built" in result.output
    log = Path(result.output.rpartition("The whole output is in ")[2].strip())
    assert log.read_text().endswith("#6 ERROR: exit code: 1\n")


def test_without_cache_everything_that_was_named_is_built_and_what_stands_on_it(lab: Lab) -> None:
    """--no-cache is for new packages under the same pins."""
    lab.run()
    lab.built()
    assert lab.run("--no-cache", "base", "scipy").exit_code == 0
    assert lab.built() == ["base", "scipy"]
    assert all("--no-cache" in call.argv for call in lab.docker.builds()[-2:])
    lab.run("--no-cache", "scipy")
    assert lab.built() == ["scipy"]


@pytest.mark.parametrize("option", ["--dry-run", "--list"])
def test_looking_changes_nothing(lab: Lab, option: str) -> None:
    """Neither pulls nor builds nor tags; says what is to be built and why."""
    lab.run("base")
    images = lab.docker.images
    lab.built()
    result = lab.run(option)
    assert result.exit_code == 0
    assert (lab.built(), lab.docker.images) == ([], images)
    assert result.output.count("never built") == 3


def test_another_base_makes_everything_stale(lab: Lab) -> None:
    """--base is part of what an image is made of; the next run without it goes back."""
    lab.run("scipy")
    lab.built()
    lab.docker.add_image("school/debian:1")
    assert lab.run("--base", "school/debian:1", "scipy").exit_code == 0
    assert lab.built() == ["base", "scipy"]
    assert lab.docker.builds()[-2].values("--build-arg") == ["BASE=school/debian:1"]
    assert lab.run("--dry-run", "--base", "school/debian:1").output.count("left as it is") == 2


def test_a_base_that_was_made_here_stays_even_after_it_was_pruned(lab: Lab) -> None:
    """Whether a registry answers today is no reason to build everything anew."""
    lab.docker.add_image("gpuspawner/debian:12")
    lab.run("--base", "gpuspawner/debian:12", "scipy")
    lab.docker.remove_image("gpuspawner/debian:12")
    lab.built()
    assert lab.run("scipy").exit_code == 0
    assert lab.built() == []


def test_settings_can_come_from_the_environment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that refreshes the images has no one to type options."""
    lab.docker.add_image("school/debian:1")
    monkeypatch.setenv("GPUSPAWNER_BASE", "school/debian:1")
    lab.run("base")
    assert lab.docker.builds()[-1].values("--build-arg") == ["BASE=school/debian:1"]
    monkeypatch.setenv("GPUSPAWNER_CA_BUNDLE", "/nowhere")
    assert "The certificates in /nowhere cannot be read" in lab.run("base").output


def test_where_there_is_no_base_only_what_stands_on_it_fails(lab: Lab) -> None:
    """The sentence names the reason; nothing was built."""
    lab.docker.set(pull="refusal")
    lab.write("alone", "Dockerfile", "FROM other:1\n")
    result = lab.run("--base", "school/debian:1")
    assert result.exit_code == 1
    assert lab.built() == ["alone"]
    assert "school/debian:1 is not in the engine and cannot be pulled" in result.output
    assert result.output.count("stopped") >= 3


def test_new_certificates_make_everything_stale_and_are_named(lab: Lab, tmp_path: Path) -> None:
    """--ca-bundle: a school's proxy changed its certificate."""
    lab.run("scipy")
    bundle = tmp_path / "school.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nc2Nob29s\n-----END CERTIFICATE-----\n")
    lab.built()
    result = lab.run("--ca-bundle", str(bundle), "scipy")
    assert lab.built() == ["ground", "base", "scipy"]
    assert "this machine's CA bundle is new" in result.output
    lab.run("--ca-bundle", str(bundle), "scipy")
    assert lab.built() == []


def test_only_declared_arguments_are_passed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic builder refuses others; the mirror makes nothing stale."""
    lab.run("scipy")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    assert lab.run("--dry-run").output.count("left as it is") == 2
    lab.run("--no-cache", "base", "scipy")
    base, scipy = lab.docker.builds()[-2:]
    assert "PIP_INDEX_URL=https://mirror.example/simple" in base.values("--build-arg")
    assert scipy.values("--build-arg") == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(["scipi"], "There is no image 'scipi'. There is: base, scipy, torch, vision.", id="unknown name"),
        pytest.param(["--ca-bundle", "/nowhere"], "The certificates in /nowhere cannot be read", id="no such bundle"),
    ],
)
def test_a_wrong_question_is_answered_with_a_sentence(lab: Lab, argv: list[str], message: str) -> None:
    """Status 2, no traceback."""
    result = lab.run(*argv)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_engine_that_is_down_is_named(lab: Lab) -> None:
    """Before anything is tried."""
    lab.docker.set(trouble="Cannot connect to the Docker daemon at unix:///x.")
    result = lab.run()
    assert result.exit_code == 2
    assert "The Docker engine does not answer at unix:///nowhere.sock" in result.output


def test_the_script_works_from_this_python_and_says_what_to_do_from_another(lab: Lab, tmp_path: Path) -> None:
    """With a Python that lacks the package, and no environment made yet, it names the command that helps."""
    script = tmp_path / "elsewhere/images/build_images.py"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text())
    for argv, status in (([sys.executable, str(SCRIPT), "--help"], 0), ([sys.executable, "-IS", str(script)], 1)):
        environ = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
        done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
        assert done.returncode == status, done.stderr
    assert "Run scripts/run first" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shelf_of_this_project_can_be_read() -> None:
    """The real folders: base at the bottom, everything else on it."""
    from gpuspawner.build_images.refresh import read_folders
    from gpuspawner.recipes import in_order, read_shelf

    shelf = read_shelf(read_folders(SCRIPT.parent))
    assert [recipe.name for recipe in in_order(shelf, shelf)] == ["base", "pytorch", "scipy"]
    assert {recipe.name: recipe.parents for recipe in shelf.values()} == {
        "base": (),
        "pytorch": ("base",),
        "scipy": ("base",),
    }
    for recipe in shelf.values():
        assert not recipe.needs_buildkit
        assert not {"smoke_test.py", "README.md"} & set(recipe.files)
