"""Images: built by the classic builder, and copied to and from a registry.

As in ``test_engine_contract``, each case runs against the stand-in and against a real engine.
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.engines import IMAGE, IMAGE_LABEL, LABEL, Engine, refusal, until
from tests.contract.shelf import Shelf, packed

pytestmark = pytest.mark.contract

NEVER = "0001-01-01T00:00:00Z"


@pytest.fixture
def shelf(engine: Engine) -> Iterator[Shelf]:
    """No image yet."""
    one = Shelf(engine)
    yield one
    one.clear()


class TestBuild:
    """The classic builder."""

    DOCKERFILE = f'FROM {IMAGE}\nARG V=1\nLABEL own=1\nCOPY a /a\nRUN echo hi\nENV X=2\nCMD ["sleep", "5"]\n'

    def test_what_it_says_and_makes(self, shelf: Shelf) -> None:
        """Numbered steps, then the id; config, labels and size are those of the Dockerfile over its parent's."""
        said = shelf.build("b:1", self.DOCKERFILE, {"a": "hello"}, buildargs={"V": "2"})
        steps = [line["stream"] for line in said if line.get("stream", "").startswith("Step ")]
        assert steps[:2] == [f"Step 1/8 : FROM {IMAGE}", "Step 2/8 : ARG V=1"]
        image, parent = shelf.inspect("b:1"), shelf.client.inspect_image(IMAGE)
        assert {"aux": {"ID": image["Id"]}} in said
        assert said[-1] == {"stream": f"Successfully tagged {shelf.ref('b:1')}\n"}
        assert image["Size"] == parent["Size"] + 5
        labels = image["Config"]["Labels"]
        assert labels.pop(IMAGE_LABEL), "the parent's labels are inherited"
        assert labels == {LABEL: shelf.engine.prefix, "own": "1"}
        assert {"FROM_IMAGE=1", "X=2"} <= set(image["Config"]["Env"])
        assert image["Config"]["Cmd"] == ["sleep", "5"]
        assert image["Parent"]

    def test_its_history(self, shelf: Shelf) -> None:
        """The newest first; only that one has a name; arguments are in it with their values."""
        shelf.build("b:1", self.DOCKERFILE, {"a": "hello"}, buildargs={"V": "2"})
        layers = shelf.client.history(shelf.ref("b:1"))
        assert [layer["Tags"] for layer in layers] == [
            [shelf.ref("b:1")],
            *[None] * (len(layers) - 2),
            layers[-1]["Tags"],
        ]
        assert [layer["Size"] for layer in layers[:7]] == [0, 0, 0, 0, 5, 0, 0]
        assert layers[3]["CreatedBy"] == "|1 V=2 /bin/sh -c echo hi"
        assert layers[2]["CreatedBy"] == "/bin/sh -c #(nop)  ENV X=2"
        assert layers[-1]["CreatedBy"] == ""

    def test_the_same_again_is_the_same_image(self, shelf: Shelf) -> None:
        """From the cache; without it, and after a change, another one."""
        shelf.build("b:1", self.DOCKERFILE, {"a": "hello"})
        first = shelf.id("b:1")
        shelf.build("b:1", self.DOCKERFILE, {"a": "hello"})
        assert shelf.id("b:1") == first
        shelf.build("b:1", self.DOCKERFILE, {"a": "hallo"})
        changed = shelf.id("b:1")
        shelf.build("b:1", self.DOCKERFILE, {"a": "hello"}, nocache=True)
        assert len({first, changed, shelf.id("b:1")}) == 3
        assert shelf.names(first) == []

    def test_layers_below_a_change_are_shared(self, shelf: Shelf) -> None:
        """Two images have the same history up to it."""
        for name, text in (("b:1", "one"), ("b:2", "two")):
            shelf.build(name, f"FROM {IMAGE}\nCOPY a /a\nCOPY b /b\n", {"a": "same", "b": text})
        one, two = (
            [(layer["Created"], layer["CreatedBy"], layer["Size"]) for layer in shelf.client.history(shelf.ref(name))]
            for name in ("b:1", "b:2")
        )
        assert one[2:] == two[2:]
        assert one[1] != two[1]

    @pytest.mark.parametrize(
        ("dockerfile", "problem"),
        [
            pytest.param("RUN false", "The command '/bin/sh -c false' returned a non-zero code: 1", id="false"),
            pytest.param("RUN exit 3", "The command '/bin/sh -c exit 3' returned a non-zero code: 3", id="exit"),
            pytest.param(
                "COPY nope /x",
                "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not "
                "exist",
                id="no such file",
            ),
            pytest.param("COPY *.crt /x/", "COPY failed: no source files were specified", id="nothing matches"),
            pytest.param(
                "RUN --mount=type=cache,target=/x true",
                "the --mount option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to "
                "build images with BuildKit enabled",
                id="for BuildKit",
            ),
        ],
    )
    def test_a_build_that_fails(self, shelf: Shelf, dockerfile: str, problem: str) -> None:
        """The stream's last line says so; there is no image."""
        said = shelf.build("f:1", f"FROM {IMAGE}\n{dockerfile}\n")
        assert (said[-1]["error"], said[-1]["errorDetail"]["message"]) == (problem, problem)
        assert refusal(shelf.client.inspect_image, shelf.ref("f:1"))[0] == 404

    def test_a_network_that_is_not_there(self, shelf: Shelf) -> None:
        """The first step that runs fails."""
        said = shelf.build("f:1", f"FROM {IMAGE}\nRUN true\n", network_mode=shelf.engine.name("net"))
        assert said[-1]["error"] == f"network {shelf.engine.name('net')} not found"

    @pytest.mark.parametrize(
        ("dockerfile", "answer"),
        [
            pytest.param("RUN x\n", (400, "no build stage in current context"), id="no FROM"),
            pytest.param("", (400, "the Dockerfile (Dockerfile) cannot be empty"), id="empty"),
            pytest.param("# x\n", (400, "failed to parse Dockerfile: file with no instructions"), id="comment"),
            pytest.param(
                f"FROM {IMAGE}\nFLY\n", (400, "dockerfile parse error line 2: unknown instruction: FLY"), id="unknown"
            ),
        ],
    )
    def test_a_dockerfile_that_cannot_be_read(self, shelf: Shelf, dockerfile: str, answer: tuple[int, str]) -> None:
        """Refused before the first step."""
        assert refusal(shelf.build, "f:1", dockerfile) == answer

    def test_a_context_without_a_dockerfile(self, shelf: Shelf) -> None:
        """Refused."""
        context = io.BytesIO(packed(a="x"))

        def build() -> None:
            list(shelf.client.build(fileobj=context, custom_context=True, tag=shelf.ref("f:1")))

        assert refusal(build) == (500, "Cannot locate specified Dockerfile: Dockerfile")

    def test_an_argument_that_nothing_declares(self, shelf: Shelf) -> None:
        """A warning; the proxies are known without being declared."""
        said = shelf.build("w:1", f"FROM {IMAGE}\nENV a=b\n", buildargs={"NOPE": "1", "https_proxy": "http://p:1"})
        assert {"stream": "[Warning] One or more build-args [NOPE] were not consumed\n"} in said


