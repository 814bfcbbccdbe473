"""The program as people and other programs ask it: options, tables, JSON, wrong questions, this project's shelf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuspawner.build_images.lock import locked
from gpuspawner.build_images.plan import read_folders
from gpuspawner.recipes import in_order, read_shelf
from tests.standins.engine import EngineDown, Http500, RegistryDown
from tests.unit.imagelab import BASE, DOCKERFILES, Lab, bad
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "images/build_images.py"


# --- looking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--dry-run", "--list"])
def test_looking_changes_nothing(lab: Lab, option: str) -> None:
    """Neither pulls nor builds nor tags; says what is to be built and why. The lock is not needed."""
    lab.run("base")
    images = lab.ids
    lab.built()
    with locked(lab.engine_id, lab.root):
        result = lab.run(option)
    assert (lab.built(), lab.ids) == ([], images)
    assert result.stdout.count("never built") == 3


def test_a_plan_says_what_would_be_done_and_why(lab: Lab) -> None:
    """Built, tagged, or left as it is; each reason for programs."""
    lab.run("scipy")
    lab.write("base", "x", "1")
    lab.run("base")
    lab.remove("base", "x")
    lab.write("scipy", "x", "1")
    words = {line.split()[0]: line for line in lab.run("--dry-run").stdout.splitlines()}
    assert "tagged" in words["base"]
    assert "x is gone" in words["base"]
    assert "built" in words["scipy"]
    assert "x is new" in words["scipy"]
    told = {image["name"]: image for image in lab.json("--dry-run")["images"]}
    assert (told["base"]["state"], told["base"]["reasons"]) == ("stale", ["x is gone"])
    assert (told["torch"]["state"], told["torch"]["reasons"]) == ("missing", ["never built"])
    assert told["scipy"]["stands_on"] == "gpuspawner/base"
    assert (told["torch"]["tag"], told["torch"]["built"], told["torch"]["size_bytes"]) == (None, None, None)


def test_a_plan_can_look_for_a_newer_base(lab: Lab) -> None:
    """--pull --dry-run asks the registry and downloads nothing; one that does not answer is said to be silent."""
    lab.run("scipy")
    before = lab.ids
    assert lab.run("--dry-run", "--pull", "scipy").stdout.count("left as it is") == 2
    lab.engine.add_image(BASE, remote=True)
    result = lab.run("--dry-run", "--pull", "scipy")
    assert f"base tag {BASE} has a new digest" in result.stdout
    assert "parent base changed" in result.stdout
    assert lab.ids == before
    lab.engine.faults.add(RegistryDown(message="no such host"))
    result = lab.run("--dry-run", "--pull", "scipy")
    assert f"Whether {BASE} has changed cannot be known: no such host" in result.stdout
    assert result.stdout.count("left as it is") == 2


def test_a_list_shows_state_and_cost(lab: Lab) -> None:
    """Each image below what it stands on; the common part once in the total."""
    lab.run()
    lab.write("scipy", "x", "1")
    lines = lab.run("--list").stdout.splitlines()
    assert lines[0].split() == ["image", "size", "shared", "own", "built", "state"]
    assert [line[:10].rstrip() for line in lines[1:5]] == ["base", "  scipy", "  torch", "    vision"]
    assert "up to date" in lines[1]
    assert "x is new" in lines[2]
    assert "without sharing" in lines[-1]
    told = {image["name"]: image for image in lab.json("--list")["images"]}
    assert told["base"]["state"] == "current"
    assert told["base"]["tag"] == lab.digest("base")
    assert told["base"]["built"].endswith("+00:00")
    assert told["base"]["shared_bytes"] + told["base"]["own_bytes"] == told["base"]["size_bytes"]
    assert lab.json("--list", "base")["bytes"] == told["base"]["size_bytes"]


def test_a_list_of_nothing(lab: Lab) -> None:
    """No image yet: no bytes, and programs get no costs."""
    assert "0 B" in lab.run("--list").stdout
    assert "own_bytes" not in lab.json("--list")["images"][0]


# --- how it is shown --------------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(lab: Lab) -> None:
    """A line for each beginning, step and end, and a table after them."""
    lines = lab.run("base").stdout.splitlines()
    assert lines[0] == "base: building: never built"
    assert f"base: Pulling {BASE}" in lines
    assert any(line.startswith("base: 1/") and line.endswith(f"ARG BASE={BASE}") for line in lines)
    assert "base: checking: started as the Hub starts it" in lines
    assert "base: built" in lines
    assert any(line.split()[:2] == ["base", "built"] and "0.6 s" in line for line in lines)


def test_a_terminal_gets_live_lines_unless_plain_ones_are_asked_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """--plain is for a terminal that is recorded."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    live = lab.run("base").stdout
    assert "\x1b[" in live
    assert "base: building" not in live
    lab.write("base", "x", "1")
    assert "base: building: x is new" in lab.run("--plain", "base").stdout


def test_json_is_one_line_whatever_happens(lab: Lab) -> None:
    """Nothing else on standard output: built, unchanged, and failed."""
    told = lab.json()
    assert told["ok"] is True
    assert [image["result"] for image in told["images"]] == ["built"] * 4
    assert all(Path(image["log"]).is_file() for image in told["images"] if "log" in image)
    quick = lab.json()
    assert quick == {
        "ok": True,
        "images": [
            {"name": name, "result": "unchanged", "why": "", "size_bytes": lab.image(name).size} for name in DOCKERFILES
        ],
    }
    lab.trials.verdicts["scipy"] = bad("no")
    lab.write("scipy", "x", "1")
    failed = lab.json(status=1)
    assert failed["ok"] is False
    assert {image["name"]: image["result"] for image in failed["images"]}["scipy"] == "failed"


