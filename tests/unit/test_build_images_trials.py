"""Candidates: tried before anybody gets them, several side by side, and what becomes of those that do not pass."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from gpuspawner.build_images.refresh import log_folder, revision_of
from gpuspawner.candidates import Boot, Verdict
from gpuspawner.errors import BuildError
from tests.standins.engine import BuildHangs
from tests.unit.imagelab import BASE, DOCKERFILES, Asked, Lab, bad
from tests.unit.machine import pem
from tests.unit.sockets import BROKEN_SOCKETS
from tests.unit.waiting import until

pytestmark = BROKEN_SOCKETS


# --- what a trial gets ------------------------------------------------------------------------------------------------


def test_a_candidate_is_tried_against_its_parent_and_the_lowest_image(lab: Lab) -> None:
    """By the version of this Hub, with its own smoke test and those of all that it stands on."""
    for name in ("base", "torch", "vision"):
        lab.write(name, "smoke_test.py", f"# {name}")
        lab.write(name, ".dockerignore", "smoke_test.py\n")
    lab.run("--jobs", "1", "vision")
    base, torch, vision = lab.trials.asked
    tests = {name: f"# {name}" for name in ("base", "torch", "vision")}
    assert base == Asked("base", lab.image("base").id, BASE, None, {"base": tests["base"]})
    assert torch.parent == torch.yardstick == "gpuspawner/base:latest"
    assert torch.smoke_tests == {"base": tests["base"], "torch": tests["torch"]}
    assert (vision.parent, vision.yardstick) == ("gpuspawner/torch:latest", "gpuspawner/base:latest")
    assert vision.smoke_tests == tests
    assert lab.trials.hub_version == version("jupyterhub")
    assert lab.trials.sweeps == 1


def test_the_layer_of_certificates_is_what_the_lowest_image_is_compared_with(lab: Lab, tmp_path: Path) -> None:
    """It is what it was built on."""
    (tmp_path / "school.pem").write_text(pem("school"))
    lab.run("--ca-bundle", str(tmp_path / "school.pem"), "base")
    (asked,) = lab.trials.asked
    assert asked.parent is not None
    assert asked.parent.startswith("gpuspawner/ground:")


def test_a_shelf_without_a_lowest_image_has_no_yardstick(lab: Lab) -> None:
    """No Dockerfile declares BASE; each is compared with what it stands on."""
    for name in DOCKERFILES:
        (lab.folder / name / "Dockerfile").unlink()
        (lab.folder / name).rmdir()
    lab.write("alone", "Dockerfile", f"FROM {BASE}\n")
    lab.run()
    (asked,) = lab.trials.asked
    assert (asked.parent, asked.yardstick) == (BASE, None)


# --- what becomes of it -----------------------------------------------------------------------------------------------


def test_a_candidate_that_fails_is_not_published(lab: Lab) -> None:
    """Servers start from what was there; the candidate can be looked at; its children wait, its siblings do not."""
    lab.run()
    lab.built()
    before = lab.ids
    lab.trials.verdicts["torch"] = bad("It runs as root.", "It does not start.")
    for name in ("torch", "scipy"):
        lab.write(name, "x", "1")
    result = lab.run(status=1)
    assert sorted(lab.built()) == ["scipy", "torch"]
    assert lab.ids["gpuspawner/torch:latest"] == before["gpuspawner/torch:latest"]
    assert lab.ids["gpuspawner/vision:latest"] == before["gpuspawner/vision:latest"]
    assert lab.ids["gpuspawner/scipy:latest"] != before["gpuspawner/scipy:latest"]
    assert lab.tags("torch") == {"latest", "failed", lab.digest("torch")}
    assert lab.image("torch", "failed").labels["gpuspawner.context-hash"][:12] != lab.digest("torch")
    assert "torch did not pass. New servers start from what was there before." in result.stdout
    assert "  starts: It runs as root.\n  starts: It does not start.\n" in result.stdout
    log = Path(result.stdout.rpartition("The whole output is in ")[2].strip()).read_text()
    assert "Trying torch" in log
    assert log.endswith("starts: It runs as root.\nstarts: It does not start.\n")
    lab.trials.verdicts.clear()
    assert lab.results() == {"base": "unchanged", "scipy": "unchanged", "torch": "built", "vision": "built"}


def test_a_first_candidate_that_fails_leaves_nothing_that_servers_could_start_from(lab: Lab) -> None:
    """An image that was never good has no `latest`."""
    lab.trials.verdicts["base"] = bad("It runs as root.")
    assert lab.results(status=1) == {"base": "failed", "scipy": "stopped", "torch": "stopped", "vision": "stopped"}
    assert lab.tags("base") == {"failed"}


def test_the_verdict_is_told_to_programs(lab: Lab) -> None:
    """Checks, findings, and what the start cost beside the yardstick."""
    lab.trials.verdicts["scipy"] = Verdict((), ("starts", "boot budget"), Boot(0.61239, 0.5, 7), Boot(0.6, 0.5, 6))
    lab.trials.verdicts["torch"] = bad("It runs as root.")
    found = {image["name"]: image for image in lab.json("scipy", "torch", status=1)["images"]}
    scipy, torch = found["scipy"], found["torch"]
    assert scipy["checks"] == ["starts", "boot budget"]
    assert scipy["boot"] == {"seconds": 0.612, "cpu_seconds": 0.5, "resident_bytes": 7}
    assert scipy["yardstick"]["resident_bytes"] == 6
    assert (scipy["findings"], torch["boot"]) == ([], None)
    assert torch["findings"] == [{"check": "starts", "text": "It runs as root."}]
    assert (torch["result"], torch["why"], Path(torch["log"]).name) == ("failed", "starts", "torch.log")


def test_a_trial_that_cannot_be_held_is_a_failure_of_that_image(lab: Lab) -> None:
    """The engine failed while it was tried: nothing is published, and the candidate's name goes with the next run."""
    lab.trials.verdicts["scipy"] = BuildError("Docker said: boom")
    result = lab.run(status=1)
    assert "scipy: Docker said: boom" in result.stdout
    assert {tag.partition("-")[0] for tag in lab.tags("scipy")} == {"candidate"}
    lab.trials.verdicts.clear()
    assert lab.results()["scipy"] == "built"
    assert lab.tags("scipy") == {"latest", lab.digest("scipy")}


