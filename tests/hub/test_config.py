"""The configuration: what is wrong stops the Hub with a sentence, and the shipped `jupyterhub_config.py` spawns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.app import JupyterHub
from traitlets import TraitError
from traitlets.config import Config

from gpuspawner import FakeGPUs, GPUSpawner, check_config
from tests.hub.lab import PROFILES, Lab
from tests.hub.people import Person, until
from tests.hub.process import REPOSITORY, HubProcess, container_of, ports_in_a_row, running
from tests.standins.engine import StandinEngine


def config(**spawner: Any) -> Config:
    """A configuration as `jupyterhub_config.py` leaves it."""
    return Config({"GPUSpawner": {"profile_list": PROFILES, **spawner}})


CPU = PROFILES[0]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        pytest.param({"profile_list": []}, "c.GPUSpawner.profile_list is empty", id="no profiles"),
        pytest.param({"profile_list": {}}, "c.GPUSpawner.profile_list must be a list", id="no list"),
        pytest.param(
            {"profile_list": [CPU, {**CPU, "slug": "b", "default": False, "gpu": {"count": 0}}]},
            "c.GPUSpawner.profile_list[1].gpu.count must be at least 1, got 0",
            id="count of zero",
        ),
        pytest.param(
            {"profile_list": [{**CPU, "mem_limt": "4G"}]},
            "c.GPUSpawner.profile_list[0].mem_limt is not a known key; did you mean 'mem_limit'?",
            id="typing error",
        ),
        pytest.param(
            {"profile_list": [CPU, CPU]}, "c.GPUSpawner.profile_list[1].slug must be unique", id="the same twice"
        ),
        pytest.param(
            {"profile_list": [CPU, {**CPU, "slug": "b"}]},
            "c.GPUSpawner.profile_list[1].default must be given once",
            id="two defaults",
        ),
        pytest.param(
            {"profile_list": [{**CPU, "mem_limit": "lots"}]},
            "c.GPUSpawner.profile_list[0].mem_limit must be a size",
            id="no size",
        ),
        pytest.param({"remove": False}, "c.GPUSpawner.remove must be True", id="kept containers"),
        pytest.param(
            {"extra_host_config": {"runtime": "nvidia"}}, "extra_host_config must not set runtime", id="runtime"
        ),
        pytest.param(
            {"extra_host_config": {"device_requests": []}},
            "extra_host_config must not set device_requests",
            id="device requests",
        ),
    ],
)
def test_a_mistake_stops_the_hub_with_its_path(wrong: dict[str, Any], sentence: str) -> None:
    """What an admin can get wrong is said before the Hub runs, with the path and what is accepted."""
    with pytest.raises(SystemExit) as stop:
        check_config(config(**wrong))
    said = str(stop.value)
    assert said.startswith("The Hub does not start, because its configuration is wrong:\n")
    assert sentence in said


def test_mistakes_of_the_parents_section_are_seen_too() -> None:
    """c.DockerSpawner's settings are inherited, so they are checked as well."""
    for section in ({"remove": False}, {"extra_host_config": {"privileged": True}}):
        wrong = config()
        wrong.DockerSpawner = Config(section)
        with pytest.raises(SystemExit):
            check_config(wrong)


def test_every_mistake_of_the_profiles_is_told_at_once() -> None:
    """An admin mends a list in one go."""
    with pytest.raises(SystemExit) as stop:
        check_config(config(profile_list=[{**CPU, "image": ""}, {**CPU, "slug": "B"}]))
    assert "profile_list[0].image" in str(stop.value)
    assert "profile_list[1].slug" in str(stop.value)


@pytest.mark.parametrize(
    "good",
    [
        pytest.param({}, id="plain"),
        pytest.param({"extra_host_config": {"dns": ["192.0.2.53"]}}, id="other host config"),
        pytest.param({"extra_host_config": lambda spawner: {}}, id="callable"),
        pytest.param({"gpus": FakeGPUs("1x24GiB")}, id="simulated cards"),
    ],
)
def test_a_good_configuration_passes(good: dict[str, Any]) -> None:
    """Nothing is said about a configuration that is right."""
    assert check_config(config(**good)) is None