def test_help_names_every_option(lab: Lab) -> None:
    """And each with a word about it."""
    text = lab.run("--help").stdout
    for word in ("list", "dry-run", "check", "rollback", "prune", "keep", "config", "pull", "no-cache", "jobs"):
        assert f"  --{word} " in text
    for word in ("build-arg", "base", "ca-bundle", "push", "json", "plain", "metrics"):
        assert f"  --{word} " in text
    assert "[NAME]..." in text


# --- wrong questions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(["scipi"], "There is no image 'scipi'. There is: base, scipy, torch, vision.", id="unknown name"),
        pytest.param(["--ca-bundle", "/nowhere"], "The certificates in /nowhere cannot be read", id="no such bundle"),
        pytest.param(["--list", "--prune"], "each stand alone: choose one.", id="two things at once"),
        pytest.param(["--check", "--rollback", "base"], "each stand alone: choose one.", id="two others"),
        pytest.param(
            ["--list", "--push", "here:5000"], "--push copies what a refresh has published", id="push of a list"
        ),
        pytest.param(["--check", "--pull"], "--pull looks for a newer base to build on", id="pull of a check"),
        pytest.param(["--keep", "2"], "--keep says how many versions --prune leaves: add --prune", id="keep alone"),
        pytest.param(["--jobs", "0"], "Invalid value for '--jobs'", id="no jobs"),
        pytest.param(["--fast"], "No such option", id="no such option"),
    ],
)
def test_a_wrong_question_is_answered_with_a_sentence(lab: Lab, argv: list[str], message: str) -> None:
    """Status 2, no traceback, nothing done."""
    result = lab.run(*argv, status=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert (result.stdout, lab.built()) == ("", [])


def test_a_folder_that_cannot_be_read_as_images_is_told(lab: Lab) -> None:
    """With path and line; and a folder that is not there."""
    lab.write("vision", "Dockerfile", "#\nFROM gpuspawner/nope\n")
    assert "images/vision/Dockerfile:2: it stands on gpuspawner/nope" in lab.run(status=2).stderr
    lab.folder = lab.root / "nowhere"
    assert f"{lab.folder} cannot be read: No such file or directory." in lab.run(status=2).stderr


@pytest.mark.parametrize(
    "argv",
    [(), ("--list",), ("--dry-run",), ("--check",), ("--prune",), ("--rollback", "base"), ("--json",)],
    ids=lambda argv: " ".join(argv) or "plain",
)
def test_an_engine_that_is_down_is_named(lab: Lab, argv: tuple[str, ...]) -> None:
    """Whatever was asked, before anything is tried."""
    with lab.engine.faults.during(EngineDown("refuse")):
        result = lab.run(*argv, status=2)
    assert f"The Docker engine does not answer at {lab.engine.url}. Start it" in result.stderr
    assert result.stdout == ""


def test_an_engine_that_fails_on_the_way_ends_a_run_with_a_sentence(lab: Lab) -> None:
    """Which images are whose cannot be known then."""
    with lab.engine.faults.during(Http500("list_images", "boom")):
        assert "Docker said: boom" in lab.run(status=2).stderr


# --- this project's own -----------------------------------------------------------------------------------------------


def test_the_script_works_from_this_python_and_says_what_to_do_from_another(tmp_path: Path) -> None:
    """With a Python that lacks the package, and no environment made yet, it names the command that helps."""
    script = tmp_path / "elsewhere/images/build_images.py"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text())
    for argv, status in (([sys.executable, str(SCRIPT), "--help"], 0), ([sys.executable, "-IS", str(script)], 1)):
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
        assert done.returncode == status, done.stderr
    assert "Run scripts/run first" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shelf_of_this_project_can_be_read() -> None:
    """The real folders: base at the bottom, everything else on it; tests and texts stay out of the images."""
    shelf = read_shelf(read_folders(SCRIPT.parent))
    assert next(iter(in_order(shelf, shelf))).name == "base"
    assert {recipe.parents for name, recipe in shelf.items() if name != "base"} == {("base",)}
    assert {"scipy", "pytorch", "tensorflow", "cuda"} <= set(shelf)
    for recipe in shelf.values():
        assert not recipe.needs_buildkit
        assert not {"smoke_test.py", "README.md"} & set(recipe.files)


def test_what_is_no_image_folder_is_not_read(tmp_path: Path) -> None:
    """Files beside the folders, and folders that begin with a dot or an underscore."""
    for name in ("base", ".git", "__pycache__"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "Dockerfile").write_text("FROM x\n")
    (tmp_path / "build_images.py").write_text("")
    base = tmp_path / "base"
    (base / "run").write_text("#!/bin/sh\n")
    (base / "run").chmod(0o755)
    (base / "link").symlink_to("run")
    (base / "deep/folder").symlink_to("..")
    os.mkfifo(base / "pipe")
    (found,) = read_folders(tmp_path).values()
    assert {path: (file.content, file.executable, file.is_link) for path, file in found.items()} == {
        "Dockerfile": (b"FROM x\n", False, False),
        "run": (b"#!/bin/sh\n", True, False),
        "link": (b"run", False, True),
        "deep/folder": (b"..", False, True),
    }
