"""The rules of the image shelf: what stands on what, and the order of building."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.recipes import ContextFile, RecipeError, Shelf, in_order, read_shelf
from tests.unit.folders import BASE, folder, shelf_of, shelves

# --- what stands on what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dockerfile", "parent", "line"),
    [
        pytest.param("FROM gpuspawner/base\n", "gpuspawner/base", 1, id="plain"),
        pytest.param("from gpuspawner/base", "gpuspawner/base", 1, id="small letters, no newline"),
        pytest.param("FROM gpuspawner/base:latest\n", "gpuspawner/base:latest", 1, id="latest"),
        pytest.param(
            "# a note\n\nFROM gpuspawner/base\r\nRUN x\r\n", "gpuspawner/base", 3, id="comment, Windows lines"
        ),
        pytest.param("FROM --platform=linux/amd64 gpuspawner/base AS x\n", "gpuspawner/base", 1, id="platform, name"),
        pytest.param("ARG P=gpuspawner/base\nFROM ${P}\n", "gpuspawner/base", 2, id="argument"),
        pytest.param('ARG P="gpuspawner/base"\nFROM $P\n', "gpuspawner/base", 2, id="quoted argument"),
        pytest.param(
            "ARG N=base\nARG P=gpuspawner/${N}\nFROM $P\n", "gpuspawner/base", 3, id="argument of an argument"
        ),
        pytest.param("FROM ${P:-gpuspawner/base}\n", "gpuspawner/base", 1, id="default in place"),
        pytest.param("ARG T=1\nFROM gpuspawner/base${T:+:latest}\n", "gpuspawner/base:latest", 2, id="alternative"),
        pytest.param("FROM debian AS a\nFROM gpuspawner/base\n", "gpuspawner/base", 2, id="last stage counts"),
        pytest.param("FROM gpuspawner/base AS a\nFROM debian\nFROM A\n", "gpuspawner/base", 1, id="stage on a stage"),
        pytest.param("FROM \\\n  # why\n  gpuspawner/base\n", "gpuspawner/base", 1, id="continued over a comment"),
        pytest.param("# escape=`\nFROM `\n gpuspawner/base\n", "gpuspawner/base", 2, id="other escape character"),
        pytest.param("\ufeffFROM gpuspawner/base\n", "gpuspawner/base", 1, id="byte order mark"),
        pytest.param(
            "FROM gpuspawner/base\nRUN <<END\nFROM debian\nEND\n", "gpuspawner/base", 1, id="FROM in a heredoc"
        ),
        pytest.param("FROM debian@sha256:12ab\n", "debian@sha256:12ab", 1, id="foreign, by digest"),
    ],
)
def test_the_parent_is_what_the_last_from_line_stands_on(dockerfile: str, parent: str, line: int) -> None:
    """However a FROM line is written, the image and its line are found."""
    recipe = shelf_of(base=BASE, child=dockerfile)["child"]
    assert (recipe.parent.reference, recipe.parent.line) == (parent, line)
    assert recipe.parents == (("base",) if "gpuspawner" in parent else ())


@pytest.mark.parametrize(
    "borrowing",
    [
        pytest.param("COPY --from=gpuspawner/base /a /b", id="copy"),
        pytest.param("COPY --link --from=gpuspawner/base:latest /a /b", id="copy, after another flag"),
        pytest.param("RUN --mount=type=bind,from=gpuspawner/base,target=/x ls /x", id="mount"),
    ],
)
def test_what_is_borrowed_from_an_image_is_built_before(borrowing: str) -> None:
    """An image that only lends files has to be there too."""
    shelf = shelf_of(base=BASE, child=f"FROM debian\n{borrowing}\n")
    assert shelf["child"].parents == ("base",)
    assert shelf["child"].parent.reference == "debian"


@pytest.mark.parametrize(
    ("dockerfile", "given", "arguments", "inner"),
    [
        pytest.param("ARG BASE=a\nFROM ${BASE}\n", {}, {"BASE": "a"}, set(), id="before FROM"),
        pytest.param("ARG V\nFROM a\nARG V\n", {}, {"V": None}, {"V"}, id="without a default"),
        pytest.param("ARG V=1\nFROM a\nARG V\n", {}, {"V": "1"}, {"V"}, id="the default from above"),
        pytest.param("FROM a\nARG V=1 W='2'\n", {"V": "3"}, {"V": "3", "W": "2"}, {"V", "W"}, id="two in a line"),
        pytest.param("FROM a\n", {"V": "3"}, {}, set(), id="given and not declared"),
    ],
)
def test_what_a_dockerfile_declares(
    dockerfile: str, given: dict[str, str], arguments: dict[str, str | None], inner: set[str]
) -> None:
    """Arguments with what they will be, and those of them that steps can see."""
    recipe = read_shelf({"a": {"Dockerfile": ContextFile(dockerfile.encode())}}, given)["a"]
    assert (recipe.arguments, recipe.inner_arguments) == (arguments, frozenset(inner))


def test_copying_from_a_stage_is_not_borrowing() -> None:
    """A stage's name or number is no image."""
    recipe = shelf_of(child="FROM debian AS made\nFROM debian\nCOPY --from=made /a /b\nCOPY --from=0 /a /b\n")["child"]
    assert [source.reference for source in recipe.sources] == ["debian", "debian"]


