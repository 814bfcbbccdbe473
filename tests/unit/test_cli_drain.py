"""`gpuspawner drain` and `undrain`: which card is meant, what is said, and what a Hub then reads."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpuspawner.cards import NAME, CardsFile
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.gpus import GpuUuid
from gpuspawner.quarantine import Struck
from tests.standins.engine import StandinEngine
from tests.standins.gpustate import DEFAULT_CARDS, GpuState, Process, nvml_environment
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS

ROOT = Path(__file__).parents[2]
CARDS = [gpu.uuid for gpu in asyncio.run(FakeGPUs("2x24GiB").inventory()).gpus]
ELSEWHERE = "GPU-FFFFFFFF-1111-4111-8111-FFFFFFFFFFFF"
ONE, OTHER = (card.uuid for card in DEFAULT_CARDS)


@dataclass
class Terminal:
    """A shell in some folder, with the environment of a lab server."""

    folder: Path
    environment: dict[str, str]

    @property
    def file(self) -> CardsFile:
        """What the Hub reads."""
        return CardsFile(self.folder / "state")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The program, as a process of its own."""
        command = [sys.executable, "-c", "from gpuspawner.cli import app; app()", *arguments]
        kept = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **self.environment, **environment}
        return subprocess.run(command, cwd=self.folder, env=kept, capture_output=True, text=True, check=False)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Two simulated cards, and the data folder where `scripts/run` makes it."""
    for name in ("GPUSPAWNER_STATE", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "state").mkdir()
    return Terminal(tmp_path, {"GPUSPAWNER_FAKE_GPUS": "2x24GiB"})


def test_a_card_is_taken_out_of_use_and_brought_back(terminal: Terminal) -> None:
    """Who, when and why are written down; twice is once."""
    done = terminal.run("drain", "1", "--reason", " fan is\n loud ", SUDO_USER="kim")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"#1 ({CARDS[1]}) is out of use: no new server gets it.")
    drained = terminal.file.read().drained
    assert list(drained) == [CARDS[1]]
    assert (drained[CARDS[1]].by, drained[CARDS[1]].reason) == ("kim", "fan is loud")
    assert abs((datetime.now(timezone.utc) - drained[CARDS[1]].at).total_seconds()) < 60
    assert terminal.run("undrain", "#1").stdout == f"#1 ({CARDS[1]}) is in use again.\n"
    again = terminal.run("undrain", "1")
    assert (again.returncode, again.stdout) == (0, f"#1 ({CARDS[1]}) was not out of use.\n")
    assert terminal.file.read().drained == {}


def test_undrain_clears_an_xid(terminal: Terminal) -> None:
    """It is the word of the admin that the card was looked after."""
    terminal.file.change(lambda record: record.strike(CARDS[0], Struck(datetime.now(timezone.utc), 79)))
    assert terminal.run("undrain", "0").stdout == f"XID 79 of #0 ({CARDS[0]}) is cleared.\n"
    assert terminal.file.read().struck == {}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        pytest.param("7", f"there is no card '7'. There are #0 ({CARDS[0]}), #1 ({CARDS[1]}).", id="index"),
        pytest.param("GPU-beef", "there is no card 'GPU-beef'. There are #0 (", id="unknown beginning"),
        pytest.param("", "there is no card ''. There are #0 (", id="nothing"),
        pytest.param(
            "GPU-0000",
            f"'GPU-0000' can mean #0 ({CARDS[0]}), #1 ({CARDS[1]}). Give more of the UUID, or the index.",
            id="ambiguous",
        ),
    ],
)
@pytest.mark.parametrize("command", ["drain", "undrain"])
def test_a_card_that_is_not_named_clearly_is_one_sentence_and_status_2(
    terminal: Terminal, command: str, asked: str, sentence: str
) -> None:
    """With the cards that there are; and nothing is written."""
    done = terminal.run(command, asked)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"gpuspawner {command}: {sentence}")
    assert len(done.stderr.splitlines()) == 1
    assert not (terminal.folder / "state" / NAME).exists()


def test_a_card_that_has_fallen_off_the_bus_can_be_named_by_its_uuid(terminal: Terminal) -> None:
    """It stays out when it comes back; to bring it back, the beginning is enough."""
    done = terminal.run("drain", ELSEWHERE)
    assert done.returncode == 0
    assert "It is not seen on this machine now; when it is, no server gets it." in done.stdout
    uuid = GpuUuid("GPU-" + ELSEWHERE[4:].lower())
    assert list(terminal.file.read().drained) == [uuid]
    assert terminal.run("undrain", "gpu-ffff").stdout == f"{uuid} is in use again.\n"


def test_without_a_driver_only_a_whole_uuid_says_which_card(terminal: Terminal, library: Path) -> None:
    """An index would be a guess."""
    terminal.environment["GPUSPAWNER_FAKE_GPUS"] = ""
    terminal.environment["GPUSPAWNER_TEST_GPUS"] = "/nonexistent"
    terminal.environment["LD_LIBRARY_PATH"] = str(library.parent)
    done = terminal.run("drain", "0")
    assert done.returncode == 2
    assert "the cards of this machine cannot be seen, so '0' says nothing. Give a whole UUID" in done.stderr
    assert "NVML is off (driver-not-loaded)" in done.stderr
    assert terminal.run("drain", ELSEWHERE).returncode == 0


def test_the_folder_is_named_by_option_or_environment(terminal: Terminal) -> None:
    """A wrong one is a sentence: it would reach no Hub."""
    other = terminal.folder / "other"
    other.mkdir()
    assert terminal.run("drain", "0", "--state", str(other)).returncode == 0
    assert terminal.run("drain", "1", GPUSPAWNER_STATE=str(other)).returncode == 0
    assert set(CardsFile(other).read().drained) == set(CARDS)
    wrong = terminal.run("drain", "0", "--state", "nowhere")
    assert wrong.returncode == 2
    assert "There is no folder nowhere. Name the Hub's data folder by --state or GPUSPAWNER_STATE" in wrong.stderr


def test_a_damaged_file_is_a_sentence(terminal: Terminal) -> None:
    """And it is left as it is."""
    path = terminal.folder / "state" / NAME
    path.write_text("{")
    for command in ("drain", "undrain"):
        done = terminal.run(command, "0")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"gpuspawner {command}: state/cards.json, which says what cards are drained")
    assert path.read_text() == "{"


def test_status_without_that_file_tells_all_the_rest(terminal: Terminal) -> None:
    """It may be for the Hub's user only: a sentence beside the tables, and exit status 1."""
    (terminal.folder / "state" / NAME).write_text("{")
    with StandinEngine() as engine:
        done = terminal.run("status", "--json", DOCKER_HOST=engine.url)
    assert done.returncode == 1
    assert done.stderr.startswith("gpuspawner status: state/cards.json, which says what cards are drained")
    assert len(json.loads(done.stdout)["cards"]) == 2


