"""The first look at the engine, over its socket and without docker-py."""

from __future__ import annotations

import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuspawner.builder import glance
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from tests.standins.engine import EngineDown, EngineSlow, Http500, StandinEngine
from tests.unit.sockets import BROKEN_SOCKETS

pytestmark = BROKEN_SOCKETS


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinEngine]:
    """An engine with two images, named by this process's environment."""
    with StandinEngine() as one:
        one.add_image("debian:12", size=7)
        one.add_image("gpuspawner/base", labels={"a": "b"})
        monkeypatch.setenv("DOCKER_HOST", one.url)
        yield one
        one.faults.clear()


WANTED = ["debian:12", "gpuspawner/base", "gpuspawner/base:latest", "nothing:1", "odd name:1"]


def test_it_sees_what_docker_py_sees(engine: StandinEngine) -> None:
    """Images as the same values, in one connection; what is not there is None."""
    seen = glance.look(WANTED, {"DOCKER_HOST": engine.url})
    assert seen is not None
    properly = Images({"DOCKER_HOST": engine.url})
    assert seen == {**{name: properly.get(name) for name in WANTED[:-1]}, "odd name:1": None}
    assert [name for name, image in seen.items() if image] == WANTED[:3]
    properly.client.close()


def test_nothing_to_look_for(engine: StandinEngine) -> None:
    """Is no reason to ask."""
    assert glance.look([], {"DOCKER_HOST": engine.url}) == {}
    assert engine.calls == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Http500("inspect_image"), id="error"),
        pytest.param(EngineDown("close"), id="hangs up"),
        pytest.param(EngineDown("refuse"), id="refuses"),
        pytest.param(EngineSlow(30), id="silent"),
    ],
)
def test_what_is_not_plainly_answered_is_to_be_asked_properly(
    engine: StandinEngine, fault: Http500, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker-py has the words for what is wrong."""
    monkeypatch.setattr(glance, "SECONDS", 0.2)
    with engine.faults.during(fault):
        assert glance.look(WANTED, {"DOCKER_HOST": engine.url}) is None


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("tcp://127.0.0.1:1", id="tcp"),
        pytest.param("ssh://lab", id="ssh"),
        pytest.param("unix:///nowhere/docker.sock", id="no such socket"),
    ],
)
def test_only_a_socket_of_this_machine_is_looked_at(host: str) -> None:
    """Anything else is docker-py's business."""
    assert glance.look(WANTED, {"DOCKER_HOST": host}) is None


def test_without_a_name_it_is_the_usual_socket(engine: StandinEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the docker program; an empty variable is none."""
    monkeypatch.setattr(glance, "USUAL_SOCKET", engine.url)
    assert glance.look(["debian:12"], {}) == glance.look(["debian:12"], {"DOCKER_HOST": ""})
    assert glance.look(["debian:12"], {}) is not None


@contextmanager
def answering(folder: Path, content: bytes) -> Iterator[str]:
    """A socket that says this to everyone, which is no engine."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(content)

    with socketserver.UnixStreamServer(str(folder / "odd.sock"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"unix://{folder}/odd.sock"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]", id="not JSON"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", id="no image"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", id="cut off"),
        pytest.param(b"220 welcome to my mail server\r\n", id="not HTTP"),
    ],
)
def test_what_is_no_engine_is_not_believed(tmp_path: Path, content: bytes) -> None:
    """However it answers."""
    with answering(tmp_path, content) as host:
        assert glance.look(["debian:12"], {"DOCKER_HOST": host}) is None


def test_where_a_look_is_not_enough_docker_py_asks(engine: StandinEngine) -> None:
    """The answer is the same, and what is wrong is a sentence."""
    plain = glance.look_or_ask(WANTED[:4])
    with engine.faults.during(Http500("inspect_image", times=1)) as fault:
        assert glance.look_or_ask(WANTED[:4]) == plain
        assert fault.struck == 1
    with (
        engine.faults.during(EngineDown("refuse")),
        pytest.raises(BuildError, match="engine does not answer"),
    ):
        glance.look_or_ask(WANTED)


def test_a_look_does_not_import_docker_py(engine: StandinEngine) -> None:
    """Which takes longer than all the rest."""
    script = (
        "import sys; from gpuspawner.builder.glance import look_or_ask; seen = look_or_ask(['debian:12']);"
        "print(seen['debian:12'].size_bytes, {'docker', 'requests', 'typer', 'rich'} & set(sys.modules))"
    )
    environ = {"DOCKER_HOST": engine.url, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "7 set()\n"
