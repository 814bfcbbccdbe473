"""The stand-in engine's images: its named faults, and what a test may look at. The rest is in `tests/contract`."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError

from tests.standins.engine import BuildFails, BuildHangs, HangsUp, RegistryDown, RegistrySilent, StandinEngine
from tests.unit.sockets import BROKEN_SOCKETS
from tests.unit.waiting import until

pytestmark = BROKEN_SOCKETS


@pytest.fixture
def engine() -> Iterator[StandinEngine]:
    """An engine with one image here and one elsewhere."""
    with StandinEngine() as one:
        one.add_image("debian:12", size=100)
        one.add_image("school/lab:1", remote=True)
        yield one
        one.faults.clear()


@pytest.fixture
def api(engine: StandinEngine) -> Iterator[docker.APIClient]:
    """The real docker-py on it."""
    client = docker.APIClient(engine.url, timeout=5)
    yield client
    client.close()


def build(api: docker.APIClient, dockerfile: str, tag: str = "x:1", **more: Any) -> list[dict[str, Any]]:
    """What the classic builder says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile.encode())
        tar.addfile(entry, io.BytesIO(dockerfile.encode()))
    buffer.seek(0)
    return list(api.build(fileobj=buffer, custom_context=True, tag=tag, decode=True, **more))


def test_a_build_that_fails_by_its_name(engine: StandinEngine, api: docker.APIClient) -> None:
    """In its last step, as often as was said; others succeed."""
    with engine.faults.during(BuildFails("x:*", "no space left on device", times=1)) as fault:
        assert build(api, "FROM debian:12\nENV a=1\n")[-1]["error"] == "no space left on device"
        assert "error" not in build(api, "FROM debian:12\nENV a=1\n", "y:1")[-1]
        assert "error" not in build(api, "FROM debian:12\nENV a=1\n")[-1]
    assert fault.struck == 1


def test_a_build_that_hangs_goes_on_when_it_is_let(engine: StandinEngine, api: docker.APIClient) -> None:
    """Its image is there only then."""
    done: list[str] = []
    with engine.faults.during(BuildHangs()) as fault:
        thread = threading.Thread(target=lambda: done.append(build(api, "FROM debian:12\nENV a=1\n")[-1]["stream"]))
        thread.start()
        until(lambda: fault.struck == 1)
        assert [image.ref for image in engine.images] == ["debian:12"]
    thread.join(10)
    assert done == ["Successfully tagged x:1\n"]
    assert sorted(image.ref for image in engine.images) == ["debian:12", "x:1"]


def test_a_registry_that_is_down(engine: StandinEngine, api: docker.APIClient) -> None:
    """For questions, pulls and pushes of the names that were said; importing needs none."""
    api.tag("debian:12", "school/debian", "1")
    with engine.faults.during(RegistryDown("school/*", message="no such host")):
        asked: tuple[Callable[[], object], ...] = (
            lambda: api.inspect_distribution("school/lab:1"),
            lambda: api.pull("school/lab", tag="1"),
            lambda: api.push("school/debian", tag="1"),
        )
        for ask in asked:
            with pytest.raises(APIError, match="no such host"):
                ask()
        api.import_image_from_data(b"\0" * 10240, repository="school/empty", tag="1")
    assert api.inspect_distribution("school/lab:1")["Descriptor"]["digest"].startswith("sha256:")


def test_a_registry_that_is_silent(engine: StandinEngine) -> None:
    """Nothing comes within the client's patience."""
    with (
        engine.faults.during(RegistrySilent()),
        docker.APIClient(engine.url, timeout=0.2) as impatient,
        pytest.raises(requests.exceptions.ReadTimeout),
    ):
        impatient.inspect_distribution("school/lab:1")


def test_an_engine_that_dies_in_the_middle(engine: StandinEngine, api: docker.APIClient) -> None:
    """At the calls that were said, and not at others."""
    with engine.faults.during(HangsUp("history")):
        assert api.inspect_image("debian:12")["Size"] == 100
        with pytest.raises(requests.exceptions.ConnectionError):
            api.history("debian:12")


def test_a_builder_that_has_to_pull_its_parent(engine: StandinEngine, api: docker.APIClient) -> None:
    """Then it is there, with its digest; one that no registry has ends the build."""
    assert "error" not in build(api, "ARG B=school/lab:1\nFROM $B AS a\nFROM a\nENV x=1\n")[-1]
    assert api.inspect_image("school/lab:1")["RepoDigests"][0].startswith("school/lab@sha256:")
    assert build(api, "FROM school/nope:1\nENV x=1\n")[-1]["error"].startswith("pull access denied for school/nope")


def test_what_only_buildkit_takes(api: docker.APIClient) -> None:
    """The classic builder does not know heredocs; asked as BuildKit it takes them and leaves no parent."""
    dockerfile = "FROM debian:12\nRUN <<END\nfrom here\nEND\nRUN --mount=type=cache,target=/x true\n"
    with pytest.raises(APIError, match="dockerfile parse error line 4: unknown instruction: END"):
        build(api, dockerfile.replace("from here\n", "RUN x\n"))
    assert "error" in build(api, "FROM debian:12\nRUN --mount=type=cache,target=/x true\n")[-1]


def test_bookkeeping(engine: StandinEngine, api: docker.APIClient) -> None:
    """A name that moves leaves its image without one; a removal takes it away; an engine has a name of its own."""
    first = next(image.id for image in engine.images)
    engine.tag("debian:12", "debian:old")
    engine.add_image("debian:12")
    assert {image.ref: image.id == first for image in engine.images} == {"debian:12": False, "debian:old": True}
    engine.add_image("debian:old")
    assert [image.id for image in engine.unnamed] == [first]
    engine.remove_image("debian:old")
    assert [image.ref for image in engine.images] == ["debian:12"]
    assert {name.partition("@")[0] for name in engine.registry} == {"school/lab:1", "school/lab"}
    with StandinEngine() as other, docker.APIClient(other.url) as another:
        assert another.info()["ID"] != api.info()["ID"]