def test_a_wrong_number_of_simulated_cards(terminal: Terminal) -> None:
    """The variable is named."""
    done = terminal.run("drain", "0", GPUSPAWNER_FAKE_GPUS="many")
    assert (done.returncode, done.stderr[:58]) == (2, "gpuspawner drain: GPUSPAWNER_FAKE_GPUS cannot be read. Fak")


def test_status_shows_what_is_out_of_use_and_why(terminal: Terminal) -> None:
    """A drained card is looked after already: exit status 0. One with an XID is not: 1."""
    with StandinEngine() as engine:
        terminal.environment["DOCKER_HOST"] = engine.url
        terminal.run("drain", "1", "--reason", "fan is loud")
        shown = terminal.run("status")
        assert shown.returncode == 0, shown.stderr
        assert "out of use" in next(line for line in shown.stdout.splitlines() if line.startswith("#1"))
        assert "#1: This GPU was taken out of use by the admin: fan is loud." in shown.stdout
        card = json.loads(terminal.run("status", "--json").stdout)["cards"][1]
        assert card["state"] == "drained"
        assert card["fault"] == "This GPU was taken out of use by the admin: fan is loud."
        terminal.file.change(lambda record: record.strike(CARDS[0], Struck(datetime.now(timezone.utc), 79)))
        struck = terminal.run("status")
        assert struck.returncode == 1
        assert "#0: This GPU has reported an error (XID 79)" in struck.stdout


@pytest.mark.fault(13, 38)
def test_status_shows_who_is_there_from_outside(terminal: Terminal, library: Path) -> None:
    """It needs no Hub to see that a card nobody has leased is in use."""
    GpuState().with_card(ONE, processes=(Process(4711),)).write(terminal.folder / "gpus")
    terminal.environment = nvml_environment(library, terminal.folder / "gpus")
    with StandinEngine() as engine:
        done = terminal.run("status", "--json", DOCKER_HOST=engine.url, GPUSPAWNER_FAKE_GPUS="")
    states = {card["uuid"]: card["state"] for card in json.loads(done.stdout)["cards"]}
    assert states == {ONE: "fault", OTHER: "free"}
    assert done.returncode == 1
