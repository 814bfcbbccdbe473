"""Going back to an earlier image, clearing old ones away, and copying them to a registry."""

from __future__ import annotations

import docker
import pytest

from gpuspawner.build_images import upkeep
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from tests.standins.engine import HangsUp, RegistryDown
from tests.unit.imagelab import DOCKERFILES, Lab, bad
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS


def versions(lab: Lab, name: str, *texts: str) -> list[str]:
    """Build an image once for each text in a file of it; the hashes."""
    hashes = []
    for text in texts:
        lab.write(name, "x", text)
        lab.run(name)
        hashes.append(lab.digest(name))
    lab.built()
    return hashes


def serve(lab: Lab, image: str, name: str = "jupyter-ann", *, start: bool = False) -> None:
    """A student's server, running or not."""
    with docker.APIClient(lab.engine.url, version="1.41") as client:
        client.create_container(image, name=name)
        if start:
            client.start(name)


# --- roll back --------------------------------------------------------------------------------------------------------


def test_a_roll_back_brings_the_previous_good_one_back(lab: Lab) -> None:
    """The bad one keeps a name that says so, and what was built on it is named."""
    lab.run()
    good = lab.digest("torch"), lab.image("torch").id
    (worse,) = versions(lab, "torch", "1")
    lab.run("vision")
    result = lab.run("--rollback", "torch")
    assert (lab.digest("torch"), lab.image("torch").id) == good
    assert lab.tags("torch") == {"latest", good[0], f"bad-{worse}"}
    assert f"New servers start from torch:{good[0]} again. {worse} is remembered as bad" in result.stdout
    assert "Built on the bad one and still in use: vision." in result.stdout


def test_what_was_rolled_back_is_not_published_again(lab: Lab) -> None:
    """It is held until its folder changes; what stands on it goes back to the good one without a build."""
    lab.run()
    vision = lab.image("vision").id
    versions(lab, "torch", "1")
    lab.run("vision")
    lab.built()
    lab.run("--rollback", "torch")
    result = lab.run()
    assert "this content was rolled back, so what was good before stays in use" in result.stdout
    assert "images/build_images.py --no-cache torch" in result.stdout
    assert (lab.image("vision").id, lab.built()) == (vision, [])
    assert lab.results() == {"base": "unchanged", "scipy": "unchanged", "torch": "held", "vision": "unchanged"}
    plan = lab.run("--dry-run").stdout
    assert [line.split("  ")[0] for line in plan.splitlines() if "its content was rolled back" in line] == ["torch"]
    assert "rolled back" in lab.run("--list").stdout
    lab.write("torch", "x", "2")
    assert lab.results() == {"base": "unchanged", "scipy": "unchanged", "torch": "built", "vision": "built"}


def test_what_is_built_on_a_held_image_is_built_on_the_good_one(lab: Lab) -> None:
    """A leaf that changes while its parent is held."""
    lab.run("scipy")
    base = lab.image("base")
    versions(lab, "base", "1")
    lab.run("--rollback", "base")
    lab.write("scipy", "x", "1")
    assert lab.results("scipy") == {"base": "held", "scipy": "built"}
    assert lab.image("scipy").layers[: len(base.layers)] == base.layers


def test_a_bad_one_can_be_built_anew_as_it_is(lab: Lab) -> None:
    """--no-cache NAME: its packages are newer now. If it passes, it is good; the old bytes are not."""
    versions(lab, "torch", "1", "2")
    (bad_hash,) = {lab.digest("torch")}
    before = lab.image("torch").id
    lab.run("--rollback", "torch")
    assert lab.results("--no-cache", "torch")["torch"] == "built"
    assert lab.digest("torch") == bad_hash
    assert lab.image("torch").id != before
    assert f"bad-{bad_hash}" not in lab.tags("torch")
    assert lab.results("torch")["torch"] == "unchanged"


def test_a_bad_one_that_a_student_still_runs_can_be_built_anew(lab: Lab) -> None:
    """No engine takes the last name of an image in use: the mark is moved away from it first."""
    versions(lab, "torch", "1", "2")
    before = lab.image("torch").id
    serve(lab, before, start=True)
    lab.run("--rollback", "torch")
    assert lab.results("--no-cache", "torch")["torch"] == "built"
    assert lab.results("torch")["torch"] == "unchanged"
    assert [image.id for image in lab.engine.unnamed] == [before]