def test_a_given_argument_beats_the_default_and_an_outer_one_is_not_seen_inside() -> None:
    """Docker's scopes: an ARG before FROM fills in FROM lines only, until it is declared again."""
    dockerfile = "ARG BASE=debian\nARG AGAIN=1\nFROM ${BASE}\nARG AGAIN\nARG INSIDE=2\n"
    recipe = read_shelf({"a": folder(dockerfile)}, {"BASE": "ubuntu", "UNKNOWN": "x"})["a"]
    assert recipe.parent.reference == "ubuntu"
    assert recipe.arguments == {"BASE": "ubuntu", "AGAIN": "1", "INSIDE": "2"}
    assert recipe.inner_arguments == {"AGAIN", "INSIDE"}


@pytest.mark.parametrize(
    ("dockerfile", "needs_it"),
    [
        pytest.param("FROM a\nRUN --mount=type=cache,target=/x pip install y\n", True, id="mount"),
        pytest.param("FROM a\nCOPY <<END /etc/x\nhello\nEND\n", True, id="heredoc"),
        pytest.param("FROM a\nRUN echo 1 << 2 && cat --mount\n", False, id="looks like it"),
        pytest.param("FROM a\nRUN pip install y\n", False, id="plain"),
    ],
)
def test_what_only_buildkit_can_build_is_known_beforehand(dockerfile: str, needs_it: bool) -> None:
    """So that the classic builder is not tried in vain."""
    assert shelf_of(a=dockerfile)["a"].needs_buildkit is needs_it


@pytest.mark.parametrize(
    ("dockerfiles", "message"),
    [
        pytest.param({"a": "RUN x\n"}, "images/a/Dockerfile:1: there is no FROM line", id="no FROM"),
        pytest.param({"a": ""}, "images/a/Dockerfile:1: there is no FROM line", id="empty"),
        pytest.param({"a": "ARG P\nFROM ${P}\n"}, "images/a/Dockerfile:2: FROM ${P} names no image", id="no value"),
        pytest.param(
            {"a": BASE, "b": "#\nFROM gpuspawner/nope\n"},
            "images/b/Dockerfile:2: it stands on gpuspawner/nope, but there is no folder 'nope' beside it.",
            id="unknown parent",
        ),
        pytest.param(
            {"a": "FROM gpuspawner/a\n"}, "images/a/Dockerfile:1 stands on gpuspawner/a: a circle", id="on itself"
        ),
        pytest.param(
            {"a": "FROM gpuspawner/b\n", "b": "#\nFROM gpuspawner/a\n", "c": "FROM gpuspawner/a\n"},
            "images/a/Dockerfile:1 stands on gpuspawner/b; images/b/Dockerfile:2 stands on gpuspawner/a: a circle",
            id="circle of two",
        ),
        pytest.param({"Big": BASE}, "images/Big: no image can be named so", id="capital letter"),
        pytest.param({"a": "FROM\n"}, "images/a/Dockerfile:1: FROM  names no image", id="FROM alone"),
    ],
)
def test_a_shelf_that_cannot_be_built_is_refused_with_path_and_line(dockerfiles: dict[str, str], message: str) -> None:
    """The admin reads where to look."""
    with pytest.raises(RecipeError) as refused:
        shelf_of(**dockerfiles)
    assert str(refused.value).startswith(message)


def test_a_folder_without_a_dockerfile_is_refused() -> None:
    """An empty folder is a mistake, not an image."""
    with pytest.raises(RecipeError, match="images/notes: there is no Dockerfile"):
        read_shelf({"notes": {"README.md": ContextFile(b"")}})


# --- the order --------------------------------------------------------------------------------------------------------


def test_a_name_brings_what_it_stands_on_and_nothing_else() -> None:
    """`build_images.py scipy` builds base and scipy."""
    shelf = shelf_of(scipy="FROM gpuspawner/base\n", base=BASE, torch="FROM gpuspawner/base\n")
    assert [recipe.name for recipe in in_order(shelf, ["scipy"])] == ["base", "scipy"]
    assert [recipe.name for recipe in in_order(shelf, shelf)] == ["base", "scipy", "torch"]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """A slip of the pen is answered by what there is."""
    with pytest.raises(RecipeError, match=r"There is no image 'scipi'\. There is: base\."):
        in_order(shelf_of(base=BASE), ["scipi"])


@given(shelves(), st.data())
def test_parents_come_first_and_each_image_once(shelf: Shelf, data: st.DataObject) -> None:
    """Whatever the tree and the question, the order can be built as it stands."""
    wanted = data.draw(st.lists(st.sampled_from(sorted(shelf)), max_size=4))
    order = [recipe.name for recipe in in_order(shelf, wanted)]
    assert len(set(order)) == len(order)
    assert set(wanted) <= set(order)
    for place, name in enumerate(order):
        assert set(shelf[name].parents) <= set(order[:place])
        assert name in wanted or any(name in shelf[other].parents for other in order)
