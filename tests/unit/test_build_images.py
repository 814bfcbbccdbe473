"""A run of `build_images.py`: what is built, in which order, on what, and what it is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuspawner.recipes import (
    BASE_DIGEST_LABEL,
    BASE_NAME_LABEL,
    CREATED_LABEL,
    HASH_LABEL,
    REVISION_LABEL,
    TITLE_LABEL,
)
from tests.standins.engine import BuildFails, NoSuchImage, RegistryDown, RegistrySilent, StandinEngine
from tests.unit.imagelab import BASE, DOCKERFILES, Lab
from tests.unit.machine import pem
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS


# --- what is built ----------------------------------------------------------------------------------------------------


def test_everything_is_built_in_order_and_then_nothing(lab: Lab) -> None:
    """Parents first; a second run finds nothing to do."""
    lab.run("--jobs", "1")
    assert lab.built() == ["base", "scipy", "torch", "vision"]
    second = lab.run()
    assert lab.built() == []
    assert second.stdout.splitlines() == [f"{name}: unchanged" for name in DOCKERFILES]


def test_a_name_builds_it_and_what_it_stands_on(lab: Lab) -> None:
    """Nothing else is touched."""
    lab.run("vision")
    assert lab.built() == ["base", "torch", "vision"]
    assert lab.run("vision").stdout == "base: unchanged\ntorch: unchanged\nvision: unchanged\n"


def test_a_change_in_a_leaf_builds_only_the_leaf(lab: Lab) -> None:
    """And the table says why."""
    lab.run()
    lab.built()
    lab.write("scipy", "requirements.txt", "numpy\n")
    assert "requirements.txt is new" in lab.run().stdout
    assert lab.built() == ["scipy"]


def test_a_change_in_between_builds_what_stands_on_it(lab: Lab) -> None:
    """Each on the new one."""
    lab.run()
    lab.built()
    lab.write("torch", "x", "1")
    result = lab.run()
    assert lab.built() == ["torch", "vision"]
    assert "parent torch changed" in result.stdout
    layers = lab.image("torch").layers
    assert lab.image("vision").layers[: len(layers)] == layers


def test_a_change_that_is_taken_back_needs_no_build(lab: Lab) -> None:
    """The image of before is still there under its own tag, and needs no second trial."""
    lab.run("base")
    before = lab.image("base").id
    lab.write("base", "x", "1")
    lab.run("base")
    lab.remove("base", "x")
    lab.built()
    tried = len(lab.trials.asked)
    assert lab.results("base") == {"base": "tagged"}
    assert (lab.built(), lab.image("base").id, len(lab.trials.asked)) == ([], before, tried)


def test_the_labels_say_what_an_image_is(lab: Lab) -> None:
    """Our hash, and the words of the OCI for name, time and base; outside of a repository there is no revision."""
    lab.run("scipy")
    base, scipy = (dict(lab.image(name).labels) for name in ("base", "scipy"))
    assert base[TITLE_LABEL] == "gpuspawner/base"
    assert base[BASE_NAME_LABEL] == BASE
    pulled = next(image for image in lab.engine.registry if image.startswith(f"{BASE.partition(':')[0]}@"))
    assert base[BASE_DIGEST_LABEL] == pulled.partition("@")[2]
    assert scipy[BASE_NAME_LABEL] == "gpuspawner/base"
    assert scipy[BASE_DIGEST_LABEL] == lab.image("base").id
    assert scipy[CREATED_LABEL].endswith("+00:00")
    assert lab.tags("scipy") == {"latest", scipy[HASH_LABEL][:12]}
    assert REVISION_LABEL not in scipy


def test_a_failed_image_stops_its_children_and_not_its_siblings(lab: Lab) -> None:
    """The exit status tells, latest stays where it was, and the whole output is in a file that is named."""
    lab.run()
    lab.built()
    before = lab.ids
    lab.engine.faults.add(BuildFails("gpuspawner/torch:*"))
    for name in ("torch", "scipy"):
        lab.write(name, "x", "1")
    result = lab.run("--jobs", "1", status=1)
    assert lab.built() == ["scipy", "torch"]
    assert lab.ids["gpuspawner/torch:latest"] == before["gpuspawner/torch:latest"]
    assert lab.ids["gpuspawner/vision:latest"] == before["gpuspawner/vision:latest"]
    assert lab.ids["gpuspawner/scipy:latest"] != before["gpuspawner/scipy:latest"]
    assert "torch was not built" in result.stdout
    assert "The build of gpuspawner/torch:candidate-" in result.stdout
    log = Path(result.stdout.rpartition("The whole output is in ")[2].strip())
    assert log.read_text().endswith("returned a non-zero code: 2\n")
    lab.engine.faults.clear()
    assert lab.results() == {"base": "unchanged", "scipy": "unchanged", "torch": "built", "vision": "built"}


def test_a_full_disk_is_told_with_what_helps(lab: Lab) -> None:
    """Nothing has changed for servers."""
    lab.run()
    before = lab.ids
    lab.write("scipy", "x", "1")
    lab.engine.faults.add(BuildFails("gpuspawner/scipy:*", "write /x: no space left on device"))
    result = lab.run(status=1)
    assert "because the disk of the Docker engine is full. Make room (images/build_images.py --prune" in result.stdout
    assert lab.ids == before


def test_without_cache_everything_that_was_named_is_built_and_what_stands_on_it(lab: Lab) -> None:
    """--no-cache is for new packages under the same pins."""
    lab.run()
    lab.built()
    lab.run("--no-cache", "base", "scipy")
    assert lab.built() == ["base", "scipy"]
    assert all("--no-cache" in call.argv for call in lab.docker.builds()[-2:])
    lab.run("--no-cache", "scipy")
    assert lab.built() == ["scipy"]
    assert lab.results("--no-cache", "--jobs", "1") == dict.fromkeys(DOCKERFILES, "built")
    why = {image["name"]: image["why"] for image in lab.json("--no-cache", "torch", "vision")["images"]}
    assert why == {"base": "", "torch": "--no-cache", "vision": "--no-cache"}


def test_a_child_that_missed_its_parents_new_build_gets_it_at_the_next_run(lab: Lab) -> None:
    """Its own hash is the same: it is told by the image that it stands on. Then nothing is left to do."""
    lab.run()
    lab.engine.faults.add(BuildFails("gpuspawner/torch:*"))
    assert lab.results("--no-cache", "base", "torch", status=1) == {"base": "built", "torch": "failed"}
    lab.engine.faults.clear()
    plan = {image["name"]: image["reasons"] for image in lab.json("--dry-run")["images"]}
    assert plan["scipy"] == plan["torch"] == ["parent base was built anew"]
    assert plan["vision"] == ["parent torch was built anew"]
    assert lab.results() == {"base": "unchanged", "scipy": "built", "torch": "built", "vision": "built"}
    assert lab.results() == dict.fromkeys(DOCKERFILES, "unchanged")


def test_what_stands_on_an_image_that_was_built_anew_is_built_anew(lab: Lab) -> None:
    """Its own content is the same, and yet it would stand on the old one."""
    lab.run()
    lab.built()
    why = {image["name"]: image["why"] for image in lab.json("--no-cache", "base", "vision")["images"]}
    assert why == {"base": "--no-cache", "torch": "parent base was built anew", "vision": "--no-cache"}
    assert lab.built() == ["base", "torch", "vision"]
    layers = lab.image("base").layers
    assert lab.image("torch").layers[: len(layers)] == layers


def test_only_the_first_of_many_reasons_are_told(lab: Lab) -> None:
    """A folder of many files must not push everything else off the screen; a program gets all of them."""
    lab.run("base")
    for number in range(5):
        lab.write("base", f"f{number}", "1")
    assert "f0 is new, f1 is new, f2 is new and 2 more" in lab.run("--dry-run", "base").stdout
    (image,) = lab.json("--dry-run", "base")["images"]
    assert image["reasons"] == [f"f{number} is new" for number in range(5)]
    (built,) = lab.json("base")["images"]
    assert built["why"] == "f0 is new, f1 is new, f2 is new and 2 more"


def test_an_image_that_somebody_else_made_is_replaced(lab: Lab) -> None:
    """It has the name that servers start from, and nobody knows what is in it."""
    lab.engine.add_image("gpuspawner/scipy")
    assert "not built by this program" in lab.run("scipy").stdout
    assert HASH_LABEL in lab.image("scipy").labels


def test_a_candidate_that_is_gone_after_its_build_is_told(lab: Lab) -> None:
    """The builder said that all was well."""
    with lab.engine.faults.during(NoSuchImage("gpuspawner/base:candidate-*")):
        assert "was built and is not in the engine: is its disk full?" in lab.run("base", status=1).stdout


# --- what it stands on ------------------------------------------------------------------------------------------------


def test_another_base_makes_everything_stale(lab: Lab) -> None:
    """--base is part of what an image is made of; the next run without it goes back."""
    lab.run("scipy")
    lab.built()
    lab.engine.add_image("school/debian:1")
    lab.run("--base", "school/debian:1", "scipy")
    assert lab.built() == ["base", "scipy"]
    assert lab.docker.builds()[-2].values("--build-arg") == ["BASE=school/debian:1"]
    assert lab.image("base").labels[BASE_NAME_LABEL] == "school/debian:1"
    assert lab.results("--base", "school/debian:1", "scipy") == {"base": "unchanged", "scipy": "unchanged"}
    assert lab.results("scipy") == {"base": "tagged", "scipy": "tagged"}


def test_a_base_that_was_made_here_stays_even_after_it_was_pruned(lab: Lab) -> None:
    """Whether a registry answers today is no reason to build everything anew."""
    lab.engine.add_image("gpuspawner/debian:12")
    lab.run("--base", "gpuspawner/debian:12", "scipy")
    lab.engine.remove_image("gpuspawner/debian:12")
    lab.built()
    assert lab.results("scipy") == {"base": "unchanged", "scipy": "unchanged"}
    assert lab.built() == []


def test_where_there_is_no_base_only_what_stands_on_it_fails(lab: Lab) -> None:
    """The sentence names the reason; nothing was built."""
    lab.write("alone", "Dockerfile", "FROM other:1\n")
    lab.engine.add_image("other:1", remote=True)
    lab.engine.faults.add(RegistryDown("school/*", message="no such host"))
    result = lab.run("--base", "school/debian:1", status=1)
    assert lab.built() == ["alone"]
    assert "school/debian:1 is not in the engine and cannot be pulled: no such host" in result.stdout
    assert result.stdout.count("stopped") >= 3


def test_a_newer_base_is_looked_for_only_when_asked(lab: Lab) -> None:
    """--pull: a new digest makes stale what stands on it, and the reason says so."""
    lab.run("scipy")
    lab.engine.add_image(BASE, size=1001, remote=True)
    assert lab.results("scipy") == {"base": "unchanged", "scipy": "unchanged"}
    lab.built()
    found = {image["name"]: image for image in lab.json("--pull", "scipy")["images"]}
    assert found["base"]["why"] == f"base tag {BASE} has a new digest"
    assert found["scipy"]["why"] == "parent base changed"
    assert lab.built() == ["base", "scipy"]
    assert lab.results("--pull", "scipy") == {"base": "unchanged", "scipy": "unchanged"}
    assert lab.image("base").layers[0].size == 1001


@pytest.mark.parametrize("fault", [RegistryDown(message="no such host"), RegistrySilent()], ids=["refuses", "silent"])
def test_a_refresh_without_a_registry_goes_on_with_what_is_here(lab: Lab, fault: RegistryDown) -> None:
    """A timer must not fail because somebody else's service does; an image that is stale is built all the same."""
    lab.run("scipy")
    lab.write("base", "x", "1")
    lab.built()
    lab.engine.faults.add(fault)
    assert lab.results("--pull", "scipy") == {"base": "built", "scipy": "built"}
    assert lab.built() == ["base", "scipy"]
    base = lab.json("--pull", "scipy")["images"][0]
    assert base["result"] == "unchanged"
    assert base["why"].startswith("no newer base: ")


