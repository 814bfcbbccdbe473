"""The engine's images, as the builder asks for them: the real docker-py on the stand-in engine."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker.errors import DockerException

from gpuspawner.dockerd import images as module
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes import HASH_LABEL
from tests.standins.engine import (
    EngineDown,
    EngineSlow,
    Fault,
    HangsUp,
    Http500,
    NoSuchImage,
    RegistryDown,
    RegistrySilent,
    StandinEngine,
)
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS

HASHED = {HASH_LABEL: "1" * 64}


@pytest.fixture
def engine() -> Iterator[StandinEngine]:
    """An engine with one image of the shelf and one from elsewhere."""
    with StandinEngine() as one:
        one.add_image("debian:12", size=100)
        one.add_image("gpuspawner/base", labels=HASHED, size=120)
        yield one
        one.faults.clear()


@pytest.fixture
def images(engine: StandinEngine) -> Iterator[Images]:
    """Its images."""
    one = Images({"DOCKER_HOST": engine.url})
    yield one
    if "client" in vars(one):
        one.client.close()


def test_an_image_or_none(engine: StandinEngine, images: Images) -> None:
    """By name or id; what is not there is no error."""
    found = images.get("debian:12")
    assert found is not None
    assert (found.size_bytes, set(found.references), dict(found.labels)) == (100, {"debian:12"}, {})
    assert images.get(found.id) == found
    assert images.get("gpuspawner/base") == images.get("gpuspawner/base:latest")
    assert images.get("nothing:1") is None


def test_what_a_shelf_built_is_found_with_and_without_a_name(engine: StandinEngine, images: Images) -> None:
    """By its label; two names are one image."""
    engine.tag("gpuspawner/base", "gpuspawner/base:" + "1" * 12)
    engine.add_image("gpuspawner/old", labels=HASHED)
    engine.add_image("gpuspawner/old", labels={})
    found = {image.references for image in images.built_here()}
    assert found == {frozenset({"gpuspawner/base:latest", "gpuspawner/base:" + "1" * 12}), frozenset()}


def test_an_image_that_goes_while_they_are_listed_is_left_out(engine: StandinEngine, images: Images) -> None:
    """Somebody else prunes at the same time."""
    with engine.faults.during(NoSuchImage()):
        assert images.built_here() == ()


def test_layers_come_the_lowest_first(engine: StandinEngine, images: Images) -> None:
    """With their sizes."""
    for _ in images.client.build(fileobj=_context(a=b"12345"), custom_context=True, tag="x:1", decode=True):
        pass
    sizes = [layer.size_bytes for layer in images.layers("x:1")]
    assert sizes == [100, 5]
    assert images.layers("debian:12") == images.layers("x:1")[:1]


def _context(**files: bytes) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in {"Dockerfile": b"FROM debian:12\nCOPY a /a\n", **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def test_what_containers_were_made_from_is_used(engine: StandinEngine, images: Images) -> None:
    """Whether they run or not."""
    assert images.used_by_containers() == frozenset()
    images.client.create_container("debian:12", ["true"], name="box")
    assert images.used_by_containers() == {next(i.id for i in engine.images if i.ref == "debian:12")}


def test_names_are_given_moved_and_taken_away(engine: StandinEngine, images: Images) -> None:
    """The last name takes the image with it; a name that nothing has is fine."""
    images.tag("debian:12", "gpuspawner/base:latest")
    assert images.get("gpuspawner/base") == images.get("debian:12")
    images.untag("debian:12")
    assert images.get("debian:12") is None
    images.untag("gpuspawner/base:latest")
    images.untag("gpuspawner/base:latest")
    assert engine.images == []


def test_the_last_name_of_what_a_container_has_is_not_taken_away(engine: StandinEngine, images: Images) -> None:
    """The engine says who has it."""
    images.client.create_container("debian:12", ["true"], name="box")
    with pytest.raises(BuildError, match=r"Docker said: conflict: unable to remove .* container .* is using"):
        images.untag("debian:12")


def test_a_mark_is_an_image_of_nothing(images: Images) -> None:
    """A name and labels, whatever is in them."""
    images.mark("gpuspawner/base:bad-1", {HASH_LABEL: "1", "a": "b c"})
    mark = images.get("gpuspawner/base:bad-1")
    assert mark is not None
    assert (mark.size_bytes, mark.labels) == (0, {HASH_LABEL: "1", "a": "b c"})


def test_a_file_system_is_loaded_from_a_pipe(images: Images, tmp_path: Path) -> None:
    """As tar prints it; without labels none are set."""
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with subprocess.Popen(["tar", "-C", str(tmp_path), "-c", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        images.load(tar.stdout, "gpuspawner/debian:12")
    made = images.get("gpuspawner/debian:12")
    assert made is not None
    assert (made.size_bytes, made.labels) == (1000, {})


def test_an_archive_that_is_none_is_refused(images: Images) -> None:
    """In the engine's words."""
    with pytest.raises(BuildError, match="Docker said: Error processing tar file"):
        images.load(io.BytesIO(b"x" * 600), "x:1")


