"""The watch as a service of a real Hub: servers are warned and stopped at their end, and without it nothing breaks."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest

from gpuspawner.extensions import Extensions
from gpuspawner.leases import decode
from gpuspawner.notices import Notice, read_notices
from tests.hub.lab import free_port
from tests.hub.people import until
from tests.hub.process import HubProcess, container_of, running
from tests.standins.engine import EngineDown, StandinEngine

CONFIG = """
from pathlib import Path

from gpuspawner.config import watch_service
from jupyterhub.auth import DummyAuthenticator
from tests.hub.lab import PROFILES, Cards, proxy_command

c = get_config()
c.JupyterHub.bind_url = {url!r}
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.authenticator_class = DummyAuthenticator
c.JupyterHub.cleanup_servers = False
c.JupyterHub.allow_named_servers = True
c.ConfigurableHTTPProxy.command = [*proxy_command(), "--log-level", "error"]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.JupyterHub.spawner_class = "gpu"
c.GPUSpawner.client_kwargs = {{"base_url": {engine!r}}}
c.GPUSpawner.use_internal_ip = True
c.GPUSpawner.gpus = Cards({cards!r})
SHORT = {{**PROFILES[0], "default": False, "display_name": "Short", "slug": "short", "time_limit": "6s"}}
c.GPUSpawner.profile_list = [*PROFILES, SHORT]
service, role = watch_service(Path({state!r}))
c.JupyterHub.services = [service]
c.JupyterHub.load_roles = [role]
"""
CARDS = {"GPU-aaaa": 0}
FAST = {"GPUSPAWNER_WATCH_EVERY": "1s", "GPUSPAWNER_WARN_BEFORE": "4s,2s", "GPUSPAWNER_WARN_AT_LEAST": "2s"}


@pytest.fixture
def engine() -> Iterator[StandinEngine]:
    """An engine that lives longer than the Hubs."""
    with StandinEngine(gpus=CARDS) as one:
        for name in ("scipy", "pytorch"):
            one.add_image(f"gpuspawner/{name}")
        yield one


@pytest.fixture
def hub(engine: StandinEngine, tmp_path: Path) -> HubProcess:
    """A Hub whose watch looks every second; a server of the profile `short` may run for six seconds."""
    port = free_port()
    config = CONFIG.format(
        url=f"http://127.0.0.1:{port}/",
        hub_port=free_port(),
        api_port=free_port(),
        engine=engine.url,
        cards=CARDS,
        state=str(tmp_path),
    )
    return HubProcess(tmp_path, config, port, {"DOCKER_HOST": engine.url, **FAST})


def watches(hub: HubProcess) -> list[int]:
    """The processes of all watches that have begun so far, in this order."""
    found = re.findall(r"Watching the time limits of the Hub 'jupyter' every 1 s \(process (\d+)\)", hub.log)
    return [int(number) for number in found]


async def serve(hub: HubProcess, user: str, profile: str) -> None:
    """A new user with a server."""
    assert (await hub.api("POST", f"users/{user}")).status == 201
    assert (await hub.api("POST", f"users/{user}/server", {"profile": profile})).status in (201, 202)
    await until(partial(hub.reaches, user), f"the server of {user} answers")


def end_of(engine: StandinEngine, user: str) -> datetime:
    """When the lease of a user is over, by its labels."""
    lease = decode(container_of(engine, user).labels)
    assert lease is not None
    assert lease.ends is not None
    return lease.ends


def said(hub: HubProcess, what: str, user: str) -> list[datetime]:
    """When the watch said that about a user, to the millisecond."""
    pattern = rf"\[I (\S+ \S+) gpuspawner\.watch\] {what} '{user}' "
    return [datetime.strptime(each, "%Y-%m-%d %H:%M:%S.%f") for each in re.findall(pattern, hub.log)]


def notice_of(folder: Path, user: str, kind: str) -> Notice | None:
    """The notice of that kind for a user."""
    return next((each for each in read_notices(folder).values() if (each.user, each.kind) == (user, kind)), None)


async def test_a_server_is_warned_and_stopped_at_its_end(
    hub: HubProcess, engine: StandinEngine, tmp_path: Path
) -> None:
    """A warning and a stop with its reason; who has more time, or has extended it, goes on working."""
    async with running(hub):
        await serve(hub, "long", "gpu")
        await serve(hub, "more", "short")
        lease = decode(container_of(engine, "more").labels)
        assert lease is not None
        Extensions(tmp_path).extend(lease.id, end_of(engine, "more") + timedelta(hours=1), {lease.id})
        await serve(hub, "short", "short")
        end, container = end_of(engine, "short"), container_of(engine, "short")
        await until(lambda: notice_of(tmp_path, "short", "warning"), "a warning can be read")
        await until(lambda: container.removed, "its container is gone")
        assert datetime.now(timezone.utc) >= end
        assert await hub.model("short") == {}
        (stopped,) = said(hub, "stop", "short")
        assert stopped - said(hub, "warn", "short")[0] >= timedelta(seconds=2)
        assert "The server was stopped, because its time limit of 6 s is over." in hub.log
        notice = await until(lambda: notice_of(tmp_path, "short", "stopped"), "a notice says that it was stopped")
        assert notice.text.ko.startswith("시간 한도(6초)가 끝나")
        for user in ("long", "more"):
            assert await hub.reaches(user)
            assert said(hub, "stop", user) == []
        # The name may be used again at once, and the new server has its whole time.
        assert (await hub.api("POST", "users/short/server", {"profile": "short"})).status in (201, 202)
        await until(partial(hub.reaches, "short"), "the next server of the same name answers")
    assert f"The watch ends (process {watches(hub)[0]})" in hub.log


async def test_a_killed_watch_stops_nobody_and_a_new_one_warns_first(hub: HubProcess, engine: StandinEngine) -> None:
    """While it is down a server runs past its end and others start; the Hub then starts another, which warns again."""
    async with running(hub):
        await until(lambda: watches(hub), "the watch has begun")
        await serve(hub, "kim", "short")
        os.kill(watches(hub)[0], signal.SIGKILL)
        end, container = end_of(engine, "kim"), container_of(engine, "kim")
        late = end + timedelta(seconds=4)
        await until(lambda: datetime.now(timezone.utc) > late, "the time has long been over")
        assert len(watches(hub)) == 1, "the Hub has started it again too soon for this test"
        assert await hub.reaches("kim")
        await serve(hub, "lee", "gpu")
        assert said(hub, "stop", "kim") == []
        warned = len(said(hub, "warn", "kim"))

        await until(lambda: len(watches(hub)) == 2, "the Hub has started a new one", seconds=60)
        await until(lambda: container.removed, "the server is stopped after all")
        (stopped,) = said(hub, "stop", "kim")
        assert len(said(hub, "warn", "kim")) == warned + 1
        assert stopped - said(hub, "warn", "kim")[-1] >= timedelta(seconds=2)
        assert await hub.reaches("lee")


async def test_engine_and_hub_may_be_down_for_a_while(hub: HubProcess, engine: StandinEngine) -> None:
    """The watch goes on; the watch of a killed Hub ends, and there is one again with the next."""
    async with running(hub):
        await serve(hub, "kim", "short")
        container = container_of(engine, "kim")
        await until(lambda: watches(hub), "the watch has begun")
        down = engine.faults.add(EngineDown())
        await until(lambda: "so nobody is stopped" in hub.log, "the watch sees no engine")
        engine.faults.remove(down)

        hub.kill()
        await until(lambda: f"The watch ends (process {watches(hub)[0]})" in hub.log, "its watch ends as well")
        assert not container.removed
        await hub.start()
        await until(lambda: len(watches(hub)) == 2, "a new watch begins")
        await until(lambda: container.removed, "it stops the server")
        assert said(hub, "warn", "kim") != []
        assert len(said(hub, "stop", "kim")) == 1
    assert "Traceback" not in "".join(line for line in hub.log.splitlines() if "gpuspawner.watch" in line)