def test_what_a_killed_run_left_is_swept_away(lab: Lab) -> None:
    """A candidate of a run that nobody remembers, whatever its name."""
    lab.run()
    lab.engine.tag("gpuspawner/torch:latest", "gpuspawner/torch:candidate-0123456789ab")
    lab.write("scipy", "x", "1")
    lab.run()
    assert not any(tag.startswith("candidate-") for name in DOCKERFILES for tag in lab.tags(name))
    assert lab.trials.sweeps == 2


# --- side by side -----------------------------------------------------------------------------------------------------


def test_independent_images_are_built_side_by_side(lab: Lab) -> None:
    """Both are under way at the same moment; their parent came before."""
    hangs = lab.engine.faults.add(BuildHangs("gpuspawner/[st]*:candidate-*"))
    with lab.running("--jobs", "2"):
        until(lambda: hangs.struck == 2)
        assert sorted(lab.built()) == ["base", "scipy", "torch"]
        lab.engine.faults.remove(hangs)
    assert lab.built() == ["vision"]


def test_one_job_builds_one_after_another(lab: Lab) -> None:
    """The second begins when the first has ended."""
    hangs = lab.engine.faults.add(BuildHangs("gpuspawner/scipy:candidate-*"))
    with lab.running("--jobs", "1"):
        until(lambda: hangs.struck == 1)
        assert lab.built() == ["base", "scipy"]
        lab.engine.faults.remove(hangs)
    assert lab.built() == ["torch", "vision"]


