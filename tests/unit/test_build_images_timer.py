"""The program as a timer runs it: the quick way, one run at a time, signals, figures for Prometheus."""

from __future__ import annotations

import getpass
import json
import os
import signal
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from gpuspawner import build_images
from gpuspawner.build_images import lock
from gpuspawner.build_images.lock import locked
from gpuspawner.errors import BuildError
from tests.standins.engine import BuildHangs
from tests.unit.imagelab import DOCKERFILES, Lab, bad
from tests.unit.sockets import BROKEN_SOCKETS
from tests.unit.waiting import until

pytestmark = BROKEN_SOCKETS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "images/build_images.py"


# --- the quick way ----------------------------------------------------------------------------------------------------


def test_a_run_that_finds_nothing_to_do_imports_nothing_heavy(lab: Lab) -> None:
    """What a timer does every night is over before docker-py would have been read from the disk."""
    lab.run()
    done = lab.watch()
    assert (done.returncode, done.stdout) == (0, "".join(f"{name}: unchanged\n" for name in DOCKERFILES))
    assert done.stderr == "[]\n"
    done = lab.watch("scipy")
    assert (done.stdout, done.stderr) == ("base: unchanged\nscipy: unchanged\n", "[]\n")
    told = lab.watch("--json", "scipy")
    assert json.loads(told.stdout)["ok"] is True
    assert "docker" not in told.stderr


