"""The page of faults and the tests that carry their numbers say the same: nothing is missing, nothing is made up.

The marks are read from the source of the tests, so that those count as well which cannot run on this machine.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "faults.md"
NUMBERS = range(1, 50)
REASONS = ("Cannot happen: ", "Later: page: ", "Later: guard: ", "Later: doctor: ")


@dataclass
class Entry:
    """One fault on the page: its items, each in one line, and the tests that it names."""

    number: int
    title: str
    items: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Why there is no test, or what is still to come."""
        return [item for item in self.items if not item.startswith(("Seen in: ", "Here: ", "Tests:"))]


def entries(page: str) -> list[Entry]:
    """What stands under each `### number. title`."""
    found = []
    for block in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        number, title = re.match(r"(\d+)\. (.+)", block).groups()  # type: ignore[union-attr]  # shown by the failure
        body = re.split(r"^## ", block, flags=re.MULTILINE)[0]
        items = [" ".join(item.split()) for item in re.split(r"^- ", body, flags=re.MULTILINE)[1:]]
        found.append(Entry(int(number), title, items, re.findall(r"^  - `(\S+)`$", body, flags=re.MULTILINE)))
    return found


def is_mark(node: ast.AST) -> bool:
    """Whether this is `pytest.mark.fault`."""
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.fault"


def marked(source: str) -> Iterator[tuple[str, int]]:
    """The tests of a file with each number that they carry, in the order of the file."""

    def walk(body: list[ast.stmt], inside: str) -> Iterator[tuple[str, int]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{inside}{node.name}::")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and is_mark(mark.func):
                        for number in mark.args:
                            yield inside + node.name, ast.literal_eval(number)

    yield from walk(ast.parse(source).body, "")


ENTRIES = entries(PAGE.read_text(encoding="utf-8"))
SOURCES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("tests/**/*.py"))}
MARKED = [(f"{path.as_posix()}::{test}", number) for path, source in SOURCES.items() for test, number in marked(source)]


def test_every_number_is_on_the_page_once_and_in_order() -> None:
    """Forty-nine."""
    assert [entry.number for entry in ENTRIES] == list(NUMBERS)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.number))
def test_an_entry_names_the_tests_that_carry_its_number_and_no_others(entry: Entry) -> None:
    """A test that is renamed, removed or marked has to be so on the page as well."""
    carrying = [test for test, number in MARKED if number == entry.number]
    missing = [f"  - `{test}`" for test in carrying if test not in entry.tests]
    assert not missing, "add to the page:\n" + "\n".join(missing)
    wrong = [test for test in entry.tests if test not in carrying]
    assert not wrong, f"these tests do not exist or do not carry the number {entry.number}: {wrong}"
    assert len(set(entry.tests)) == len(entry.tests)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.number))
def test_an_entry_says_where_it_was_seen_what_happens_here_and_why_it_has_no_test(entry: Entry) -> None:
    """The reason is one of a closed set; a fault with tests may have one as well, for what is still to come."""
    assert re.match(r"Seen in: .*(#\d+|CVE-|Slurm \d|Rubin)", entry.items[0]), entry.items
    assert re.match(r"Here: .{20,}\.\)?$", entry.items[1]), entry.items
    for reason in entry.reasons:
        assert reason.startswith(REASONS), reason
        assert len(reason.split()) > 6, reason
    assert entry.tests or entry.reasons


def test_every_mark_is_on_a_test_and_has_numbers_of_the_page() -> None:
    """A mark anywhere else, or with something else in it, would count for nobody."""
    marks = sum(is_mark(node) for source in SOURCES.values() for node in ast.walk(ast.parse(source)))
    assert marks == len({test for test, _ in MARKED})
    assert {number for _, number in MARKED} <= set(NUMBERS)


def test_what_is_read_from_a_test_file() -> None:
    """Functions and methods, several numbers, other marks beside it; nothing of other functions and strings."""
    source = """
@pytest.mark.fault(1, 2)
@pytest.mark.parametrize("x", [1])
async def test_one(x): "pytest.mark.fault(9)"
class TestIt:
    @pytest.mark.fault(3)
    def test_two(self): ...
@pytest.mark.fault(4)
def other(): ...
def test_three(): ...
"""
    assert list(marked(source)) == [("test_one", 1), ("test_one", 2), ("TestIt::test_two", 3)]


def test_what_is_read_from_the_page() -> None:
    """An entry ends where the next one or the next part begins; an item may go over several lines."""
    page = """# Page
- not an entry
## Part
### 1. First thing

- Seen in: x#1
- Here: so
  and so.
- Tests:
  - `tests/a.py::test_a`
  - `tests/b.py::T::test_b`
- Later: page: something

## Next part
- nothing
### 2. Second
- Here: x.
"""
    first, second = entries(page)
    assert (first.number, first.title) == (1, "First thing")
    assert first.items[:2] == ["Seen in: x#1", "Here: so and so."]
    assert first.tests == ["tests/a.py::test_a", "tests/b.py::T::test_b"]
    assert first.reasons == ["Later: page: something"]
    assert (second.number, second.items, second.tests) == (2, ["Here: x."], [])