def test_an_image_from_elsewhere_is_refreshed_as_well(lab: Lab) -> None:
    """Not only what BASE names."""
    lab.write("alone", "Dockerfile", "FROM other:1\nCOPY . /\n")
    lab.engine.add_image("other:1", remote=True)
    lab.run("alone")
    lab.engine.add_image("other:1", remote=True)
    (found,) = lab.json("--pull", "alone")["images"]
    assert (found["result"], found["why"]) == ("built", "base tag other:1 has a new digest")
    assert lab.image("alone").labels[BASE_NAME_LABEL] == "other:1"


def test_new_certificates_make_everything_stale_and_are_named(lab: Lab, tmp_path: Path) -> None:
    """--ca-bundle: a school's proxy changed its certificate."""
    lab.run("scipy")
    bundle = tmp_path / "school.pem"
    bundle.write_text(pem("school"))
    lab.built()
    result = lab.run("--ca-bundle", str(bundle), "scipy")
    assert lab.built() == ["ground", "base", "scipy"]
    assert "this machine's CA bundle is new" in result.stdout
    assert lab.image("base").labels[BASE_NAME_LABEL] == BASE
    lab.run("--ca-bundle", str(bundle), "scipy")
    assert lab.built() == []
    bundle.write_text(pem("another"))
    assert "this machine's CA bundle changed" in lab.run("--ca-bundle", str(bundle), "--dry-run").stdout
    assert "this machine's CA bundle is gone" in lab.run("--dry-run").stdout


