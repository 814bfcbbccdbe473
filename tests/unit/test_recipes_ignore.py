"""What a build sees of a folder: .dockerignore, read as Docker reads it.

`tests/engine/test_shelf.py` compares the same rules with a real builder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.recipes import ContextFile, RecipeError, read_shelf, visible
from tests.unit.folders import BASE, folder

TREE = (
    "Dockerfile",
    "README.md",
    "a.py",
    "a.pyc",
    "docs/README.md",
    "docs/deep/x.md",
    "docs/a.pyc",
    "src/a.py",
    "src/ab/c",
)


def seen_of(tree: tuple[str, ...], ignore: str | bytes) -> list[str]:
    """The files of a tree that a build sees, without .dockerignore itself."""
    content = ignore.encode() if isinstance(ignore, str) else ignore
    seen = visible({**{path: ContextFile(b"") for path in tree}, ".dockerignore": ContextFile(content)})
    return sorted(set(seen) - {".dockerignore"})


def by_docker_py(root: Path, tree: tuple[str, ...], ignore: str) -> list[str]:
    """The same by docker-py's own matcher, which never leaves out the Dockerfile either."""
    for path in tree:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    cleaned = [line.strip() for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    return sorted(path for path in exclude_paths(str(root), cleaned) if (root / path).is_file())


@pytest.mark.parametrize(
    ("ignore", "seen"),
    [
        pytest.param("", TREE, id="nothing is left out"),
        pytest.param("*.pyc", [p for p in TREE if p != "a.pyc"], id="rooted, unlike Git's rule"),
        pytest.param("**/*.pyc", [p for p in TREE if not p.endswith(".pyc")], id="any depth"),
        pytest.param("docs", [p for p in TREE if not p.startswith("docs")], id="a folder"),
        pytest.param("/docs/", [p for p in TREE if not p.startswith("docs")], id="a folder, with slashes"),
        pytest.param(
            "docs\n!docs/README.md", [p for p in TREE if p[:5] != "docs/" or p == "docs/README.md"], id="taken back"
        ),
        pytest.param(
            "!docs/README.md\ndocs", [p for p in TREE if not p.startswith("docs")], id="the last rule decides"
        ),
        pytest.param("*", ["Dockerfile"], id="everything, but never the Dockerfile"),
        pytest.param("**", ["Dockerfile"], id="everything, in other words"),
        pytest.param("*\n!src", ["Dockerfile", "src/a.py", "src/ab/c"], id="all but one folder"),
        pytest.param("# docs\n\n  a.py  ", [p for p in TREE if p != "a.py"], id="comment, blanks"),
        pytest.param("./src/../a.p?", [p for p in TREE if p != "a.py"], id="untidy path, one character"),
        pytest.param("src/a[a-c]", [p for p in TREE if p != "src/ab/c"], id="a set of characters"),
        pytest.param("docs/**/x.md", [p for p in TREE if p != "docs/deep/x.md"], id="any depth below"),
        pytest.param("src/**", [p for p in TREE if not p.startswith("src")], id="all that is below"),
        pytest.param("*\n!docs/deep/x.md", ["Dockerfile", "docs/deep/x.md"], id="all but one file"),
        pytest.param("docs\n!docs/deep\ndocs/deep/x.md", [p for p in TREE if p[:5] != "docs/"], id="there and back"),
        pytest.param("Dockerfile\n.dockerignore", TREE, id="what the builder itself needs"),
        pytest.param(".\n..\n/\n./", TREE, id="the folder itself is no file"),
    ],
)
def test_dockerignore_is_read_as_docker_reads_it(ignore: str, seen: list[str], tmp_path: Path) -> None:
    """The table says what Docker does, docker-py agrees, and so do we."""
    assert seen_of(TREE, ignore) == sorted(seen)
    assert by_docker_py(tmp_path, TREE, ignore) == sorted(seen)


ODD = ("Dockerfile", "!odd", "[z].txt", "^.txt", "a.py", "a.txt", "b.txt", "src/a.py", "x y.txt", "z.txt")


@pytest.mark.parametrize(
    ("ignore", "left_out", "docker_py_agrees"),
    [
        pytest.param("[^a].txt", ["^.txt", "b.txt", "z.txt"], False, id="all but these characters"),
        pytest.param("\\[z].txt", ["[z].txt"], False, id="a bracket that is meant"),
        pytest.param("\\!odd", ["!odd"], False, id="an exclamation mark that is meant"),
        pytest.param("[\\^].txt", ["^.txt"], True, id="a caret that is meant"),
        pytest.param("\ufeff*.py", ["a.py"], False, id="byte order mark"),
        pytest.param("**.py", [], True, id="two stars within a name stand for folders only"),
        pytest.param("**t.txt\n**/a.py", ["a.py", "src/a.py"], True, id="and so with a beginning"),
        pytest.param("../src", [], False, id="outside of the folder"),
    ],
)
def test_odd_patterns_mean_what_they_mean_to_docker(
    ignore: str, left_out: list[str], docker_py_agrees: bool, tmp_path: Path
) -> None:
    """Each line was tried with both builders of Docker 20.10; where docker-py's own matcher differs, it is wrong."""
    assert seen_of(ODD, ignore) == sorted(set(ODD) - set(left_out))
    assert (by_docker_py(tmp_path, ODD, ignore) == sorted(set(ODD) - set(left_out))) is docker_py_agrees


def test_spaces_and_comments_within_a_line_are_part_of_it() -> None:
    """Only around a pattern they do not count, and only at its beginning a # begins a comment."""
    assert seen_of(ODD, "  x y.txt  ") == sorted(set(ODD) - {"x y.txt"})
    assert seen_of(ODD, "a.txt # why") == sorted(ODD)
    assert seen_of(ODD, " # a.txt\na.txt") == sorted(set(ODD) - {"a.txt"})


def test_a_file_that_is_not_utf_8_still_counts() -> None:
    """One letter from another age does not open the folder."""
    assert seen_of(ODD, b"\xe4.txt\na.txt") == sorted(set(ODD) - {"a.txt"})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        pytest.param("[z-a]", r"'\[z-a\]' in .dockerignore is no pattern", id="a range backwards"),
        pytest.param("[a", r"'\[a' in .dockerignore is no pattern that Docker knows: '\[' has no end", id="no end"),
        pytest.param("[]a].txt", r"'\[\]a\].txt' in .dockerignore is no pattern", id="nothing in it"),
        pytest.param("!", "'!' alone in .dockerignore", id="taken back, but what"),
        pytest.param("  !  ", "'!' alone in .dockerignore", id="the same with spaces"),
    ],
)
def test_a_pattern_that_docker_does_not_know_is_refused(pattern: str, message: str) -> None:
    """As Docker does, instead of guessing."""
    with pytest.raises(RecipeError, match=message):
        read_shelf({"image": folder(BASE) | {".dockerignore": ContextFile(pattern.encode())}})


@given(st.lists(st.sampled_from(["a", "ab", "*", "**", "?", "*.md"]), min_size=1, max_size=3), st.booleans())
def test_a_pattern_leaves_out_all_that_is_below_what_it_matches(parts: list[str], taken_back: bool) -> None:
    """A folder that is left out is left out whole, and `!` takes it back whole."""
    pattern = "/".join(parts)
    paths = ["a", "ab/x", "a/ab/x.md", "x.md", "a/a/a/a", "b"]
    lines = ["**", f"!{pattern}"] if taken_back else [pattern]
    folder_of = {path: ContextFile(b"") for path in paths}
    seen = visible({**folder_of, ".dockerignore": ContextFile("\n".join(lines).encode())})
    for path in paths:
        deeper = visible(
            {f"{path}/deeper/still": ContextFile(b""), ".dockerignore": ContextFile("\n".join(lines).encode())}
        )
        if (path in seen) == taken_back:
            assert (f"{path}/deeper/still" in deeper) == taken_back
