"""What an image is made of, and why it is stale."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.recipes import (
    HASH_LABEL,
    MOST_PARTS,
    NEUTRAL_ARGUMENTS,
    PARTS_LABEL,
    ContextFile,
    Folder,
    Shelf,
    fingerprints,
    in_order,
    parts_of,
    read_shelf,
    reasons,
)
from tests.unit.folders import BASE, folder, shelf_of, shelves

texts = st.text(st.characters(exclude_characters="\r\0", codec="utf-8"), max_size=30)
folders = st.dictionaries(st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4})?", fullmatch=True), texts, max_size=5)


def digest_of(files: Folder, arguments: dict[str, str] | None = None, outside: dict[str, str] | None = None) -> str:
    return fingerprints(read_shelf({"image": files}, arguments), outside=outside)["image"].digest


@given(folders, st.randoms())
def test_order_and_line_endings_do_not_matter(files: dict[str, str], random: Random) -> None:
    """The same folder checked out on Windows, or listed in another order, is the same image."""
    plain = {**{path: ContextFile(text.encode()) for path, text in files.items()}, **folder(BASE)}
    windows = {path: ContextFile(file.content.replace(b"\n", b"\r\n")) for path, file in plain.items()}
    shuffled = list(windows.items())
    random.shuffle(shuffled)
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
    assert digest_of(folder(BASE + "ARG VERSION\n")) != digest_of(folder(BASE + "ARG VERSION\n"), {"VERSION": ""})


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


def test_every_reason_is_told_and_the_changed_come_first() -> None:
    """Changed, new, gone: each in the order of their names."""
    before = _labels(folder(LEAF, b_txt="1", a_txt="1", x_txt=""))
    shelf = read_shelf({"base": folder(BASE + "#\n"), "image": folder(LEAF, b_txt="2", a_txt="2", y_txt="", w_txt="")})
    assert reasons(fingerprints(shelf)["image"], before) == (
        "a.txt changed",
        "b.txt changed",
        "parent base changed",
        "w.txt is new",
        "y.txt is new",
        "x.txt is gone",
    )


def test_a_base_tag_that_got_another_digest_is_named() -> None:
    """What is in a registry counts, as far as it is known."""
    shelf = shelf_of(base=BASE, leaf="FROM gpuspawner/base\n", other="FROM python:3\nCOPY --from=debian:12-slim / /\n")
    unknown = fingerprints(shelf)
    before = fingerprints(shelf, base_digests={"debian:12-slim": "sha256:1", "python:3": "sha256:9", "nobody": "x"})
    after = fingerprints(shelf, base_digests={"debian:12-slim": "sha256:2", "python:3": "sha256:9"})
    assert reasons(after["base"], before["base"].labels()) == ("base tag debian:12-slim has a new digest",)
    assert reasons(after["other"], before["other"].labels()) == ("base tag debian:12-slim has a new digest",)
    assert reasons(after["leaf"], before["leaf"].labels()) == ("parent base changed",)
    assert reasons(after["base"], unknown["base"].labels()) == ("base tag debian:12-slim is new",)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, {"this machine's CA bundle": "x"}, "this machine's CA bundle is new", id="new"),
        pytest.param({"this machine's CA bundle": "x"}, {}, "this machine's CA bundle is gone", id="gone"),
        pytest.param(
            {"this machine's CA bundle": "x"},
            {"this machine's CA bundle": "y"},
            "this machine's CA bundle changed",
            id="changed",
        ),
    ],
)
def test_certificates_are_named_where_they_go_in(before: dict[str, str], after: dict[str, str], expected: str) -> None:
    """In the lowest image; what stands on it has a parent that changed."""
    shelf = shelf_of(base=BASE, leaf="FROM gpuspawner/base\n")
    old, new = fingerprints(shelf, outside=before), fingerprints(shelf, outside=after)
    assert reasons(new["base"], old["base"].labels()) == (expected,)
    assert reasons(new["leaf"], old["leaf"].labels()) == ("parent base changed",)


def test_what_stands_on_a_held_image_stands_on_what_is_in_use() -> None:
    """The held one itself still has the fingerprint that its folder says."""
    shelf = shelf_of(base=BASE, mid="FROM gpuspawner/base\n", leaf="FROM gpuspawner/mid\n")
    folders = {name: dict(recipe.files) for name, recipe in shelf.items()}
    bad_shelf = read_shelf({**folders, "mid": folder("FROM gpuspawner/base\n#\n")})
    good, bad = fingerprints(shelf), fingerprints(bad_shelf)
    held = fingerprints(bad_shelf, held={"mid": good["mid"].digest})
    assert held["mid"] == bad["mid"]
    assert held["leaf"] == good["leaf"] != bad["leaf"]


@given(shelves(), st.data())
def test_holding_an_image_touches_only_what_stands_on_it(shelf: Shelf, data: st.DataObject) -> None:
    """Whatever the tree."""
    name = data.draw(st.sampled_from(sorted(shelf)))
    plain, held = fingerprints(shelf), fingerprints(shelf, held={name: "0" * 64})
    touched = {other for other in shelf if plain[other] != held[other]}
    assert touched == {other for other in shelf if other != name and name in {r.name for r in in_order(shelf, [other])}}


@given(shelves())
def test_the_labels_of_an_image_say_that_it_is_what_it_is(shelf: Shelf) -> None:
    """A second look finds nothing to do, and the parts come back as they went in."""
    for wanted in fingerprints(shelf).values():
        assert reasons(wanted, wanted.labels()) == ()
        assert parts_of(wanted.labels()) == wanted.parts


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