def test_an_error_in_one_thread_ends_the_others(lab: Lab) -> None:
    """A bug in a trial must not leave builds running behind a traceback."""
    lab.run("base")
    hangs = lab.engine.faults.add(BuildHangs("gpuspawner/scipy:candidate-*"))
    lab.trials.verdicts["torch"] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        lab.run()
    assert lab.trials.stopped.is_set()
    until(lambda: sum(call.operation == "build" for call, _ in lab.engine.calls) == hangs.struck + 2)
    assert lab.tags("scipy") == set()


# --- --check ----------------------------------------------------------------------------------------------------------


def test_check_tries_what_servers_start_from_and_changes_nothing(lab: Lab) -> None:
    """Also where the folder says something else by now."""
    lab.run()
    lab.built()
    lab.write("scipy", "x", "1")
    before = lab.ids
    lab.trials.asked.clear()
    result = lab.run("--check", "scipy")
    assert [(asked.name, asked.image) for asked in lab.trials.asked] == [
        (name, lab.image(name).id) for name in ("base", "scipy")
    ]
    assert lab.trials.asked[0].parent == BASE
    assert (lab.ids, lab.built()) == (before, [])
    assert "base: checking: started as the Hub starts it" in result.stdout
    assert result.stdout.count("passed") == 4
    assert lab.results("--check") == dict.fromkeys(DOCKERFILES, "passed")


def test_a_trial_that_cannot_be_held_does_not_keep_the_others_from_theirs(lab: Lab) -> None:
    """--check goes on to the next image."""
    lab.run()
    lab.trials.verdicts["base"] = BuildError("Docker said: boom")
    found = {image["name"]: (image["result"], image["why"]) for image in lab.json("--check", status=1)["images"]}
    assert found["base"] == ("failed", "Docker said: boom")
    assert {name: result for name, (result, _) in found.items() if name != "base"} == dict.fromkeys(
        ("scipy", "torch", "vision"), "passed"
    )


def test_check_tells_what_is_wrong_and_what_is_missing(lab: Lab) -> None:
    """Exit status 1; an image whose base is gone is not compared with it."""
    lab.run("torch")
    lab.engine.remove_image(BASE)
    lab.trials.verdicts["base"] = bad("It runs as root.")
    lab.trials.asked.clear()
    result = lab.run("--check", status=1)
    assert "starts: It runs as root." in result.stdout
    assert "scipy: never built" in result.stdout
    assert lab.trials.asked[0].parent is None
    found = {image["name"]: (image["result"], image["why"]) for image in lab.json("--check", status=1)["images"]}
    assert found == {
        "base": ("failed", "starts"),
        "scipy": ("failed", "never built"),
        "torch": ("passed", ""),
        "vision": ("failed", "never built"),
    }


# --- logs and revisions -----------------------------------------------------------------------------------------------


def test_logs_are_kept_where_programs_keep_their_state(tmp_path: Path) -> None:
    """By XDG's rule, or below the home; where neither can be written, in a folder of its own."""
    assert log_folder({"XDG_STATE_HOME": str(tmp_path / "a")}) == tmp_path / "a/gpuspawner/builds"
    assert log_folder({"HOME": str(tmp_path / "b")}) == tmp_path / "b/.local/state/gpuspawner/builds"
    (tmp_path / "file").write_text("")
    elsewhere = log_folder({"XDG_STATE_HOME": str(tmp_path / "file")})
    assert elsewhere.is_dir()
    assert elsewhere.name.startswith("gpuspawner-builds-")
    elsewhere.rmdir()


def test_a_folder_in_a_repository_has_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit; one of which files differ is said to be dirty; without git there is none."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert revision_of(tmp_path) == ""
    (tmp_path / "file").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    commit = revision_of(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert revision_of(tmp_path) == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert revision_of(tmp_path) == ""