@pytest.fixture
def registry(shelf: Shelf, tmp_path: Path) -> Iterator[str]:
    """The host and port of a registry that the engine reaches and that holds nothing."""
    program = shutil.which("docker-registry")
    if not shelf.engine.real:
        yield "127.0.0.1:5000"
        return
    if program is None:
        pytest.skip("no local registry: install docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    argv = [program, "serve", str(tmp_path / "registry.yml")]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            host, port = address.split(":")
            until(lambda: _listens(host, int(port)))
            yield address
        finally:
            running.terminate()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def said_by(stream: Any) -> list[str]:
    """The plain statuses of a pull or push; what comes with a progress is left out."""
    return [line["status"] for line in stream if line.get("status") and "progressDetail" not in line]


class TestRegistry:
    """Pushed, looked up, pulled."""

    def test_there_and_back(self, shelf: Shelf, registry: str) -> None:
        """The digest is the registry's, not the id; it is a name of the image until its last tag there goes."""
        made = shelf.make()
        remote = f"{registry}/{shelf.ref('x')}"
        shelf.client.tag(made, remote, "1")
        lines = list(shelf.client.push(remote, tag="1", stream=True, decode=True))
        assert lines[0] == {"status": f"The push refers to repository [{remote}]"}
        digest = lines[-1]["aux"]["Digest"]
        assert digest != made
        assert shelf.client.inspect_distribution(f"{remote}:1")["Descriptor"]["digest"] == digest
        assert shelf.inspect(made)["RepoDigests"] == [f"{remote}@{digest}"]
        shelf.client.remove_image(f"{remote}:1")
        assert (shelf.inspect(made)["RepoDigests"], shelf.inspect(made)["RepoTags"]) == ([], [shelf.ref()])
        shelf.client.remove_image(shelf.ref())
        said = said_by(shelf.client.pull(remote, tag="1", stream=True, decode=True))
        assert said[-2:] == [f"Digest: {digest}", f"Status: Downloaded newer image for {remote}:1"]
        image = shelf.client.inspect_image(f"{remote}:1")
        assert (image["Id"], image["RepoDigests"]) == (made, [f"{remote}@{digest}"])
        assert image["Metadata"]["LastTagTime"] == NEVER
        again = said_by(shelf.client.pull(remote, tag="1", stream=True, decode=True))
        assert again[-1] == f"Status: Image is up to date for {remote}:1"

    def test_a_newer_one(self, shelf: Shelf, registry: str) -> None:
        """The tag gets another digest; a pull moves it, and the old image keeps its digest."""
        remote = f"{registry}/{shelf.ref('x')}"
        old, new = shelf.make("a:1", "old"), shelf.make("b:1", "new")
        digests = []
        for made in (new, old):
            shelf.client.tag(made, remote, "1")
            digests.append(list(shelf.client.push(remote, tag="1", stream=True, decode=True))[-1]["aux"]["Digest"])
        shelf.client.tag(new, remote, "1")
        list(shelf.client.push(remote, tag="1", stream=True, decode=True))
        shelf.client.tag(old, remote, "1")
        assert shelf.client.inspect_distribution(f"{remote}:1")["Descriptor"]["digest"] == digests[0]
        shelf.client.pull(remote, tag="1")
        assert shelf.client.inspect_image(f"{remote}:1")["Id"] == new
        assert shelf.inspect(old)["RepoDigests"] == [f"{remote}@{digests[1]}"]

    def test_what_it_does_not_have(self, shelf: Shelf, registry: str) -> None:
        """404, before anything is streamed."""
        remote = f"{registry}/{shelf.ref('nope')}"
        assert refusal(shelf.client.inspect_distribution, f"{remote}:1") == (404, "manifest unknown: manifest unknown")
        assert refusal(shelf.client.pull, remote, tag="1", stream=True) == (
            404,
            f"manifest for {remote}:1 not found: manifest unknown: manifest unknown",
        )

    def test_a_registry_that_nobody_runs(self, shelf: Shelf) -> None:
        """Questions and pulls are refused with a status, pushes in the stream."""
        remote = "127.0.0.1:1/x"
        text = 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
        assert refusal(shelf.client.inspect_distribution, f"{remote}:1") == (500, text)
        assert refusal(shelf.client.pull, remote, tag="1", stream=True) == (500, text)
        shelf.client.tag(shelf.make(), remote, "1")
        try:
            lines = list(shelf.client.push(remote, tag="1", stream=True, decode=True))
        finally:
            shelf.client.remove_image(f"{remote}:1")
        assert lines[-1]["error"] == text
