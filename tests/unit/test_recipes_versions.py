"""The versions of an image: which was good before, which may go, what all of them cost; and how an image is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.recipes import HASH_LABEL
from gpuspawner.recipes.image import Image
from gpuspawner.recipes.versions import (
    BAD,
    CANDIDATE,
    FAILED,
    LATEST,
    Layer,
    Version,
    bad_tag,
    disk_cost,
    previous_good,
    to_prune,
)

HASHES = ["a" * 12, "b" * 12, "c" * 12, "d" * 12]


def version(number: int, *tags: str, promoted: float | None = None, size: int = 5) -> Version:
    """One of a row of versions, each named later than the one before."""
    digest = HASHES[number % len(HASHES)].ljust(64, "0")
    return Version(f"sha256:{number}", frozenset(tags), digest, float(number) if promoted is None else promoted, size)


# --- which is which ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "good", "latest"),
    [
        pytest.param([HASHES[0]], [HASHES[0]], False, id="passed"),
        pytest.param([HASHES[0], LATEST], [HASHES[0]], True, id="in use"),
        pytest.param([HASHES[1], HASHES[0]], HASHES[:2], False, id="two names for the same"),
        pytest.param([LATEST], [], True, id="in use, and bad by now"),
        pytest.param([bad_tag("a" * 64)], [], False, id="rolled back"),
        pytest.param([CANDIDATE + HASHES[0]], [], False, id="not tried yet"),
        pytest.param([FAILED], [], False, id="failed"),
        pytest.param(["1.0", "A" * 12, "a" * 13], [], False, id="somebody's own names"),
        pytest.param([], [], False, id="no name"),
    ],
)
def test_tags_say_what_a_version_is(tags: list[str], good: list[str], latest: bool) -> None:
    """Only the beginning of a digest says that it passed."""
    one = version(0, *tags)
    assert (one.good_tags, one.is_good, one.is_latest) == (tuple(good), bool(good), latest)


def test_a_roll_back_goes_to_what_was_published_last_before() -> None:
    """Neither to the one in use, nor to a bad, failed or unfinished one."""
    older, newer, in_use = version(1, HASHES[1]), version(2, HASHES[2]), version(3, HASHES[3], LATEST)
    others = [version(4, bad_tag("e" * 64)), version(5, FAILED), version(6, CANDIDATE + "f" * 12), version(7, "mine")]
    assert previous_good([older, newer, in_use, *others]) == newer
    assert previous_good([newer, version(1, HASHES[1], promoted=9.0), in_use]) == version(1, HASHES[1], promoted=9.0)
    assert previous_good([in_use, *others]) is None
    assert previous_good([]) is None


# --- what may go ------------------------------------------------------------------------------------------------------


def test_the_newest_good_ones_stay() -> None:
    """The one in use is among them even when it is older; leftovers go whatever they hang on."""
    shelf = [
        version(1, HASHES[0], LATEST),
        version(2, HASHES[1]),
        version(3, HASHES[2], FAILED),
        version(4, HASHES[3]),
        version(5, CANDIDATE + HASHES[0], "mine"),
    ]
    assert to_prune(shelf, 2, ()) == {
        shelf[1]: (HASHES[1],),
        shelf[2]: (HASHES[2], FAILED),
        shelf[4]: (CANDIDATE + HASHES[0], "mine"),
    }
    assert to_prune(shelf, 9, ())[shelf[2]] == (FAILED,)


def test_what_is_used_or_named_stays() -> None:
    """By a container, under any name; by a profile, under that name only."""
    used, named = version(1, HASHES[0], FAILED), version(2, HASHES[1], "old")
    shelf = [used, named, version(3, HASHES[2], LATEST)]
    assert to_prune(shelf, 1, {used.id, HASHES[1]}) == {named: ("old",)}


def test_the_mark_of_a_bad_one_stays_once_it_is_nothing_but_a_mark() -> None:
    """Its bytes go, the memory stays."""
    whole, mark = version(1, bad_tag("a" * 64)), version(2, bad_tag("b" * 64), size=0)
    assert to_prune([whole, mark], 3, ()) == {whole: (bad_tag("a" * 64),)}


tags = st.sampled_from([*HASHES, FAILED, CANDIDATE + HASHES[0], BAD + HASHES[1], "mine"])


@st.composite
def shelves_of_versions(draw: st.DrawFn) -> list[Version]:
    """Up to eight versions, no tag twice, at most one in use."""
    given_to = draw(st.dictionaries(st.just(LATEST) | tags, st.integers(0, 7)))
    made = draw(st.lists(st.tuples(st.floats(0, 9), st.sampled_from([0, 5])), min_size=8, max_size=8))
    return [
        version(number, *(tag for tag, owner in given_to.items() if owner == number), promoted=promoted, size=size)
        for number, (promoted, size) in enumerate(made)
    ]


@given(shelves_of_versions(), st.integers(1, 4), st.sets(st.integers(0, 7)), st.sets(tags))
def test_pruning_never_takes_what_is_in_use_or_wanted(
    shelf: list[Version], keep: int, containers: set[int], named: set[str]
) -> None:
    """Whatever there is: `latest` and its names stay, so do used and named ones, and as many good ones as asked for."""
    used = {f"sha256:{number}" for number in containers}
    gone = to_prune(shelf, keep, used | named)
    left = {one: one.tags - set(gone.get(one, ())) for one in shelf}
    for one in shelf:
        assert set(gone.get(one, ())) <= one.tags
        if one.is_latest:
            assert LATEST in left[one]
            assert set(one.good_tags) <= left[one]
        if one.id in used:
            assert left[one] == one.tags
        assert named & one.tags <= left[one]
    good = [one for one in shelf if one.is_good]
    assert sum(any(tag in HASHES for tag in left[one]) for one in good) >= min(keep, len(good))
    assert all(gone.values())


@given(shelves_of_versions(), st.integers(1, 4))
def test_pruning_twice_finds_nothing_more(shelf: list[Version], keep: int) -> None:
    """What is left is what is kept."""
    gone = to_prune(shelf, keep, ())
    left = [Version(v.id, v.tags - set(gone.get(v, ())), v.digest, v.promoted, v.size_bytes) for v in shelf]
    assert to_prune([one for one in left if one.tags], keep, ()) == {}


# --- what they cost ---------------------------------------------------------------------------------------------------


def test_common_layers_lie_on_disk_once() -> None:
    """Two images on one base, and one that shares nothing; equal layers on different ones are not the same."""
    base, top, other = Layer(1, "base", 100), Layer(2, "top", 10), Layer(3, "other", 7)
    costs, total = disk_cost({"base": [base], "a": [base, top], "b": [base, other], "c": [other, top]})
    assert {name: (cost.size_bytes, cost.shared_bytes, cost.own_bytes) for name, cost in costs.items()} == {
        "base": (100, 100, 0),
        "a": (110, 100, 10),
        "b": (107, 100, 7),
        "c": (17, 0, 17),
    }
    assert total == 100 + 10 + 7 + 17
    assert disk_cost({}) == ({}, 0)


layers = st.builds(Layer, st.integers(0, 2), st.sampled_from("ab"), st.integers(0, 9))


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(layers, max_size=4)))
def test_the_disk_holds_no_more_than_the_sum_and_no_less_than_the_largest(shelf: Mapping[str, list[Layer]]) -> None:
    """Shared and own add up to the whole of each; what is its own is counted in the total."""
    costs, total = disk_cost(shelf)
    sizes = [cost.size_bytes for cost in costs.values()]
    assert max(sizes, default=0) <= total <= sum(sizes)
    assert sum(cost.own_bytes for cost in costs.values()) <= total
    for name, cost in costs.items():
        assert cost.shared_bytes + cost.own_bytes == cost.size_bytes == sum(layer.size_bytes for layer in shelf[name])
        assert cost.shared_bytes >= 0
        assert cost.own_bytes >= 0


# --- how an image is read ---------------------------------------------------------------------------------------------

INSPECTED: dict[str, Any] = {
    "Id": "sha256:12ab",
    "RepoTags": ["gpuspawner/base:latest", f"gpuspawner/base:{HASHES[0]}", "school/base:1"],
    "RepoDigests": ["registry.example/gpuspawner/base@sha256:77"],
    "Size": 9,
    "Config": {"Labels": {HASH_LABEL: "a" * 64}},
    "Metadata": {"LastTagTime": "2026-11-24T08:00:00.123456789Z"},
}


def test_an_image_is_read_from_what_the_engine_says() -> None:
    """Names, labels, size, when it was named; the digest is the registry's where there is one."""
    image = Image.read(INSPECTED)
    assert (image.id, image.size_bytes, image.digest) == ("sha256:12ab", 9, "sha256:77")
    assert image.references == {"gpuspawner/base:latest", f"gpuspawner/base:{HASHES[0]}", "school/base:1"}
    assert image.tagged == pytest.approx(1795507200.123456, abs=1e-5)
    assert image.as_version_of("base") == Version(
        "sha256:12ab", frozenset({LATEST, HASHES[0]}), "a" * 64, image.tagged, 9
    )
    assert image.as_version_of("bas").tags == frozenset()