def test_there_is_a_way_back_from_another_build_of_the_same_content(lab: Lab) -> None:
    """--no-cache fetches newer packages; when these are what is broken, the build of before comes back and stays."""
    lab.run("scipy")
    before, digest = lab.image("scipy").id, lab.digest("scipy")
    assert lab.results("--no-cache", "scipy")["scipy"] == "built"
    assert lab.image("scipy").id != before
    lab.run("--rollback", "scipy")
    assert lab.image("scipy").id == before
    assert lab.results("scipy")["scipy"] == "unchanged"
    kept = {"latest", f"bad-{digest}", f"{digest}-{before.removeprefix('sha256:')[:12]}"}
    assert lab.tags("scipy") == kept
    lab.run("--prune", "--keep", "1")
    assert lab.tags("scipy") == kept
    assert lab.image("scipy").id == before


def test_a_bad_one_that_fails_again_stays_bad(lab: Lab) -> None:
    """Built anew, tried, and not published."""
    versions(lab, "torch", "1", "2")
    bad_hash = lab.digest("torch")
    lab.run("--rollback", "torch")
    good = lab.image("torch").id
    lab.trials.verdicts["torch"] = bad("It does not start.")
    assert lab.results("--no-cache", "torch", status=1)["torch"] == "failed"
    assert (lab.image("torch").id, f"bad-{bad_hash}" in lab.tags("torch")) == (good, True)
    assert lab.results("torch")["torch"] == "held"


def test_two_steps_back_are_two_roll_backs(lab: Lab) -> None:
    """Each time to the one that was published before; a folder that says an older content again gets that."""
    one, two, three = versions(lab, "scipy", "1", "2", "3")
    lab.run("--rollback", "scipy")
    assert lab.digest("scipy") == two
    lab.run("--rollback", "scipy")
    assert lab.digest("scipy") == one
    assert lab.tags("scipy") == {"latest", one, f"bad-{two}", f"bad-{three}"}
    assert "There is no earlier good version of gpuspawner/scipy" in lab.run("--rollback", "scipy", status=2).stderr
    lab.write("scipy", "x", "1")
    assert lab.results("scipy")["scipy"] == "unchanged"


@pytest.mark.parametrize("calls", range(1, 4))
def test_a_roll_back_that_was_cut_off_is_simply_repeated(lab: Lab, calls: int) -> None:
    """Whichever step was the last that was done, the end is the same."""
    one, two, three = versions(lab, "scipy", "1", "2", "3")
    cut = _CutOff(calls)
    with lab.engine.faults.during(cut):
        assert "The Docker engine does not answer" in lab.run("--rollback", "scipy", status=2).stderr
    lab.run("--rollback", "scipy")
    assert lab.digest("scipy") == two
    assert lab.tags("scipy") == {"latest", one, two, f"bad-{three}"}


