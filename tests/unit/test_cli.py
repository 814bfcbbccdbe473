"""`gpuspawner status` on a stand-in engine: what it prints at 80 columns and more, its JSON, its exit status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import docker
import pytest
from typer.testing import CliRunner, Result

from gpuspawner.cli import app
from gpuspawner.cli import status as module
from gpuspawner.extensions import Extensions
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.gpus import GpuUuid, Inventory
from gpuspawner.leases import CardShare, Lease, Limits, Owner, encode
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests.standins.engine import EngineDown, EngineSlow, Fault, Http500, StandinEngine
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS

CARDS = [gpu.uuid for gpu in asyncio.run(FakeGPUs("3x24GiB").inventory()).gpus]
PYTORCH = "gpuspawner/pytorch:latest"
FOREIGN = "registry.example.org/lab/vision-course:2026-03"


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinEngine]:
    """An engine with three images, three simulated cards, and a terminal of 80 columns."""
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    with StandinEngine() as engine:
        for image in ("gpuspawner/scipy", PYTORCH, FOREIGN):
            engine.add_image(image)
        monkeypatch.setenv("DOCKER_HOST", engine.url)
        monkeypatch.setenv("GPUSPAWNER_FAKE_GPUS", "3x24GiB")
        monkeypatch.setenv("COLUMNS", "80")
        yield engine
        engine.faults.clear()


def serve(
    standin: StandinEngine,
    owner: Owner,
    *cards: CardShare,
    image: str = PYTORCH,
    start: bool = True,
    label: str = "1",
    limit: int | None = None,
) -> None:
    """A container that somebody started 125 minutes ago."""
    began = datetime.now(timezone.utc) - timedelta(minutes=125)
    limits = Limits(time_limit_seconds=limit)
    lease = Lease(f"{owner.user}{owner.server}", owner, "rtx4090-8g", cards, began, limits, image=image)
    name = f"jupyter-{owner.user}{owner.server}"
    client = docker.APIClient(base_url=standin.url, version="auto")
    client.create_container(image, name=name, labels={**encode(lease), "gpuspawner.lease": label})
    if start:
        client.start(name)
    client.close()


def run(*arguments: str) -> Result:
    """The program, in this process."""
    return CliRunner().invoke(app, ["status", *arguments])


def line_with(result: Result, *words: str) -> str:
    """The one line that holds all these words."""
    (line,) = [line for line in result.stdout.splitlines() if all(word in line for word in words)]
    return line


def test_an_idle_machine(standin: StandinEngine) -> None:
    """Every card free, no server, and the shelf with its age."""
    result = run()
    assert result.exit_code == 0
    assert "These cards are simulated" in result.stdout
    assert sum(" free " in line for line in result.stdout.splitlines()) == 3
    assert "No server is running." in result.stdout
    assert "none" in line_with(result, "pytorch", " ago")
    assert FOREIGN not in result.stdout


@pytest.mark.parametrize("columns", [80, 200])
def test_who_holds_what(standin: StandinEngine, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Users, named servers, shares, since when, and which images are older: nothing is cut off at 80 columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    serve(standin, Owner("kim"), CardShare(CARDS[0]))
    serve(standin, Owner("lee.sunghoon"), CardShare(CARDS[1], 8 * GIB))
    standin.add_image(PYTORCH)
    serve(standin, Owner("park", "exp-1"), CardShare(CARDS[1], 8 * GIB))
    serve(standin, Owner("choi"), image=FOREIGN, start=False)
    result = run()
    assert result.exit_code == 0
    assert all(len(line) <= columns for line in result.stdout.splitlines())
    assert "whole" in line_with(result, "#0 ", "RTX 4090", "kim")
    assert line_with(result, "shared: 16 GiB").rstrip().endswith("lee.sunghoon 8 GiB")
    assert "park/exp-1 8 GiB" in result.stdout
    assert " older" in line_with(result, "lee.sunghoon", "rtx4090-8g", "8 GiB of #1", "2 h 5 min", "running", "pytorch")
    assert " current" in line_with(result, "park/exp-1", "rtx4090-8g", "pytorch")
    assert " created " in line_with(result, "choi", "none", "current")
    assert "2 servers run an older image: a newer one is ready" in result.stdout
    assert line_with(result, "pytorch", " ago").rstrip().endswith("1 current, 2 older")
    assert "…" not in result.stdout
    rows = result.stdout.splitlines()
    images = rows[next(index for index, row in enumerate(rows) if row.startswith("image ")) + 1 :]
    assert FOREIGN in "".join(row.split("  ")[0].strip() for row in images)


def test_how_much_time_is_left(standin: StandinEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the labels, and by what was extended in the Hub's state folder; who has no limit has a dash."""
    monkeypatch.setenv("GPUSPAWNER_STATE", str(tmp_path))
    serve(standin, Owner("kim"), CardShare(CARDS[0]), limit=3 * 3600 + 30)
    serve(standin, Owner("lee"), limit=3600)
    serve(standin, Owner("choi"))
    serve(standin, Owner("park"), CardShare(CARDS[1], 8 * GIB), limit=3600)
    park = datetime.now(timezone.utc) + timedelta(minutes=10, seconds=30)
    Extensions(tmp_path).extend("park", park, {"park"})
    result = run()
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "2 h 5 min  55 min" in line_with(result, "kim", "running")
    assert "2 h 5 min    over" in line_with(result, "lee", "running")
    assert "2 h 5 min       -" in line_with(result, "choi", "running")
    assert "2 h 5 min  10 min" in line_with(result, "park", "running")
    servers = {server["user"]: server for server in json.loads(run("--json").stdout)["servers"]}
    assert servers["park"]["ends"] == park.isoformat(timespec="seconds")
    assert 600 < servers["park"]["left_seconds"] <= 630
    assert servers["lee"]["left_seconds"] == 0
    assert (servers["choi"]["ends"], servers["choi"]["left_seconds"]) == (None, None)


