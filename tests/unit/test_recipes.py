"""The rules of the image shelf: what stands on what, the order of building, what a build sees, and what is stale."""

from __future__ import annotations

from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.recipes import (
    HASH_LABEL,
    MOST_PARTS,
    NEUTRAL_ARGUMENTS,
    PARTS_LABEL,
    ContextFile,
    Folder,
    RecipeError,
    Shelf,
    fingerprints,
    in_order,
    read_shelf,
    reasons,
    visible,
)


def folder(dockerfile: str, **files: str) -> dict[str, ContextFile]:
    """A folder with a Dockerfile and text files (`_` in a name stands for a dot)."""
    texts = {"Dockerfile": dockerfile, **{name.replace("_", "."): text for name, text in files.items()}}
    return {name: ContextFile(text.encode()) for name, text in texts.items()}


def shelf_of(**dockerfiles: str) -> Shelf:
    return read_shelf({name: folder(text) for name, text in dockerfiles.items()})


BASE = "FROM debian:12-slim\n"


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


@st.composite
def shelves(draw: st.DrawFn) -> Shelf:
    """Shelves of up to eight images, each of which stands on earlier ones (in an order that names do not give away)."""
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1, max_size=8, unique=True))
    folders = {}
    for index, name in enumerate(names):
        parents = draw(st.lists(st.sampled_from(names[:index]), max_size=3, unique=True)) if index else []
        lines = [f"FROM gpuspawner/{parent} AS s{number}" for number, parent in enumerate(parents)] or ["FROM debian"]
        folders[name] = folder("\n".join(lines), data=draw(st.text(max_size=5)))
    return read_shelf(dict(draw(st.permutations(sorted(folders.items())))))


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


# --- what a build sees ------------------------------------------------------------------------------------------------

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
    ],
)
def test_dockerignore_is_read_as_docker_reads_it(ignore: str, seen: list[str], tmp_path: Path) -> None:
    """The table says what Docker does, docker-py agrees, and so do we."""
    files = {path: ContextFile(b"") for path in TREE}
    ours = visible({**files, ".dockerignore": ContextFile(ignore.encode())})
    assert sorted(set(ours) - {".dockerignore"}) == sorted(seen)
    assert sorted(seen) == sorted(_by_docker_py(tmp_path, ignore.splitlines()))


def _by_docker_py(root: Path, patterns: list[str]) -> set[str]:
    for path in TREE:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    cleaned = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    return {path for path in exclude_paths(str(root), cleaned) if (root / path).is_file()}


def test_a_pattern_that_docker_does_not_know_is_refused() -> None:
    """As Docker does, instead of guessing."""
    with pytest.raises(RecipeError, match=r"'\[z-a\]' in .dockerignore is no pattern"):
        read_shelf({"image": folder(BASE) | {".dockerignore": ContextFile(b"[z-a]")}})


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


# --- what is stale ----------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_characters="\r\0", codec="utf-8"), max_size=30)
folders = st.dictionaries(st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4})?", fullmatch=True), texts, max_size=5)


def digest_of(files: Folder, arguments: dict[str, str] | None = None, outside: dict[str, str] | None = None) -> str:
    return fingerprints(read_shelf({"image": files}, arguments), outside=outside)["image"].digest


