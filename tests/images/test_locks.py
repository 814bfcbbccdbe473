"""The folders themselves, without an engine: choices are locked, locks fit each other, each folder is complete."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.images.conftest import IMAGES, SHELF, line_of

CHOICES = sorted(IMAGES.glob("*/*requirements.in"))
# A lab's own images may do with less.
OURS = ("base", "cuda", "pytorch", "scipy", "tensorflow")
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==([0-9][^ ;]*)")
HEADINGS = (
    "## What is in it · 들어 있는 것",
    "## Adding a package for yourself · 패키지 추가",
    "## What lasts · 남는 것",
)


def lines(file: Path) -> list[str]:
    """What is left of a requirements file without comments."""
    found = (line.split(" #")[0].strip() for line in file.read_text().splitlines() if not line.startswith("#"))
    return [line for line in found if line]


def pins(lock: Path) -> dict[str, Version]:
    """Package → version."""
    matches = [PIN.fullmatch(line) for line in lines(lock)]
    return {canonicalize_name(match[1]): Version(match[2]) for match in matches if match}


def name_of(path: Path) -> str:
    return path.relative_to(IMAGES).as_posix()


@pytest.fixture(params=CHOICES, ids=name_of)
def choice(request: pytest.FixtureRequest) -> Path:
    """A file of what a person chose."""
    return Path(request.param)


def test_there_is_something_to_look_at() -> None:
    """The tests below are about these."""
    assert set(OURS) <= {choice.parent.name for choice in CHOICES}


def test_every_locked_package_has_one_version(choice: Path) -> None:
    """Nothing but `name==version`: no range, no address, no option."""
    lock = choice.with_suffix(".txt")
    assert [line for line in lines(lock) if not PIN.fullmatch(line)] == []
    assert len(lines(lock)) == len(pins(lock))


def test_no_lock_names_a_package_index(choice: Path) -> None:
    """Where packages come from is the building machine's business."""
    both = choice.read_text() + choice.with_suffix(".txt").read_text()
    assert not re.search(r"https?:|file:|--\w|^-[a-z]", both, re.MULTILINE)


def test_every_choice_is_locked_as_it_asks(choice: Path) -> None:
    """A line that was added, or a limit that was changed, without `scripts/lock-images` is found here."""
    locked = pins(choice.with_suffix(".txt"))
    for line in lines(choice):
        wanted = Requirement(line)
        found = locked.get(canonicalize_name(wanted.name))
        assert found is not None, f"{wanted.name} is not locked: scripts/lock-images"
        assert wanted.specifier.contains(found), f"{line} is locked as {found}: scripts/lock-images"


@pytest.mark.parametrize("name", SHELF)
def test_an_image_keeps_the_versions_of_what_it_stands_on(name: str) -> None:
    """The parents' layers stay as they are: nothing is installed over them."""
    own = IMAGES / name / "requirements.txt"
    for parent in line_of(SHELF[name]):
        above = IMAGES / parent / "requirements.txt"
        if parent == name or not (own.exists() and above.exists()):
            continue
        mine, theirs = pins(own), pins(above)
        assert {package: mine[package] for package in mine.keys() & theirs} == {
            package: theirs[package] for package in mine.keys() & theirs
        }


def test_the_servers_jupyterhub_is_the_hubs() -> None:
    """They speak with each other: one major version."""
    locked = pins(IMAGES / "base" / "server-requirements.txt")
    assert locked["jupyterhub"].major == Version(version("jupyterhub")).major


@pytest.mark.parametrize("name", OURS)
def test_a_folder_is_complete_and_a_word_in_its_readme_builds_nothing(name: str) -> None:
    """README, smoke test and choices are there, and the build does not see them."""
    beside = {"README.md", "smoke_test.py", "requirements.in", ".dockerignore"}
    assert beside <= {path.name for path in (IMAGES / name).iterdir()}
    assert not beside & set(SHELF[name].files)
    assert "requirements.txt" in SHELF[name].files


@pytest.mark.parametrize("name", OURS)
def test_a_readme_tells_students_the_three_things(name: str) -> None:
    """What is in the image, how to add a package for oneself, what lasts: in both languages."""
    text = (IMAGES / name / "README.md").read_text()
    assert [heading for heading in HEADINGS if heading not in text] == []
