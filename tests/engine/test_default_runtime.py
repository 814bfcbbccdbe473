"""A host whose engine hands out cards by itself: `nvidia` is the default runtime, and the image asks for all of them.

Runs in a private engine of that kind: `scripts/test engine` starts it for this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import sweep
from tests.engine.lab import REPOSITORY, Lab, eventually
from tests.standins.gpustate import DEFAULT_CARDS, GpuState, nvml_environment
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

GREEDY = "greedy:all"
TOKEN = "0123456789abcdef" * 4
CONFIG = """
load_subconfig({config!r})
c.GPUSpawner.profile_list = [
    {{"display_name": "CPU", "slug": "cpu", "image": {image!r}, "mem_limit": "1G"}},
    {{"display_name": "GPU", "slug": "gpu", "image": {image!r}, "mem_limit": "1G", "gpu": {{"count": 1}}}},
]
c.JupyterHub.services = [{{"name": "tester", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{"name": "tester", "services": ["tester"], "scopes": ["admin:users", "admin:servers"]}}]
"""


@pytest.fixture(scope="module")
def nvidia_engine(engine: PrivateEngine) -> PrivateEngine:
    """The engine with the default runtime `nvidia`, with an image that says NVIDIA_VISIBLE_DEVICES=all."""
    if "nvidia" not in engine.docker("info", "--format", "{{.DefaultRuntime}}"):
        pytest.skip("needs an engine whose default runtime is nvidia: `scripts/test engine` starts one for this file")
    plain = PrivateEngine()  # where the images are built
    if plain.is_up() and plain.docker("images", "--quiet", "gpuspawner/base:latest"):
        plain.share_image("gpuspawner/base:latest", engine)
    dockerfile = b"FROM gpuspawner/base:latest\nENV NVIDIA_VISIBLE_DEVICES=all CUDA_VERSION=12.4\n"
    engine.docker("build", "--tag", GREEDY, "-", stdin=dockerfile)
    return engine


@pytest.fixture(scope="module")
def hub(
    nvidia_engine: PrivateEngine, gpus: GpuState, nvml: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A Hub on that engine, with profiles that use the greedy image."""
    folder = tmp_path_factory.mktemp("lab")
    config = folder / "config.py"
    main = str(REPOSITORY / "jupyterhub_config.py")
    config.write_text(CONFIG.format(config=main, image=GREEDY, token=TOKEN))
    sweep(nvidia_engine)
    environment = {"DOCKER_HOST": nvidia_engine.host, **nvml_environment(nvml, nvidia_engine.state_file)}
    lab = Lab(folder, environment, config, token=TOKEN)
    lab.start()
    yield lab
    lab.stop()
    sweep(nvidia_engine)


def devices(engine: PrivateEngine, container: str) -> list[str]:
    """The card nodes that a container sees."""
    return engine.docker("exec", container, "sh", "-c", "ls -1 /dev | grep -E '^nvidia[0-9]+$' || true").split()


def test_the_hole_is_there(nvidia_engine: PrivateEngine) -> None:
    """Without the Hub this image gets every card: else the next test proves nothing."""
    seen = nvidia_engine.docker("run", "--rm", GREEDY, "sh", "-c", "ls /dev")
    assert all(f"nvidia{card.minor}" in seen.split() for card in DEFAULT_CARDS)


@pytest.mark.fault(11)
@pytest.mark.parametrize(("profile", "count"), [("cpu", 0), ("gpu", 1)])
def test_a_profile_sees_what_it_promises_and_no_more(
    hub: Lab, nvidia_engine: PrivateEngine, profile: str, count: int
) -> None:
    """A CPU profile sees no card, a GPU profile its one, whatever image and runtime say."""
    user = f"{profile}-user"
    hub.api("POST", f"users/{user}")
    assert hub.api("POST", f"users/{user}/server", json={"profile": profile}).status_code in (201, 202)
    eventually(lambda: hub.server_state(user).get("ready"), f"{user} did not start\n{hub.log[-3000:]}", 60)
    container = nvidia_engine.docker("ps", "--quiet", "--filter", f"label=gpuspawner.user={user}")
    assert len(devices(nvidia_engine, container)) == count