def test_a_damaged_state_file_does_not_hide_the_rest(
    standin: StandinEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The original ends are shown."""
    monkeypatch.setenv("GPUSPAWNER_STATE", str(tmp_path))
    (tmp_path / "extensions.json").write_text("{")
    serve(standin, Owner("kim"), CardShare(CARDS[0]), limit=3 * 3600 + 30)
    result = run()
    assert result.exit_code == 0
    assert "55 min" in line_with(result, "kim", "running")


def test_the_json_is_only_json(standin: StandinEngine) -> None:
    """For a program: the same, with units in the names."""
    serve(standin, Owner("kim"), CardShare(CARDS[0]))
    result = run("--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["simulated"] is True
    assert data["servers"][0]["user"] == "kim"
    assert data["servers"][0]["environment"] == "current"
    assert data["cards"][0]["holders"] == [{"user": "kim", "server": "", "memory_bytes": None}]


def test_something_to_look_after_is_a_sentence_and_status_1(standin: StandinEngine) -> None:
    """A card that is gone, labels that cannot be read, and two Hubs told apart."""
    serve(standin, Owner("kim"), CardShare(GpuUuid("GPU-deadbeef-0001")))
    serve(standin, Owner("lee", hub="other"), image="gpuspawner/scipy:latest")
    serve(standin, Owner("strange"), CardShare(CARDS[2]), label="9")
    result = run()
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "eef-0001 is held and not there any more" in words
    assert "The labels of jupyter-strange cannot be read" in words
    assert "lee (other)" in words
    assert "jupyter-strange" in line_with(result, "#2 ", "RTX 4090")


def test_a_machine_without_a_gpu(standin: StandinEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason and what to do; servers and images all the same; and nothing is wrong."""

    class Off:
        async def inventory(self) -> Inventory:
            return Inventory(trouble=Text("No driver; ask the admin."), detail="NVML is off. To do: install it.")

    monkeypatch.delenv("GPUSPAWNER_FAKE_GPUS")
    monkeypatch.setattr(module, "Nvml", Off)
    serve(standin, Owner("kim"), image="gpuspawner/scipy:latest")
    result = run()
    assert result.exit_code == 0
    assert "The cards cannot be seen. NVML is off. To do: install it." in result.stdout
    assert "ask the admin" not in result.stdout
    assert "none" in line_with(result, "kim", "scipy")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        pytest.param(EngineDown(), "the Docker engine does not answer (", id="down"),
        pytest.param(EngineDown(how="close"), "the Docker engine does not answer (", id="hangs up"),
        pytest.param(EngineSlow(60, on="list"), "the Docker engine does not answer in time (", id="hangs"),
        pytest.param(Http500(on="list"), "the Docker engine refuses to tell (the engine failed)", id="500"),
        pytest.param(
            Http500(on="list_images"), "the Docker engine refuses to tell (the engine failed)", id="500 at images"
        ),
    ],
)
@pytest.mark.parametrize("arguments", [pytest.param((), id="tables"), pytest.param(("--json",), id="json")])
def test_an_engine_that_does_not_tell_is_one_sentence_and_status_2(
    standin: StandinEngine, monkeypatch: pytest.MonkeyPatch, fault: Fault, sentence: str, arguments: tuple[str, ...]
) -> None:
    """On the error stream; nothing half known is printed, and no machine looks empty."""
    monkeypatch.setattr(module, "ENGINE_SECONDS", 1.0)
    serve(standin, Owner("kim"), CardShare(CARDS[0]))
    with standin.faults.during(fault):
        result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"gpuspawner status: {sentence}")
    assert len(result.stderr.splitlines()) == 1
    assert "tell the admin" not in result.stderr


def test_a_wrong_number_of_simulated_cards(standin: StandinEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named."""
    monkeypatch.setenv("GPUSPAWNER_FAKE_GPUS", "many")
    result = run()
    assert result.exit_code == 2
    assert result.stderr.startswith("gpuspawner status: GPUSPAWNER_FAKE_GPUS cannot be read. FakeGPUs takes a text")


def test_the_program_is_a_group_of_commands() -> None:
    """Without a command it lists them; each explains itself and its exit status."""
    listed = CliRunner().invoke(app, [])
    assert "status" in listed.output
    explained = run("--help")
    assert explained.exit_code == 0
    assert "Exit status" in explained.stdout
