"""What an admin offers and what a student picks: every key, every mistake, every odd request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.errors import BadChoice, ConfigError
from gpuspawner.profiles import Catalogue, Choice, GpuRequest, Profile
from gpuspawner.texts import Text
from gpuspawner.units import GIB
from tests import strategies

LONGEST_SENTENCE = 500

MINIMAL = {"display_name": "CPU only", "image": "scipy"}
FULL: dict[str, Any] = {
    "display_name": {"en": "A share of a GPU", "ko": "GPU 공유"},
    "slug": "gpu-share",
    "description": {"en": "8 GiB of one RTX 4090", "ko": "RTX 4090 한 장의 8 GiB"},
    "image": "pytorch",
    "gpu": {"memory": "8G", "model": "RTX 4090"},
    "mem_limit": "16G",
    "cpu_limit": 4,
    "shm_size": "4G",
    "pids_limit": 4096,
    "time_limit": "8h",
    "idle_timeout": "90m",
    "groups": ["ml-class"],
    "volumes": {"/srv/datasets": "/data", "corpus": {"bind": "/corpus", "mode": "rw"}},
    "default": True,
}


def profile(**changes: Any) -> Profile:
    """The one profile of a minimal configuration with these keys."""
    return Catalogue.parse([{**MINIMAL, **changes}]).profiles[0]


# What an admin writes


def test_every_key_is_parsed() -> None:
    """A profile that uses each key of the table comes out with each value in bytes and seconds."""
    (found,) = Catalogue.parse([FULL]).profiles
    assert found.display_name == Text("A share of a GPU", "GPU 공유")
    assert found.slug == "gpu-share"
    assert found.description == Text("8 GiB of one RTX 4090", "RTX 4090 한 장의 8 GiB")
    assert found.image_reference == "gpuspawner/pytorch:latest"
    assert found.gpu is not None
    assert (found.gpu.count, found.gpu.memory_bytes, found.gpu.model) == (None, 8 * GIB, "RTX 4090")
    assert (found.mem_limit_bytes, found.cpu_limit, found.shm_size_bytes) == (16 * GIB, 4.0, 4 * GIB)
    assert (found.pids_limit, found.time_limit_seconds, found.idle_timeout_seconds) == (4096, 28800, 5400)
    assert found.groups == frozenset({"ml-class"})
    volumes = {source: (volume.bind, volume.mode) for source, volume in found.volumes.items()}
    assert volumes == {"/srv/datasets": ("/data", "ro"), "corpus": ("/corpus", "rw")}
    assert found.default


def test_what_is_absent_is_no_limit_and_no_gpu() -> None:
    """Two keys make a profile."""
    found = profile()
    assert (found.slug, found.gpu, found.groups, found.default) == ("cpu-only", None, None, False)
    assert (found.mem_limit_bytes, found.cpu_limit, found.time_limit_seconds) == (None, None, None)


@given(strategies.raw_profile_lists())
def test_every_legal_configuration_is_read(raw: list[dict[str, Any]]) -> None:
    """Any mix of keys is one profile for each entry, in the order of the configuration."""
    catalogue = Catalogue.parse(raw)
    assert [found.slug for found in catalogue.profiles] == [entry["slug"] for entry in raw]
    assert [found.gpu is None for found in catalogue.profiles] == ["gpu" not in entry for entry in raw]


@pytest.mark.parametrize(
    ("display_name", "slug"),
    [
        pytest.param("One whole GPU", "one-whole-gpu", id="words"),
        pytest.param("RTX 4090 (24 GiB)", "rtx-4090-24-gib", id="punctuation"),
        pytest.param({"en": "CPU", "ko": "CPU만"}, "cpu", id="english-first"),
        pytest.param({"ko": "GPU 한 장 전체", "en": "Whole GPU"}, "whole-gpu", id="korean-first"),
    ],
)
def test_a_slug_is_made_from_the_english_name(display_name: object, slug: str) -> None:
    """An admin gives a slug only where the name has no Latin letters."""
    assert profile(display_name=display_name).slug == slug


@pytest.mark.parametrize(
    ("image", "reference", "shelf"),
    [
        pytest.param("pytorch", "gpuspawner/pytorch:latest", "pytorch", id="of-the-shelf"),
        pytest.param("deep.learn_2", "gpuspawner/deep.learn_2:latest", "deep.learn_2", id="dots-and-underscores"),
        pytest.param("quay.io/jupyter/base:1", "quay.io/jupyter/base:1", None, id="foreign"),
        pytest.param("python:3.12", "python:3.12", None, id="with-a-tag"),
        pytest.param("x@sha256:ab", "x@sha256:ab", None, id="with-a-digest"),
    ],
)
def test_a_bare_image_name_is_of_the_shelf(image: str, reference: str, shelf: str | None) -> None:
    """A folder of `images/` needs no tag, and everything else is taken as written."""
    found = profile(image=image)
    assert (found.image_reference, found.shelf_image) == (reference, shelf)


MISTAKES = [
    pytest.param({"gpu": {"count": 0}}, "[0].gpu.count must be at least 1, got 0", id="no-cards"),
    pytest.param({"gpu": {"count": "2"}}, "[0].gpu.count must be a valid integer, got '2'", id="count-as-text"),
    pytest.param({"gpu": {"count": True}}, "[0].gpu.count must be a valid integer", id="count-bool"),
    pytest.param({"gpu": {}}, "[0].gpu must have either 'count'", id="gpu-empty"),
    pytest.param({"gpu": {"count": 1, "memory": "8G"}}, "[0].gpu must have either 'count'", id="gpu-both"),
    pytest.param({"gpu": {"memory": "lots"}}, "[0].gpu.memory must be a size such as '8G'", id="gpu-memory"),
    pytest.param({"gpu": {"memory": 0}}, "[0].gpu.memory must be a size", id="gpu-memory-zero"),
    pytest.param({"gpu": {"memory": "9" * 400}}, "[0].gpu.memory must be a size", id="gpu-memory-endless"),
    pytest.param({"gpu": {"count": 1, "model": ""}}, "[0].gpu.model ", id="model-empty"),
    pytest.param({"gpu": {"count": 1, "model": " "}}, "[0].gpu.model ", id="model-blank"),
    pytest.param({"gpu": {"cuont": 1}}, "[0].gpu.cuont is not a known key; did you mean 'count'?", id="gpu-typo"),
    pytest.param({"gpu": 1}, "[0].gpu must be a mapping of keys to values, got 1", id="gpu-number"),
    pytest.param({"mem_limit": "-1G"}, "[0].mem_limit must be a size", id="memory-negative"),
    pytest.param({"mem_limit": 1.5}, "[0].mem_limit must be a size", id="memory-float"),
    pytest.param({"cpu_limit": 0}, "[0].cpu_limit must be more than 0, got 0", id="cpu-zero"),
    pytest.param({"cpu_limit": "many"}, "[0].cpu_limit must be a valid number", id="cpu-word"),
    pytest.param({"cpu_limit": float("inf")}, "[0].cpu_limit must be a finite number, got inf", id="cpu-endless"),
    pytest.param({"shm_size": "x"}, "[0].shm_size must be a size", id="shm-word"),
    pytest.param({"mem_limit": "1G", "shm_size": "2G"}, "[0] has a shm_size above its mem_limit", id="shm-above-ram"),
    pytest.param({"pids_limit": 10}, "[0].pids_limit must be at least 64, got 10", id="pids-few"),
    pytest.param({"time_limit": "soon"}, "[0].time_limit must be a time such as '2h'", id="time-word"),
    pytest.param({"idle_timeout": 0}, "[0].idle_timeout must be a time", id="idle-zero"),
    pytest.param({"groups": "ml"}, "[0].groups must be a list of at least one group name, got 'ml'", id="groups-text"),
    pytest.param({"groups": []}, "[0].groups must be a list of at least one group name", id="groups-empty"),
    pytest.param({"groups": [1]}, "[0].groups[0] must be a valid string, got 1", id="groups-number"),
    pytest.param({"volumes": {"d": "data"}}, "[0].volumes.d.bind must match ^/, got 'data'", id="volume-relative"),
    pytest.param({"volumes": {"d": {"mode": "ro"}}}, "[0].volumes.d.bind is required", id="volume-nowhere"),
    pytest.param({"volumes": {"d": {"bind": "/d", "mode": "rx"}}}, "[0].volumes.d.mode must match", id="volume-mode"),
    pytest.param({"volumes": {"a": "/d", "b": "/d/"}}, "[0] has two volumes at /d", id="volumes-at-one-place"),
    pytest.param({"volumes": ["/data"]}, "[0].volumes must be a", id="volumes-list"),
    pytest.param({"default": 1}, "[0].default must be a valid boolean, got 1", id="default-number"),
    pytest.param({"display_name": ""}, "[0].display_name must be a text", id="name-empty"),
    pytest.param({"display_name": {"fr": "x"}}, "[0].display_name must be a text", id="name-french"),
    pytest.param({"display_name": "전체"}, "[0].slug must be lower-case letters", id="name-without-a-slug"),
    pytest.param({"description": 3}, "[0].description must be a text", id="description-number"),
    pytest.param({"slug": "A B"}, "[0].slug must be lower-case letters", id="slug-with-space"),
    pytest.param({"slug": "a" * 64}, "[0].slug must be lower-case letters", id="slug-long"),
    pytest.param({"slug": 7}, "[0].slug must be a valid string, got 7", id="slug-number"),
    pytest.param({"image": ""}, "[0].image ", id="image-empty"),
    pytest.param({"image": "a b"}, "[0].image must match", id="image-with-space"),
    pytest.param({"mem_limt": "1G"}, "[0].mem_limt is not a known key; did you mean 'mem_limit'?", id="typo"),
    pytest.param({"kubespawner_override": {}}, "[0].kubespawner_override is not a known key", id="of-kubespawner"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES)
def test_a_mistake_names_its_path(changes: dict[str, Any], sentence: str) -> None:
    """The admin reads where the mistake is, what is accepted and what was given."""
    with pytest.raises(ConfigError) as caught:
        Catalogue.parse([{**MINIMAL, **changes}])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"profile_list{sentence}")


@pytest.mark.parametrize("key", [pytest.param(key, id=key) for key in MINIMAL])
def test_a_missing_key_is_named(key: str) -> None:
    """A profile without a name or an image says which is missing."""
    with pytest.raises(ConfigError) as caught:
        Catalogue.parse([{"slug": "cpu", **{k: v for k, v in MINIMAL.items() if k != key}}])
    assert str(caught.value) == f"profile_list[0].{key} is required"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        pytest.param({}, "profile_list must be a list of profiles, got dict", id="mapping"),
        pytest.param("cpu", "profile_list must be a list of profiles, got str", id="text"),
        pytest.param(b"cpu", "profile_list must be a list of profiles, got bytes", id="bytes"),
        pytest.param(None, "profile_list must be a list of profiles, got NoneType", id="none"),
        pytest.param([], "profile_list is empty: give at least one profile", id="empty"),
        pytest.param([7], "profile_list[0] must be a mapping of keys to values, got 7", id="number-for-a-profile"),
        pytest.param([None], "profile_list[0] must be a mapping of keys to values, got None", id="none-for-a-profile"),
        pytest.param(
            [MINIMAL, MINIMAL],
            "profile_list[1].slug must be unique: 'cpu-only' is also profile_list[0]'s",
            id="same-slug",
        ),
        pytest.param(
            [{**MINIMAL, "default": True}, FULL],
            "profile_list[1].default must be given once: profile_list[0] is the default already",
            id="two-defaults",
        ),
    ],
)
def test_a_mistake_of_the_whole_list_is_named(raw: object, sentence: str) -> None:
    """What is wrong between profiles, or with the list itself, has a path as well."""
    with pytest.raises(ConfigError) as caught:
        Catalogue.parse(raw)
    assert str(caught.value).startswith(sentence)


def test_all_mistakes_are_told_at_once() -> None:
    """An admin mends the configuration in one go: one line for each mistake."""
    wrong = [{**MINIMAL, "gpu": {"count": 0}, "pids_limit": 1}, {"display_name": "", "slug": "A", "image": "x"}]
    with pytest.raises(ConfigError) as caught:
        Catalogue.parse(wrong)
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "profile_list[0].gpu.count",
        "profile_list[0].pids_limit",
        "profile_list[1].display_name",
        "profile_list[1].slug",
    ]


@given(st.lists(strategies.json_values() | strategies.raw_profiles(), max_size=3), st.data())
def test_any_configuration_is_a_catalogue_or_a_config_error(raw: list[Any], data: st.DataObject) -> None:
    """The Hub stops with a sentence, never with a traceback."""
    entries = [
        {**entry, data.draw(strategies.profile_keys()): data.draw(strategies.json_values())}
        if isinstance(entry, dict) and data.draw(st.booleans())
        else entry
        for entry in raw
    ]
    try:
        Catalogue.parse(entries)
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines
        assert lines[0].startswith("profile_list")


# What a student picks


CATALOGUE = Catalogue.parse(
    [
        {"display_name": "CPU", "image": "scipy"},
        {"display_name": "Share", "image": "pytorch", "gpu": {"memory": "8G"}, "default": True, "groups": ["ml", "ta"]},
        {"display_name": "Whole", "image": "pytorch", "gpu": {"count": 1}, "groups": ["ta"]},
    ]
)
ONLY_FOR_TAS = Catalogue.parse([{**MINIMAL, "groups": ["ta"]}])


@pytest.mark.parametrize(
    ("groups", "slugs", "default"),
    [
        pytest.param([], ["cpu"], "cpu", id="nobody"),
        pytest.param(["ml"], ["cpu", "share"], "share", id="a-student"),
        pytest.param(["ta"], ["cpu", "share", "whole"], "share", id="an-assistant"),
        pytest.param(["other", "ml"], ["cpu", "share"], "share", id="two-groups"),
        pytest.param(["ML"], ["cpu"], "cpu", id="names-are-exact"),
    ],
)
def test_groups_see_their_profiles(groups: list[str], slugs: list[str], default: str) -> None:
    """A profile is offered to its groups; the default is the marked one, else the first that is offered."""
    assert [found.slug for found in CATALOGUE.offered_to(groups)] == slugs
    found = CATALOGUE.default_for(groups)
    assert found is not None
    assert found.slug == default
    assert CATALOGUE.choose({}, groups) == Choice(found)


def test_an_empty_choice_is_refused_only_where_nothing_is_offered() -> None:
    """Who is in no group reads that, instead of an empty form's silence."""
    assert ONLY_FOR_TAS.default_for([]) is None
    with pytest.raises(BadChoice, match="add you to a group") as caught:
        ONLY_FOR_TAS.choose({}, [])
    assert "그룹 등록" in caught.value.text.ko