@pytest.mark.parametrize(("bridge", "network"), [(True, None), (False, "host")])
def test_the_network_of_builds(bridge: bool, network: str | None) -> None:
    """An engine without the default bridge has no other network in which pip would work."""
    with StandinEngine(bridge=bridge) as engine:
        images = Images({"DOCKER_HOST": engine.url})
        assert images.build_network() == network
        images.client.close()


def test_an_engine_is_told_from_others(images: Images) -> None:
    """For the lock: two engines of one machine may have the same id, and never the same folder."""
    about = images.client.info()
    assert images.engine_id() == f"{about['ID']} {about['DockerRootDir']}"


# --- registries -------------------------------------------------------------------------------------------------------


def test_what_a_registry_has_now(engine: StandinEngine, images: Images) -> None:
    """The same digest that a pulled image has, until there is a newer one; asking pulls nothing."""
    engine.add_image("school/lab:1", remote=True)
    digest = images.remote_digest("school/lab:1", answer_within_seconds=5)
    assert images.get("school/lab:1") is None
    said: list[str] = []
    images.pull("school/lab:1", said.append)
    pulled = images.get("school/lab:1")
    assert pulled is not None
    assert pulled.digest == digest != pulled.id
    assert said[0] == "1: Pulling from school/lab"
    assert said[-1].startswith("Status: Downloaded newer image")
    engine.add_image("school/lab:1", remote=True)
    assert images.remote_digest("school/lab:1", answer_within_seconds=5) != digest


def test_a_pull_without_a_tag_is_one_of_latest(engine: StandinEngine, images: Images) -> None:
    """Docker itself would pull every tag."""
    engine.add_image("school/lab", remote=True)
    images.pull("school/lab", lambda _: None)
    assert images.get("school/lab:latest") is not None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param(None, "manifest unknown: manifest unknown", id="not there"),
        pytest.param(RegistryDown(message="dial tcp: no such host"), "dial tcp: no such host", id="down"),
        pytest.param(RegistrySilent(), r"the registry gave no answer within 0\.2 seconds", id="silent"),
        pytest.param(EngineDown("close"), "The Docker engine does not answer at unix:", id="the engine is down"),
        pytest.param(HangsUp("distribution"), "The Docker engine does not answer at unix:", id="the engine dies"),
    ],
)
def test_a_registry_that_does_not_tell(
    engine: StandinEngine, images: Images, fault: Fault | None, message: str
) -> None:
    """Why, and after no longer than was allowed."""
    if fault:
        engine.faults.add(fault)
    with pytest.raises(BuildError, match=message):
        images.remote_digest("school/lab:1", answer_within_seconds=0.2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param(None, "school/lab:1: pull access denied for school/lab", id="not there"),
        pytest.param(RegistryDown(message="no such host"), "school/lab:1: no such host", id="down"),
        pytest.param(EngineDown("close"), "The Docker engine does not answer at unix:", id="the engine is down"),
        pytest.param(HangsUp("pull"), "The Docker engine does not answer at unix:", id="the engine dies"),
    ],
)
def test_a_pull_that_fails(engine: StandinEngine, images: Images, fault: Fault | None, message: str) -> None:
    """The name and the engine's words."""
    if fault:
        engine.faults.add(fault)
    with pytest.raises(BuildError, match=message):
        images.pull("school/lab:1", lambda _: None)