@given(folders, st.randoms())
def test_order_and_line_endings_do_not_matter(files: dict[str, str], random: object) -> None:
    """The same folder checked out on Windows, or listed in another order, is the same image."""
    plain = {**{path: ContextFile(text.encode()) for path, text in files.items()}, **folder(BASE)}
    windows = {path: ContextFile(file.content.replace(b"\n", b"\r\n")) for path, file in plain.items()}
    shuffled = list(windows.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert digest_of(plain) == digest_of(dict(shuffled))


@given(folders.filter(bool), st.data())
def test_content_mode_and_kind_of_every_file_matter(files: dict[str, str], data: st.DataObject) -> None:
    """Each of these changes what is in the image."""
    plain = {**{path: ContextFile(text.encode()) for path, text in files.items()}, **folder(BASE)}
    path = data.draw(st.sampled_from(sorted(files)))
    content = plain[path].content
    others = [
        {**plain, path: ContextFile(content + b"x")},
        {**plain, path: ContextFile(content, executable=True)},
        {**plain, path: ContextFile(content, is_link=True)},
        {**plain, f"{path}.bak": ContextFile(content)},
        {name: file for name, file in plain.items() if name != path},
    ]
    digests = {digest_of(other) for other in (plain, *others)}
    assert len(digests) == len(others) + 1


def test_carriage_returns_in_a_binary_file_matter() -> None:
    """Only text has line endings."""
    one, other = (folder(BASE) | {"x": ContextFile(b"\0" + end)} for end in (b"\n", b"\r\n"))
    assert digest_of(one) != digest_of(other)


def test_arguments_matter_unless_they_only_name_a_mirror() -> None:
    """Where packages are fetched from says nothing about what is in them."""
    files = folder(BASE + "ARG VERSION=1\nARG PIP_INDEX_URL\n")
    assert digest_of(files) != digest_of(files, {"VERSION": "2"})
    assert digest_of(files) == digest_of(files, {"VERSION": "1"})
    assert digest_of(files) == digest_of(files, {"PIP_INDEX_URL": "https://mirror.example/simple", "UNDECLARED": "x"})
    assert "HTTPS_PROXY" in NEUTRAL_ARGUMENTS


def test_what_goes_in_from_outside_matters_to_all_that_stand_on_it() -> None:
    """New certificates make the lowest image stale, and so everything on it."""
    shelf = shelf_of(base=BASE, leaf="FROM gpuspawner/base\n")
    before, after = fingerprints(shelf), fingerprints(shelf, outside={"this machine's CA bundle": "x"})
    assert before["base"].digest != after["base"].digest
    assert before["leaf"].digest != after["leaf"].digest


@given(shelves(), st.data())
def test_a_change_makes_exactly_the_images_above_it_stale(shelf: Shelf, data: st.DataObject) -> None:
    """A change in a leaf touches only the leaf; a change in the base touches all."""
    changed = data.draw(st.sampled_from(sorted(shelf)))
    files = {name: dict(recipe.files) for name, recipe in shelf.items()}
    files[changed]["new"] = ContextFile(b"x")
    before, after = fingerprints(shelf), fingerprints(read_shelf(files))
    stale = {name for name in shelf if reasons(after[name], before[name].labels())}
    assert stale == {name for name in shelf if changed in {recipe.name for recipe in in_order(shelf, [name])}}


def _labels(files: Folder, arguments: dict[str, str] | None = None) -> dict[str, str]:
    shelf = read_shelf({"base": folder(BASE), "image": files}, arguments)
    return fingerprints(shelf)["image"].labels()


LEAF = "FROM gpuspawner/base\nARG VERSION=1\n"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(None, ("never built",), id="no image"),
        pytest.param({}, ("not built by this program",), id="someone else's image"),
        pytest.param(_labels(folder(LEAF, a_txt="1")), (), id="the same"),
        pytest.param(_labels(folder(LEAF + "#\n", a_txt="1")), ("Dockerfile changed",), id="Dockerfile"),
        pytest.param(_labels(folder(LEAF, a_txt="2")), ("a.txt changed",), id="file"),
        pytest.param(_labels(folder(LEAF)), ("a.txt is new",), id="new file"),
        pytest.param(_labels(folder(LEAF, a_txt="1", b_txt="")), ("b.txt is gone",), id="file gone"),
        pytest.param(_labels(folder(LEAF, a_txt="1"), {"VERSION": "0"}), ("argument VERSION changed",), id="argument"),
        pytest.param({HASH_LABEL: "x"}, ("its folder changed",), id="no parts"),
        pytest.param({HASH_LABEL: "x", PARTS_LABEL: "[1"}, ("its folder changed",), id="broken parts"),
        pytest.param({HASH_LABEL: "x", PARTS_LABEL: "[1]"}, ("its folder changed",), id="strange parts"),
    ],
)
def test_a_stale_image_says_why(labels: dict[str, str] | None, expected: tuple[str, ...]) -> None:
    """The reason is a phrase that an admin understands."""
    shelf = read_shelf({"base": folder(BASE), "image": folder(LEAF, a_txt="1")})
    assert reasons(fingerprints(shelf)["image"], labels) == expected


def test_a_changed_parent_and_a_changed_base_are_named_as_such() -> None:
    """Nothing in the folder has changed, and yet it has to be built."""
    before = fingerprints(shelf_of(base=BASE, leaf="FROM gpuspawner/base\n"))
    after = fingerprints(shelf_of(base="FROM debian:13-slim\n", leaf="FROM gpuspawner/base\n"))
    assert reasons(after["leaf"], before["leaf"].labels()) == ("parent base changed",)
    assert reasons(after["base"], before["base"].labels()) == ("Dockerfile changed", "base image changed")


def test_a_folder_of_very_many_files_is_known_as_a_whole() -> None:
    """A label is not the place for a list of thousands."""
    many = folder(BASE) | {f"f{number}": ContextFile(b"") for number in range(MOST_PARTS)}
    print_of = fingerprints(read_shelf({"image": many}))["image"]
    assert len(print_of.labels()[PARTS_LABEL]) < 10
    more = fingerprints(read_shelf({"image": many | {"g": ContextFile(b"")}}))["image"]
    assert reasons(more, print_of.labels()) == ("its folder changed",)


def test_the_tag_is_the_beginning_of_the_digest() -> None:
    """Short enough to read aloud, and only this content has it."""
    print_of = fingerprints(shelf_of(base=BASE))["base"]
    assert print_of.tag == print_of.digest[:12]
    assert len(print_of.digest) == 64