def test_the_quick_way_is_taken_where_it_can(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """And not where there is something to do, an option, a slip of the pen, or a setting."""

    def is_taken(*argv: str, **environ: str) -> bool:
        taken = build_images._is_current(lab.folder, argv, environ)
        assert taken == ("unchanged" in capsys.readouterr().out)
        return taken

    assert not is_taken()
    lab.run()
    assert is_taken()
    assert is_taken("scipy")
    assert not is_taken("--list")
    assert not is_taken("nope")
    assert not is_taken(GPUSPAWNER_METRICS="/nowhere")


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        pytest.param(["nope"], {}, id="unknown image"),
        pytest.param([], {"GPUSPAWNER_CA_BUNDLE": "/nowhere"}, id="setting"),
        pytest.param([], {"DOCKER_HOST": "unix:///nowhere.sock"}, id="no engine"),
    ],
)
def test_what_is_wrong_is_said_once_and_properly(
    lab: Lab, argv: list[str], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick way keeps silent about what it does not understand."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = lab.watch(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 2
    assert "Traceback" not in done.stderr


# --- one at a time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [(), ("--check",), ("--prune",), ("--rollback", "base")])
def test_a_second_run_is_told_who_is_at_it(lab: Lab, argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Process, user, command and beginning; and what to do."""
    monkeypatch.setattr(sys, "argv", ["/opt/images/build_images.py", "--pull"])
    with locked(lab.engine_id, lab.root):
        result = lab.run(*argv, status=2)
    assert f"process {os.getpid()} of " in result.stderr
    assert "(build_images.py --pull) has been at it since 20" in result.stderr
    assert "Wait for its end, then try again." in result.stderr
    assert lab.built() == []


def test_engines_are_locked_each_for_itself(tmp_path: Path) -> None:
    """The file may be used by everybody, and is used again."""
    with locked("one", tmp_path), locked("two", tmp_path):
        assert len(list(tmp_path.iterdir())) == 2
        with pytest.raises(BuildError, match="are being changed already"), locked("one", tmp_path):
            pass
    with locked("one", tmp_path):
        pass
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666}


def test_a_holder_that_did_not_say_who_it_is(tmp_path: Path) -> None:
    """An empty file, or somebody else's."""
    for content in ("", "{", "{}", "[]"):
        with locked("one", tmp_path):
            (path,) = tmp_path.iterdir()
            path.write_text(content)
            with pytest.raises(BuildError, match="changed already: another run is at it"), locked("one", tmp_path):
                pass


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way out; where there is no usual folder, it is in that for temporary files."""
    with locked("one", tmp_path):
        (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    unusable = pytest.raises(BuildError, match=r"The lock .* cannot be opened: Is a directory\. Remove it")
    with unusable, locked("one", tmp_path):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "t"))
    assert lock._folder() == tmp_path / "t"


def test_the_usual_place_of_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one for locks, which a restart clears; a user without a name is a number."""
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert lock._folder() == Path("/run/lock")
    assert lock._user()

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert lock._user() == str(os.getuid())


def test_a_run_that_was_killed_holds_nothing_up(lab: Lab) -> None:
    """kill -9 in the middle of a build: the lock is free, servers start from the same, the rest is swept away."""
    lab.run()
    before = {name: lab.image(name).id for name in DOCKERFILES}
    lab.built()
    lab.write("scipy", "x", "1")
    with lab.engine.faults.during(BuildHangs()) as fault, lab.started("scipy") as killed:
        until(lambda: fault.struck == 1)
        second = lab.run("scipy", status=2)
        assert f"process {killed.pid} of " in second.stderr
        killed.kill()
        killed.communicate()
    # What it had started comes to its end without it, and leaves a candidate.
    until(lambda: any(tag.startswith("candidate-") for tag in lab.tags("scipy")))
    assert {name: lab.image(name).id for name in DOCKERFILES} == before
    assert lab.results("torch") == {"base": "unchanged", "torch": "unchanged"}
    assert lab.results("scipy") == {"base": "unchanged", "scipy": "built"}
    assert not any(tag.startswith("candidate-") for tag in lab.tags("scipy"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_run_that_is_ended_leaves_everything_as_it_was(lab: Lab, number: signal.Signals) -> None:
    """Status 130 and a sentence; the builds are ended with it."""
    lab.run()
    before = lab.ids
    for name in ("scipy", "torch"):
        lab.write(name, "x", "1")
    with lab.engine.faults.during(BuildHangs()) as fault, lab.started() as process:
        until(lambda: fault.struck == 2)
        process.send_signal(number)
        _, problems = process.communicate(timeout=20)
        assert process.returncode == 130
        until(lambda: sum(call.operation == "build" for call, _ in lab.engine.calls) == len(DOCKERFILES) + 2)
    assert problems.strip() == "Stopped. What was not finished is as it was: servers start from the same images."
    assert lab.ids == before


# --- metrics ----------------------------------------------------------------------------------------------------------


def figures(path: Path) -> dict[str, float]:
    """The figures of a file for Prometheus."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_metrics_tell_how_the_images_stand(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last run, last success, age and staleness of each image; also of a run that found nothing to do."""
    path = tmp_path / "images.prom"
    lab.run("--metrics", str(path))
    first = figures(path)
    run, success = (first[f"gpuspawner_images_last_{word}_timestamp_seconds"] for word in ("run", "success"))
    assert run == success
    built = {f'gpuspawner_image_built_timestamp_seconds{{image="{name}"}}' for name in DOCKERFILES}
    stale = {f'gpuspawner_image_stale{{image="{name}"}}': 0.0 for name in DOCKERFILES}
    assert built | stale.keys() < first.keys()
    assert {name: first[name] for name in stale} == stale
    assert all(abs(first[name] - run) < 60 for name in built)
    path.unlink()
    monkeypatch.setenv("GPUSPAWNER_METRICS", str(path))
    lab.run()
    assert figures(path).keys() == first.keys()


def test_the_last_success_outlives_a_failure(lab: Lab, tmp_path: Path) -> None:
    """By its age an alarm can be set; the image that failed is stale, and so is one that is held."""
    path = tmp_path / "images.prom"
    lab.run("--metrics", str(path), "scipy")
    first = figures(path)
    lab.write("scipy", "x", "1")
    lab.trials.verdicts["scipy"] = bad("no")
    lab.run("--metrics", str(path), "scipy", status=1)
    second = figures(path)
    success = "gpuspawner_images_last_success_timestamp_seconds"
    assert second[success] == first[success] < second["gpuspawner_images_last_run_timestamp_seconds"]
    assert (second['gpuspawner_image_stale{image="scipy"}'], second['gpuspawner_image_stale{image="base"}']) == (1, 0)
    lab.trials.verdicts.clear()
    lab.run("scipy")
    lab.run("--rollback", "scipy")
    lab.run("--metrics", str(path), "scipy")
    assert figures(path)['gpuspawner_image_stale{image="scipy"}'] == 1


@pytest.mark.parametrize("before", [None, "", "gpuspawner_images_last_success_timestamp_seconds x\n"])
def test_without_any_success_there_is_no_figure_for_it(lab: Lab, tmp_path: Path, before: str | None) -> None:
    """Never zero for what is not known; an image that was never built has no age."""
    path = tmp_path / "images.prom"
    if before is not None:
        path.write_text(before)
    lab.trials.verdicts["base"] = bad("no")
    lab.run("--metrics", str(path), status=1)
    found = figures(path)
    assert "gpuspawner_images_last_success_timestamp_seconds" not in found
    assert found['gpuspawner_image_stale{image="vision"}'] == 1
    assert not any(name.startswith("gpuspawner_image_built") for name in found)


def test_metrics_that_cannot_be_written_are_an_error(lab: Lab) -> None:
    """The images are published all the same."""
    result = lab.run("--metrics", "/nowhere/x.prom", "base", status=2)
    assert "The file for Prometheus, /nowhere/x.prom, cannot be written: No such file or directory." in result.stderr
    assert "latest" in lab.tags("base")
