"""The Hub is killed and started again: leases are on the containers, so nothing is lost or given twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.hub.lab import free_port
from tests.hub.people import until
from tests.hub.process import HubProcess, container_of, running
from tests.standins.engine import EngineSlow, SlowBoot, StandinEngine

CARDS = {f"GPU-{letter * 4}": minor for minor, letter in enumerate("abcde")}

CONFIG = """
from jupyterhub.auth import DummyAuthenticator
from tests.hub.lab import PROFILES, Cards, proxy_command

c = get_config()
c.JupyterHub.bind_url = {url!r}
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.authenticator_class = DummyAuthenticator
c.JupyterHub.cleanup_servers = False
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0}}
c.ConfigurableHTTPProxy.command = [*proxy_command(), "--log-level", "error"]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.JupyterHub.spawner_class = "gpu"
c.GPUSpawner.client_kwargs = {{"base_url": {engine!r}}}
c.GPUSpawner.use_internal_ip = True
c.GPUSpawner.gpus = Cards({cards!r})
c.GPUSpawner.profile_list = PROFILES
"""


@pytest.fixture
def engine() -> Iterator[StandinEngine]:
    """An engine with five cards, which lives longer than the Hubs."""
    with StandinEngine(gpus=CARDS) as one:
        for name in ("scipy", "pytorch"):
            one.add_image(f"gpuspawner/{name}")
        yield one


def hub_on(engine: StandinEngine, folder: Path) -> HubProcess:
    """A Hub on this engine with its database in this folder."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    config = CONFIG.format(url=url, hub_port=free_port(), api_port=free_port(), engine=engine.url, cards=CARDS)
    return HubProcess(folder, config, port, {})


def cards_of(engine: StandinEngine) -> list[str]:
    """Every card that a container's labels name, as often as they do."""
    names = [each.labels.get("gpuspawner.gpus", "") for each in engine.containers]
    return [uuid for name in names for uuid in name.split(",") if uuid]


@pytest.mark.fault(2, 22, 33)
async def test_a_killed_hub_finds_everything_again(engine: StandinEngine, tmp_path: Path) -> None:
    """Ready servers are adopted, one that was booting too; what was created only goes; no card is given twice."""
    hub = hub_on(engine, tmp_path)
    users = ("ready", "dies", "created", "boots", "next")
    async with running(hub):
        for user in users:
            assert (await hub.api("POST", f"users/{user}")).status == 201
        for user in ("ready", "dies"):
            await hub.api("POST", f"users/{user}/server", {"profile": "gpu"})
            await until(partial(hub.reaches, user), f"the server of {user} answers")
        start = engine.faults.add(EngineSlow(60, on="start", container="*created"))
        await hub.api("POST", "users/created/server", {"profile": "gpu"})
        await until(lambda: start.struck, "a container is created and not started")
        boot = engine.faults.add(SlowBoot(5, container="*boots"))
        await hub.api("POST", "users/boots/server", {"profile": "gpu"})
        await until(lambda: boot.struck, "a server boots")

        hub.kill()
        before = {user: container_of(engine, user) for user in users[:4]}
        assert before["created"].status == "created"
        assert len(set(cards_of(engine))) == 4
        engine.die(before["dies"].name, 1, logs=["gone while nobody looked"])
        await hub.start()

        await until(lambda: hub.reaches("ready"), "the first server is reached as before")
        assert (await hub.model("ready"))["ready"] is True
        assert not before["ready"].removed
        await until(lambda: before["dies"].removed, "the dead one is read and removed")
        assert "gone while nobody looked" in hub.log
        assert await hub.model("dies") == {}
        # The first start makes the new Hub look around.
        await hub.api("POST", "users/next/server", {"profile": "gpu"})
        await until(lambda: hub.reaches("next"), "a new server starts")
        assert len(set(cards_of(engine))) == len(cards_of(engine))
        await until(lambda: before["created"].removed, "what was created and never started is removed")
        await until(lambda: hub.reaches("boots"), "the server that was booting is adopted whole", seconds=40)
        assert not before["boots"].removed
        assert (await hub.model("boots"))["ready"] is True
        assert await hub.model("created") == {}

        engine.faults.clear()
        await hub.api("POST", "users/created/server", {"profile": "two"})
        await until(lambda: hub.reaches("created"), "the interrupted start can be repeated")
        assert sorted(cards_of(engine)) == sorted(CARDS)

        assert (await hub.api("DELETE", "users/ready/server")).status in (202, 204)
        await until(lambda: before["ready"].removed, "an adopted server can be stopped")
    # The Hub has ended as a service does: the servers run on.
    running_on = {each.labels["gpuspawner.user"] for each in engine.containers if each.running}
    assert running_on == {"boots", "created", "next"}