@pytest.mark.parametrize("nothing", [{}, {"RepoTags": None, "RepoDigests": None, "Size": None, "Config": None}])
def test_what_an_engine_does_not_say_is_empty(nothing: dict[str, Any]) -> None:
    """Old ones say null, new ones leave it out; then the digest is the id."""
    image = Image.read({"Id": "sha256:12ab", **nothing})
    assert image == Image("sha256:12ab", digest="sha256:12ab")
    assert Image.read({"Id": "x", "Config": {"Labels": None}, "Metadata": None}).labels == {}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("2026-11-24T08:00:00Z", 1795507200.0, id="whole seconds"),
        pytest.param("2026-11-24T08:00:00.5Z", 1795507200.5, id="one decimal"),
        pytest.param("2026-11-24T08:00:00.000000001Z", 1795507200.0, id="nine decimals"),
        pytest.param("2026-11-24T09:30:00+01:30", 1795507200.0, id="another zone"),
        pytest.param("0001-01-01T00:00:00Z", 0.0, id="never"),
        pytest.param("yesterday", 0.0, id="not a time"),
        pytest.param("", 0.0, id="nothing"),
    ],
)
def test_the_moment_of_naming(text: str, seconds: float) -> None:
    """As engines write it, and 0 where they do not know."""
    assert Image.read({"Id": "x", "Metadata": {"LastTagTime": text}}).tagged == seconds