class _CutOff(HangsUp):
    """The engine goes away at the n-th call that changes a name."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._left = number

    async def arriving(self, call: object) -> None:
        if getattr(call, "operation", "") in ("tag", "remove_image"):
            self._left -= 1
            if self._left <= 0:
                await super().arriving(call)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("scipy", "There is no earlier good version of gpuspawner/scipy in the engine", id="built once"),
        pytest.param("vision", "There is no image gpuspawner/vision in the engine", id="never built"),
        pytest.param("scipi", "There is no image 'scipi'. There is: base, scipy, torch, vision.", id="no such folder"),
    ],
)
def test_where_there_is_nothing_to_go_back_to_that_is_said(lab: Lab, name: str, message: str) -> None:
    """And nothing has changed."""
    lab.run("scipy")
    before = lab.ids
    assert message in lab.run("--rollback", name, status=2).stderr
    assert lab.ids == before


def test_a_roll_back_is_told_to_programs(lab: Lab) -> None:
    """The versions by their hashes."""
    lab.run("vision")
    good = lab.digest("torch")
    (worse,) = versions(lab, "torch", "1")
    lab.run("vision")
    about = {"name": "torch", "bad": worse, "good": good, "standing_on_it": ["vision"]}
    assert lab.json("--rollback", "torch") == {"ok": True, "rolled_back": about}


# --- prune ------------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_good_ones(lab: Lab) -> None:
    """Three by default, as many as asked for, and never fewer than the one in use."""
    hashes = versions(lab, "scipy", *"12345")
    assert f"removed gpuspawner/scipy:{hashes[0]}" in lab.run("--prune").stdout
    assert lab.tags("scipy") == {"latest", *hashes[2:]}
    assert lab.run("--prune").stdout == "Nothing to remove.\n"
    assert lab.json("--prune", "--keep", "1") == {
        "ok": True,
        "removed": [f"gpuspawner/scipy:{digest}" for digest in hashes[2:4]],
    }
    assert lab.tags("scipy") == {"latest", hashes[4]}
    assert "Invalid value for '--keep'" in lab.run("--prune", "--keep", "0", status=2).stderr


def test_prune_leaves_what_a_container_was_made_from(lab: Lab) -> None:
    """Running or not; the rest of that age goes."""
    hashes = versions(lab, "scipy", *"1234")
    serve(lab, f"gpuspawner/scipy:{hashes[0]}", start=True)
    serve(lab, f"gpuspawner/scipy:{hashes[1]}", "jupyter-bob")
    lab.run("--prune", "--keep", "1")
    assert lab.tags("scipy") == {"latest", *hashes[:2], hashes[3]}


@pytest.mark.parametrize("how", ["beside", "option", "environment"])
def test_prune_leaves_what_a_profile_names(lab: Lab, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the configuration beside the folder, or the one that is named, whatever else is in that file."""
    hashes = versions(lab, "scipy", *"123")
    config = lab.folder.parent / "jupyterhub_config.py" if how == "beside" else lab.root / "hub.py"
    config.write_text(f'c.GPUSpawner.profile_list = [{{"image": "gpuspawner/scipy:{hashes[0]}"}}]\nraise SystemExit\n')
    if how == "environment":
        monkeypatch.setenv("GPUSPAWNER_CONFIG", str(config))
    lab.run("--prune", "--keep", "1", *(["--config", str(config)] if how == "option" else []))
    assert lab.tags("scipy") == {"latest", hashes[0], hashes[2]}


def test_prune_removes_nothing_where_a_configuration_cannot_be_read(lab: Lab) -> None:
    """Its profiles may name what would go."""
    hashes = versions(lab, "scipy", *"12")
    result = lab.run("--prune", "--keep", "1", "--config", str(lab.root / "none.py"), status=2)
    assert "none.py, cannot be read: No such file or directory. Nothing is removed" in result.stderr
    assert lab.tags("scipy") == {"latest", *hashes}


def test_prune_remembers_bad_ones_without_their_bytes(lab: Lab) -> None:
    """The mark is an image of nothing; the next refresh still holds."""
    versions(lab, "scipy", *"12")
    worse = lab.image("scipy")
    bad_tag = f"bad-{lab.digest('scipy')}"
    lab.run("--rollback", "scipy")
    assert f"removed gpuspawner/scipy:{bad_tag}" in lab.run("--prune").stdout
    assert lab.image("scipy", bad_tag).size == 0
    assert worse.id not in {image.id for image in (*lab.engine.images, *lab.engine.unnamed)}
    assert lab.results("scipy")["scipy"] == "held"
    assert lab.run("--prune").stdout == "Nothing to remove.\n"


def test_prune_of_a_bad_one_leaves_the_name_that_an_admin_gave_to_it(lab: Lab) -> None:
    """To look at it later: by its id the engine would take that name with it."""
    versions(lab, "scipy", *"12")
    lab.engine.tag("gpuspawner/scipy:latest", "school/look-at-me:1")
    worse = lab.image("scipy").id
    lab.run("--rollback", "scipy")
    lab.run("--prune")
    assert lab.ids["school/look-at-me:1"] == worse


def test_prune_clears_failed_and_unfinished_ones_away(lab: Lab) -> None:
    """Also those that have lost their name, but not what a container still runs."""
    lab.run("scipy")
    lab.trials.verdicts["scipy"] = bad("no")
    for text in "123":
        lab.write("scipy", "x", text)
        lab.run("scipy", status=1)
    lab.engine.tag("gpuspawner/scipy:failed", "gpuspawner/scipy:candidate-0123456789ab")
    lost = [image.id for image in lab.engine.unnamed]
    assert len(lost) == 2
    serve(lab, lost[0])
    removed = lab.json("--prune")["removed"]
    assert removed == [
        "gpuspawner/scipy:candidate-0123456789ab",
        "gpuspawner/scipy:failed",
        lost[1].removeprefix("sha256:")[:12],
    ]
    assert [image.id for image in lab.engine.unnamed] == [lost[0]]
    assert lab.tags("scipy") == {"latest", lab.digest("scipy")}


