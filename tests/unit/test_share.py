"""What is shipped beside the package, against the program that it starts: the systemd units, and the pages about it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpuspawner.build_images import report
from gpuspawner.build_images.command import program

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "share/systemd"
SERVICE, TIMER = "gpuspawner-images.service", "gpuspawner-images.timer"
INSTALLED = "/opt/gpuspawner"
PAGE = (REPOSITORY / "docs/howto/images.md").read_text(encoding="utf-8")
TIMER_PAGE = (REPOSITORY / "docs/howto/refresh-from-a-timer.md").read_text(encoding="utf-8")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def settings(unit: str) -> list[tuple[str, str]]:
    """The settings of a unit in their order; the same one may come more than once."""
    lines = (UNITS / unit).read_text(encoding="utf-8").splitlines()
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines if re.match(r"\w+=", line)]


def setting(unit: str, name: str) -> str:
    """The only value of a setting."""
    (value,) = [value for key, value in settings(unit) if key == name]
    return value


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The options that the program's --help shows."""
    shown = CliRunner().invoke(program(REPOSITORY / "images"), ["--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    return {line.split()[0] for line in shown.output.splitlines() if line.startswith("  --")} - {"--help"}


def verified(folder: Path, spoil: tuple[str, str] = ("", "")) -> list[str]:
    """What systemd has to say about the units, as they would stand on a machine where gpuspawner is this folder."""
    systemd_analyze = shutil.which("systemd-analyze")
    if systemd_analyze is None:
        pytest.skip("there is no systemd-analyze: install the package systemd")
    for unit in (SERVICE, TIMER):
        text = (UNITS / unit).read_text(encoding="utf-8").replace(f"{INSTALLED}/.venv/bin/python", sys.executable)
        (folder / unit).write_text(text.replace(INSTALLED, str(REPOSITORY)).replace(*spoil), encoding="utf-8")
    command = [systemd_analyze, "verify", "--man=no", str(folder / TIMER), str(folder / SERVICE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Other units of this machine may have faults of their own.
    return [line for line in (done.stdout + done.stderr).splitlines() if "gpuspawner-images" in line]


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """Every setting is one that systemd knows, with a value that it takes."""
    assert verified(tmp_path) == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(("ProtectSystem=", "ProtectSytem="), id="a misspelt setting"),
        pytest.param(("OnCalendar=*-*-* 03:30", "OnCalendar=at night"), id="a time that is none"),
        pytest.param(("build_images.py --pull", "build_images.py' --pull"), id="a quote that does not end"),
    ],
)
def test_a_fault_in_the_units_is_found(tmp_path: Path, spoil: tuple[str, str]) -> None:
    """The test above can fail."""
    assert verified(tmp_path, spoil) != []


def test_the_service_starts_the_program_of_the_repository() -> None:
    """Where the unit says that the program lies, below the folder that an admin changes, it lies."""
    _, script, *_ = setting(SERVICE, "ExecStart").split()
    assert (REPOSITORY / Path(script).relative_to(INSTALLED)).is_file()


def test_the_service_gives_options_that_the_program_has(options: set[str]) -> None:
    """No option of the unit is one that was renamed since."""
    given = set(OPTION.findall(setting(SERVICE, "ExecStart")))
    assert {"--pull", "--json", "--metrics"} <= given
    assert given <= options


def test_the_service_may_write_what_it_names() -> None:
    """The file for Prometheus and the logs lie in folders that the unit leaves writable."""
    metrics = Path(setting(SERVICE, "ExecStart").split("--metrics ")[1].split()[0])
    writable = {value.removeprefix("-") for key, value in settings(SERVICE) if key == "ReadWritePaths"}
    assert str(metrics.parent) in writable
    assert metrics.suffix == ".prom"
    environment = dict(value.split("=", 1) for key, value in settings(SERVICE) if key == "Environment")
    assert environment["XDG_STATE_HOME"] == "/var/lib"
    assert setting(SERVICE, "StateDirectory") == "gpuspawner"
    assert environment["BUILDX_CONFIG"].startswith(f"/var/cache/{setting(SERVICE, 'CacheDirectory')}/")


def test_the_timer_makes_up_for_a_missed_night() -> None:
    """A server that was off at night is refreshed after its next start, and not all of them at the same second."""
    assert setting(TIMER, "Persistent") == "true"
    assert setting(TIMER, "RandomizedDelaySec")
    assert Path(TIMER).stem == Path(SERVICE).stem, "a timer starts the service of the same name"


def test_every_option_has_its_place_on_the_page(options: set[str]) -> None:
    """An option that nobody explains is an option that nobody finds."""
    assert {option for option in options if not re.search(rf"{option}(?![\w-])", PAGE)} == set()


@pytest.mark.parametrize("page", [pytest.param(PAGE, id="images"), pytest.param(TIMER_PAGE, id="timer")])
def test_the_pages_type_options_that_the_program_has(page: str, options: set[str]) -> None:
    """No command on a page ends in "No such option"."""
    typed = [line for line in page.splitlines() if "build_images.py" in line]
    assert typed
    assert {option for line in typed for option in OPTION.findall(line)} - {"--help"} <= options


def test_every_series_is_explained(tmp_path: Path) -> None:
    """What the program writes for Prometheus stands on the page about it, by name."""
    nothing: Any = None
    report.write_metrics(tmp_path / "images.prom", (), nothing)
    series = re.findall(r"# TYPE (\S+)", (tmp_path / "images.prom").read_text(encoding="utf-8"))
    assert series
    assert [name for name in series if f"`{name}" not in TIMER_PAGE] == []