def test_an_image_is_pushed_under_its_name(engine: StandinEngine, images: Images) -> None:
    """And what the registry has is what was pushed; progress bars are not handed over."""
    images.tag("gpuspawner/base", "registry.example:5000/gpuspawner/base:latest")
    said: list[str] = []
    images.push("registry.example:5000/gpuspawner/base:latest", said.append)
    assert engine.registry["registry.example:5000/gpuspawner/base:latest"].labels == HASHED
    assert said[0] == "The push refers to repository [registry.example:5000/gpuspawner/base]"
    assert said[-1].startswith("latest: digest: sha256:")
    assert not any("Pushing" in line for line in said)


def test_a_push_that_fails_in_the_stream(images: Images) -> None:
    """The engine says 200 first, and what is wrong afterwards."""
    images.tag("gpuspawner/base", "127.0.0.1:1/base:1")
    with pytest.raises(BuildError, match=r"127\.0\.0\.1:1/base:1: Get .* connection refused"):
        images.push("127.0.0.1:1/base:1", lambda _: None)
    with pytest.raises(BuildError, match="An image does not exist locally"):
        images.push("registry.example/nope:1", lambda _: None)


# --- what is wrong ----------------------------------------------------------------------------------------------------


ASKED: dict[str, Callable[[Images], object]] = {
    "inspect_image": lambda images: images.get("x"),
    "list_images": lambda images: images.built_here(),
    "history": lambda images: images.layers("x"),
    "list": lambda images: images.used_by_containers(),
    "tag": lambda images: images.tag("x", "y"),
    "remove_image": lambda images: images.untag("x"),
    "import": lambda images: images.mark("x:1", {}),
    "inspect_network": lambda images: images.build_network(),
    "info": lambda images: images.engine_id(),
}
FULL = "write /x: no space left on device"


@pytest.mark.parametrize("operation", ASKED)
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        pytest.param("refuse", r"does not answer at unix:\S+\. Start it: 'sudo systemctl", id="refuses"),
        pytest.param("close", "does not answer at unix:", id="hangs up"),
        pytest.param("boom", "Docker said: boom", id="error"),
        pytest.param(FULL, r"The disk of the Docker engine is full\. Make room .* Docker said: write /x", id="full"),
    ],
)
def test_trouble_with_the_engine_is_a_sentence(
    engine: StandinEngine, images: Images, operation: str, trouble: str, message: str
) -> None:
    """Whatever was asked, with what to do where that is known."""
    assert images.client.ping()
    fault: Fault = Http500(operation, trouble)
    if trouble == "refuse":
        fault = EngineDown("refuse")
    elif trouble == "close":
        fault = EngineDown("close")
    with engine.faults.during(fault), pytest.raises(BuildError, match=message):
        ASKED[operation](images)


@pytest.mark.parametrize(
    ("environ", "error", "message"),
    [
        pytest.param({}, "FileNotFoundError(2, 'No such file or directory')", "not answer at its usual", id="usual"),
        pytest.param({"DOCKER_HOST": "unix:///x"}, "ConnectionRefused", "does not answer at unix:///x", id="named"),
        pytest.param({}, "PermissionError(13, 'Permission denied')", "You may not use the Docker engine", id="denied"),
    ],
)
def test_an_engine_that_lets_nobody_in(environ: dict[str, str], error: str, message: str) -> None:
    """In docker-py's words for it, which root cannot bring about."""
    told = Images(environ)._error(DockerException(f"Error while fetching server API version: ('Aborted.', {error})"))
    assert message in str(told)


def test_an_engine_without_a_socket(tmp_path: Path) -> None:
    """The first question tells."""
    with pytest.raises(BuildError, match=r"does not answer at unix:.*docker\.sock"):
        Images({"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}).get("x")


def test_an_engine_that_is_too_slow(engine: StandinEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute of silence; less here."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    images = Images({"DOCKER_HOST": engine.url})
    with (
        engine.faults.during(EngineSlow(30, on="inspect_image")),
        pytest.raises(BuildError, match=r"did not answer within 0\.2 seconds"),
    ):
        images.get("x")
    images.client.close()
