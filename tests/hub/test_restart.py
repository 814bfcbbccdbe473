"""The Hub is killed and started again: leases are on the containers, so nothing is lost or given twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.hub.lab import free_port
from tests.hub.people import until
from tests.hub.process import HubProcess, container_of, running
from tests.standins.engine import EngineDown, EngineSlow, SlowBoot, StandinEngine

CARDS = {f"GPU-{letter * 4}": minor for minor, letter in enumerate("abcde")}

CONFIG = """
from jupyterhub.auth import DummyAuthenticator
from tests.hub.lab import PROFILES, Cards, proxy_command

c = get_config()
c.JupyterHub.bind_url = {url!r}
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.authenticator_class = DummyAuthenticator
c.JupyterHub.cleanup_servers = False
c.JupyterHub.init_spawners_timeout = 1
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


@pytest.mark.fault(21, 39)
async def test_the_first_starts_after_a_reboot_of_the_machine_work(engine: StandinEngine, tmp_path: Path) -> None:
    """Every container has ended with 255, one is not even there: all are cleared away, and no start trips on them."""
    hub = hub_on(engine, tmp_path)
    users = ("ready", "gone")
    async with running(hub):
        for user in users:
            assert (await hub.api("POST", f"users/{user}")).status == 201
            await hub.api("POST", f"users/{user}/server", {"profile": "two"})
            await until(partial(hub.reaches, user), f"the server of {user} answers")
        hub.kill()
        engine.die(container_of(engine, "ready").name, 255)
        engine.remove(container_of(engine, "gone").id)
        await hub.start()
        for user in users:
            await until(partial(stopped, hub, user), f"the Hub has noticed that the server of {user} is over")
        assert engine.containers == []
        for user in users:
            await hub.api("POST", f"users/{user}/server", {"profile": "two"})
            await until(partial(hub.reaches, user), f"the first start of {user} works")
        assert len(set(cards_of(engine))) == len(cards_of(engine)) == 4


@pytest.mark.fault(2, 34)
async def test_an_engine_that_is_away_while_the_hub_starts(engine: StandinEngine, tmp_path: Path) -> None:
    """Whether a server runs is being checked until the engine answers, not for ever: one is adopted, one is over."""
    hub = hub_on(engine, tmp_path)
    async with running(hub):
        for user in ("ready", "dies", "next"):
            assert (await hub.api("POST", f"users/{user}")).status == 201
        for user in ("ready", "dies"):
            await hub.api("POST", f"users/{user}/server", {"profile": "gpu"})
            await until(partial(hub.reaches, user), f"the server of {user} answers")
        hub.kill()
        before = container_of(engine, "ready")
        with engine.faults.during(EngineDown()):
            await hub.start()
            for user in ("ready", "dies"):
                assert (await hub.model(user))["pending"] == "check"
            await hub.api("POST", "users/next/server", {"profile": "gpu"})
            await until(partial(stopped, hub, "next"), "nothing is leased on an engine that does not answer")
            engine.die(container_of(engine, "dies").name, 1)
        await until(partial(is_ready, hub, "ready"), "the server that ran all the time is adopted")
        await until(partial(stopped, hub, "dies"), "the one that has ended meanwhile is cleared away")
        await until(partial(hub.reaches, "ready"), "the adopted one is reached")
        assert not before.removed
        assert cards_of(engine) == [before.labels["gpuspawner.gpus"]]


@pytest.mark.fault(22, 41)
async def test_a_hub_that_has_lost_its_database_gives_no_card_twice(engine: StandinEngine, tmp_path: Path) -> None:
    """Leases outlive the database: servers that this Hub never heard of hold their cards until they are replaced."""
    hub = hub_on(engine, tmp_path)
    async with running(hub):
        for user in ("ready", "other"):
            assert (await hub.api("POST", f"users/{user}")).status == 201
            await hub.api("POST", f"users/{user}/server", {"profile": "two"})
            await until(partial(hub.reaches, user), f"the server of {user} answers")
        hub.kill()
        before = container_of(engine, "ready")
        (tmp_path / "jupyterhub.sqlite").unlink()
        await hub.start()
        for user in ("ready", "next"):
            assert (await hub.api("POST", f"users/{user}")).status == 201
        await hub.api("POST", "users/next/server", {"profile": "two"})
        await until(partial(stopped, hub, "next"), "there are not two cards left")
        assert before.running
        await hub.api("POST", "users/ready/server", {"profile": "two"})
        await until(partial(hub.reaches, "ready"), "its owner gets a new server on the same cards")
        assert before.removed
        assert len(set(cards_of(engine))) == len(cards_of(engine)) == 4


async def is_ready(hub: HubProcess, user: str) -> bool:
    """Whether the Hub says that a server is ready."""
    return (await hub.model(user)).get("ready") is True


async def stopped(hub: HubProcess, user: str) -> bool:
    """Whether the Hub knows no server of a user, nor one that is on its way."""
    return await hub.model(user) == {}