async def test_a_spawner_itself_refuses_to_keep_containers(lab: Lab, alice: Person) -> None:
    """Where `check_config` was not called, the trait refuses: a kept container would resume with its old GPUs."""
    with pytest.raises(TraitError, match=r"GPUSpawner\.remove must be True"):
        alice.spawner.remove = False
    assert alice.spawner.remove is True


def test_the_hub_finds_the_spawner_by_its_name() -> None:
    """`c.JupyterHub.spawner_class = "gpu"` is the entry point."""
    assert JupyterHub(spawner_class="gpu").spawner_class is GPUSpawner
    JupyterHub.clear_instance()


def test_every_setting_of_the_spawner_has_help() -> None:
    """`jupyterhub --help-all` explains each trait of this package with at least a sentence."""
    inherited = set(GPUSpawner.__mro__[2].class_traits(config=True))
    ours = {name: trait for name, trait in GPUSpawner.class_traits(config=True).items() if name not in inherited}
    assert len(ours) > 8
    assert not [name for name, trait in ours.items() if len(trait.help.split()) < 6]


REAL = """
load_subconfig({path!r})
c = get_config()
"""


async def test_the_shipped_configuration_spawns(tmp_path: Path) -> None:
    """`jupyterhub_config.py` as it is, on a stand-in engine: network, accounts, a CPU and a simulated GPU server."""
    port = ports_in_a_row(1, 81)
    with StandinEngine() as engine:
        engine.add_image("gpuspawner/scipy")
        environment = {
            "DOCKER_HOST": engine.url,
            "GPUSPAWNER_PORT": str(port),
            "GPUSPAWNER_STATE": str(tmp_path / "state"),
            "GPUSPAWNER_FAKE_GPUS": "2x24GiB",
            # A network whose gateway is an address of this machine without a bridge being there.
            "GPUSPAWNER_SUBNET": "127.31.224.0/20",
        }
        hub = HubProcess(tmp_path, REAL.format(path=str(REPOSITORY / "jupyterhub_config.py")), port, environment)
        async with running(hub):
            assert engine.networks["gpuspawner"]
            password = tmp_path / "state" / "admin-password"
            assert password.stat().st_mode & 0o777 == 0o600
            for user, profile in (("alice", "cpu"), ("bob", "rtx4090"), ("carol", "rtx4090-8g")):
                assert (await hub.api("POST", f"users/{user}")).status == 201
                assert (await hub.api("POST", f"users/{user}/server", {"profile": profile})).status in (201, 202)
                await until(partial(hub.reaches, user), f"{user}'s notebook answers through the proxy")
                container = container_of(engine, user)
                assert container.labels["gpuspawner.profile"] == profile
                assert container.network == "gpuspawner"
                assert container.env["NVIDIA_VISIBLE_DEVICES"] == "void"
            assert (await hub.api("POST", "users/dora")).status == 201
            await hub.api("POST", "users/dora/server", {"profile": "rtx4090"})
            refused = await hub.api("POST", "users/dora/server", {"profile": "rtx4090"})
            assert refused.status == 409
            assert refused.message.startswith("You asked for one whole GPU (RTX 4090), but all 2 are in use.")
            assert (await hub.api("DELETE", "users/bob/server")).status in (202, 204)
            assert "Watching the time limits of the Hub 'jupyter' every 20 s" in hub.log
            assert (tmp_path / "state" / "jupyterhub.sqlite-wal").exists(), "a commit does not wait for the disk"


async def test_the_shipped_configuration_says_that_no_engine_answers(tmp_path: Path) -> None:
    """Without an engine the Hub does not start, and says which command helps."""
    environment = {
        "DOCKER_HOST": f"unix://{tmp_path}/nothing.sock",
        "GPUSPAWNER_STATE": str(tmp_path / "state"),
    }
    hub = HubProcess(tmp_path, REAL.format(path=str(REPOSITORY / "jupyterhub_config.py")), 1, environment)
    with pytest.raises(AssertionError, match="The Hub does not start: The Docker engine"):
        await hub.start()