def test_prune_touches_nothing_that_the_shelf_did_not_build(lab: Lab) -> None:
    """Bases, other people's images, and names that an admin gave to ours."""
    lab.run("scipy")
    lab.engine.add_image("gpuspawner/debian:12")
    lab.engine.add_image("school/lab:1")
    lab.engine.tag("gpuspawner/scipy:latest", "school/scipy:1")
    before = lab.ids
    lab.run("--prune", "--keep", "1")
    assert lab.ids == before


def test_prune_of_what_an_older_image_stands_on(lab: Lab) -> None:
    """With the classic builder the engine knows parents: they go with the last that stands on them."""
    (lab.docker.root / "docker").unlink()
    for text in "12":
        lab.write("base", "x", text)
        lab.run("scipy")
    lab.run("--prune", "--keep", "1")
    assert {name: len(lab.tags(name)) for name in ("base", "scipy")} == {"base": 2, "scipy": 2}
    assert lab.engine.unnamed == []


# --- push -------------------------------------------------------------------------------------------------------------

REGISTRY = "registry.example:5000/lab"


def test_push_copies_what_servers_start_from(lab: Lab) -> None:
    """Under its own tag and as latest; here no name of the registry is left."""
    result = lab.run("--push", f"{REGISTRY}/", "scipy")
    for name in ("base", "scipy"):
        references = [f"{REGISTRY}/gpuspawner/{name}:{tag}" for tag in (lab.digest(name), "latest")]
        assert {lab.engine.registry[reference].id for reference in references} == {lab.image(name).id}
        assert f"{name}: pushed {', '.join(references)}" in result.stdout
    assert not any(REGISTRY in reference for reference in lab.ids)
    found = {image["name"]: image for image in lab.json("--push", REGISTRY, "base")["images"]}
    assert found["base"]["pushed"] == [f"{REGISTRY}/gpuspawner/base:{tag}" for tag in (lab.digest("base"), "latest")]
    assert found["base"]["result"] == "unchanged"


def test_push_copies_the_good_ones_of_a_run_that_failed(lab: Lab) -> None:
    """The others are not sound."""
    lab.trials.verdicts["torch"] = bad("no")
    lab.run("--push", REGISTRY, status=1)
    pushed = {name for name in DOCKERFILES if f"{REGISTRY}/gpuspawner/{name}:latest" in lab.engine.registry}
    assert pushed == {"base", "scipy"}


def test_a_push_that_is_refused_is_a_failure_and_not_the_end_of_what_was_built(lab: Lab) -> None:
    """The images are published all the same; the sentence names the registry and its words."""
    lab.engine.faults.add(RegistryDown(f"{REGISTRY}/*", message="unauthorized: authentication required"))
    result = lab.run("--push", REGISTRY, "base", status=1)
    assert "base was not pushed, nor what comes after it." in result.stdout
    assert f"Look whether {REGISTRY} runs and takes images from here." in result.stdout
    assert "unauthorized: authentication required" in result.stdout
    assert lab.tags("base") == {"latest", lab.digest("base")}
    assert not any(REGISTRY in reference for reference in lab.ids)
    told = lab.json("--push", REGISTRY, "base", status=1)
    assert (told["ok"], "unauthorized" in told["refused"]) == (False, True)


def test_an_image_that_is_gone_cannot_be_pushed(lab: Lab) -> None:
    """Removed between its build and its push."""
    images = Images({"DOCKER_HOST": lab.engine.url})
    with pytest.raises(BuildError, match="There is no image gpuspawner/base in the engine: build it first"):
        upkeep.push(images, REGISTRY, "base", print)
    images.client.close()


def test_what_an_image_costs(lab: Lab) -> None:
    """The common part is counted once in the total."""
    for name in DOCKERFILES:
        lab.write(name, "data", name * 100)
    lab.run()
    told = {image["name"]: image for image in lab.json("--list")["images"]}
    size = {name: image["size_bytes"] for name, image in told.items()}
    assert told["scipy"]["own_bytes"] == size["scipy"] - size["base"]
    assert told["scipy"]["shared_bytes"] == size["base"]
    assert (told["base"]["own_bytes"], told["torch"]["own_bytes"]) == (0, 0)
    assert lab.json("--list")["bytes"] == size["scipy"] + size["vision"] - size["base"]