def test_a_choice_is_saved_as_its_slug() -> None:
    """JupyterHub remembers and shows one word, and reading it back gives the same choice."""
    choice = CATALOGUE.choose({"profile": "whole"}, ["ta"])
    assert choice.options == {"profile": "whole"}
    assert CATALOGUE.choose(choice.options, ["ta"]) == choice
    assert choice.profile.gpu == GpuRequest(count=1)


def test_a_hidden_profile_and_an_unknown_one_sound_the_same() -> None:
    """Nobody learns by trying which profiles other groups have."""
    sentences = []
    for slug in ("whole", "never"):
        with pytest.raises(BadChoice) as caught:
            CATALOGUE.choose({"profile": slug}, ["ml"])
        sentences.append((str(caught.value).replace(slug, "x"), caught.value.text.ko.replace(slug, "x")))
    assert sentences[0] == sentences[1]


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("options", "part"),
    [
        pytest.param({"profile": "gone"}, "'gone'", id="removed-since"),
        pytest.param({"profile": ["a"]}, "['a']", id="a-list"),
        pytest.param({"profile": None}, "None", id="null"),
        pytest.param({"profile": ""}, "''", id="empty"),
        pytest.param({"profile": "CPU"}, "'CPU'", id="wrong-case"),
        pytest.param({"profile": "x" * 1_000_000}, "xxx", id="a-megabyte"),
        pytest.param({"profile": ["x" * 1_000_000] * 5}, "xxx", id="a-megabyte-in-a-list"),
        pytest.param({"profile": {str(n): n for n in range(100_000)}}, "{", id="a-large-object"),
        pytest.param({"profile": 10**5000}, "profile", id="a-number-too-long-to-print"),
        pytest.param({"profile": nested(5000)}, "[[", id="deeply-nested"),
        pytest.param({"profile": "\ud800"}, "\\ud800", id="a-lone-surrogate"),
        pytest.param({"image": "evil"}, "'image'", id="image"),
        pytest.param({"gpu": 99}, "'gpu'", id="gpu"),
        pytest.param({"profile": "cpu", "image": "evil"}, "'image'", id="image-beside-a-profile"),
        pytest.param({"x" * 1_000_000: 1}, "xxx", id="a-megabyte-of-key"),
        pytest.param([], "[]", id="list-for-options"),
        pytest.param("cpu", "'cpu'", id="text-for-options"),
        pytest.param(None, "None", id="null-for-options"),
        pytest.param(nested(5000), "[[", id="deeply-nested-options"),
    ],
)
def test_a_bad_choice_is_a_sentence_of_bounded_length(options: object, part: str) -> None:
    """Law 7: what cannot be chosen is a 400 whose sentence quotes a little of it, in both languages."""
    with pytest.raises(BadChoice) as caught:
        CATALOGUE.choose(options, [])
    text = caught.value.text
    assert caught.value.status_code == 400
    assert part in text.en
    assert part in text.ko or part == "profile"
    assert max(len(text.en), len(text.ko)) <= LONGEST_SENTENCE


@given(strategies.json_values(), st.lists(st.sampled_from(("ml", "ta", "other")), max_size=2))
def test_any_options_are_a_choice_or_a_bad_choice(options: Any, groups: list[str]) -> None:
    """Whatever a request's body holds, it ends in a profile that this person may start or in a sentence."""
    try:
        choice = CATALOGUE.choose(options, groups)
    except BadChoice as error:
        assert options != {}
        for words in (error.text.en, error.text.ko):
            assert 0 < len(words) <= LONGEST_SENTENCE
    else:
        assert isinstance(options, Mapping)
        assert choice.profile in CATALOGUE.offered_to(groups)
        assert options.get("profile", choice.profile.slug) == choice.profile.slug