# --- what it is told --------------------------------------------------------------------------------------------------


def test_only_declared_arguments_are_passed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic builder refuses others; the mirror makes nothing stale, and proxies need no declaration."""
    lab.run("scipy")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("https_proxy", "http://proxy.example:80")
    assert lab.run("--dry-run", "scipy").stdout.count("left as it is") == 2
    lab.run("--no-cache", "base", "scipy")
    base, scipy = lab.docker.builds()[-2:]
    proxies = ["HTTPS_PROXY=http://proxy.example:80", "https_proxy=http://proxy.example:80"]
    assert "PIP_INDEX_URL=https://mirror.example/simple" in base.values("--build-arg")
    assert scipy.values("--build-arg") == proxies


def test_a_build_argument_reaches_who_declares_it_and_makes_that_stale(lab: Lab) -> None:
    """Its default is what counts where it is not given."""
    lab.write("scipy", "Dockerfile", "FROM gpuspawner/base\nARG VERSION=1\nRUN x\n")
    lab.run()
    lab.built()
    assert lab.results("--build-arg", "VERSION=1") == dict.fromkeys(DOCKERFILES, "unchanged")
    assert "argument VERSION changed" in lab.run("--build-arg", "VERSION=2=x").stdout
    assert lab.built() == ["scipy"]
    assert lab.docker.builds()[-1].values("--build-arg") == ["VERSION=2=x"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param("NOPE=1", "No Dockerfile declares the build argument NOPE: write 'ARG NOPE'", id="undeclared"),
        pytest.param("VERSION", "a build argument is written NAME=VALUE, got 'VERSION'", id="no value"),
        pytest.param("=1", "a build argument is written NAME=VALUE, got '=1'", id="no name"),
    ],
)
def test_a_build_argument_that_nobody_can_see_is_refused(lab: Lab, given: str, message: str) -> None:
    """Before anything is built."""
    result = lab.run("--build-arg", given, status=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert lab.built() == []


def test_settings_can_come_from_the_environment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that refreshes the images has no one to type options."""
    lab.engine.add_image("school/debian:1")
    monkeypatch.setenv("GPUSPAWNER_BASE", "school/debian:1")
    lab.run("base")
    assert lab.docker.builds()[-1].values("--build-arg") == ["BASE=school/debian:1"]
    monkeypatch.setenv("GPUSPAWNER_CA_BUNDLE", "/nowhere")
    assert "The certificates in /nowhere cannot be read" in lab.run("base", status=2).stderr


def test_an_engine_without_the_default_bridge_builds_in_the_hosts_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other network of it reaches anything."""
    with StandinEngine(bridge=False) as engine:
        lab = Lab(tmp_path, engine, monkeypatch)
        lab.run("base")
        assert lab.docker.builds()[0].values("--network") == ["host"]


def test_without_a_docker_program_the_classic_builder_builds(lab: Lab) -> None:
    """The same images with the same labels."""
    (lab.docker.root / "docker").unlink()
    assert lab.results("scipy") == {"base": "built", "scipy": "built"}
    assert lab.image("scipy").parent == lab.image("base").id
    assert lab.results("scipy") == {"base": "unchanged", "scipy": "unchanged"}
