"""Stopping a server through the REST API of a real Hub, with no more rights than the watch has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from jupyterhub import orm, roles

from gpuspawner.config import watch_service
from gpuspawner.errors import HubError
from gpuspawner.hubapi import HubApi, Outcome
from gpuspawner.leases import Owner, decode
from tests.hub.lab import Lab, free_port
from tests.hub.people import Person, until
from tests.standins.engine import Http500

FUTURE = datetime(2100, 1, 1, tzinfo=timezone.utc)


@pytest_asyncio.fixture(loop_scope="session")
async def token(lab: Lab) -> AsyncIterator[str]:
    """The token of a service with the role of the watch."""
    _, role = watch_service(Path("/nowhere"))
    service = orm.Service(name=role["services"][0])
    lab.app.db.add(service)
    lab.app.db.commit()
    roles.create_role(lab.app.db, {key: role[key] for key in ("name", "description", "scopes")})
    roles.grant_role(lab.app.db, service, role["name"])
    yield service.new_api_token()
    lab.app.db.delete(service)
    lab.app.db.delete(orm.Role.find(lab.app.db, role["name"]))
    lab.app.db.commit()


@pytest.fixture
def hub(lab: Lab, token: str) -> HubApi:
    """The Hub, as the watch sees it."""
    return HubApi(f"{lab.url}hub/api", token, pause_seconds=0.05)


def began(person: Person, server: str = "") -> datetime:
    """When the lease of this server began, by its labels."""
    lease = decode(person.container(server).labels)
    assert lease is not None
    return lease.started


@pytest.mark.parametrize("server", ["", "my-second"], ids=lambda name: name or "default")
@pytest.mark.parametrize("name", ["plain", "a@x.kr", "학생 1", "q'%2f&?#"])
async def test_a_server_is_stopped_whatever_it_is_called(lab: Lab, hub: HubApi, name: str, server: str) -> None:
    """Names are quoted; the container is gone afterwards, and nobody else's."""
    person, other = await lab.person(name), await lab.person("other")
    assert (await person.start({"profile": "cpu"}, server)).status == 201
    assert (await other.start({"profile": "cpu"})).status == 201
    assert await hub.stop(Owner(name, server), began(person, server)) is Outcome.STOPPED
    await lab.nothing_is_left(person)
    assert other.container().running


async def test_what_does_not_run_is_absent(hub: HubApi, alice: Person) -> None:
    """Neither a server that was never started, nor one that has ended, nor a user whom nobody knows."""
    assert await hub.stop(Owner("alice"), FUTURE) is Outcome.ABSENT
    assert await hub.stop(Owner("alice", "second"), FUTURE) is Outcome.ABSENT
    assert await hub.stop(Owner("nobody"), FUTURE) is Outcome.ABSENT
    await alice.start({"profile": "cpu"})
    started = began(alice)
    await alice.stop()
    assert await hub.stop(Owner("alice"), started) is Outcome.ABSENT


async def test_a_server_that_was_started_anew_is_left_alone(hub: HubApi, alice: Person) -> None:
    """The lease that was judged belongs to an earlier start of the same name."""
    await alice.start({"profile": "cpu"})
    started = began(alice)
    assert await hub.stop(Owner("alice"), started - timedelta(seconds=30)) is Outcome.NEWER
    assert alice.container().running
    assert (await alice.model())["ready"] is True
    assert await hub.stop(Owner("alice"), started) is Outcome.STOPPED


async def test_stopping_twice_at_once_is_fine(lab: Lab, hub: HubApi, alice: Person) -> None:
    """A second watch, or an owner who stops by hand at the same moment."""
    await alice.start({"profile": "gpu"})
    started = began(alice)
    both = [hub.stop(Owner("alice"), started) for _ in range(2)]
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert Outcome.STOPPED in answers
    # The Hub may say 500 to the one that comes in between: an error that is tried again, and finds nothing then.
    assert all(isinstance(answer, (Outcome, HubError)) for answer in answers)
    await lab.nothing_is_left(alice)
    assert await hub.stop(Owner("alice"), started) is Outcome.ABSENT


async def test_a_stop_while_the_engine_fails_is_the_hubs_to_finish(lab: Lab, hub: HubApi, alice: Person) -> None:
    """The Hub takes the server for stopped, and its container goes as soon as the engine can."""
    await alice.start({"profile": "cpu"})
    lab.engine.faults.add(Http500(on="*"))
    assert await hub.stop(Owner("alice"), began(alice)) is Outcome.STOPPED
    assert alice.container().running
    lab.engine.faults.clear()
    await lab.nothing_is_left(alice)


async def test_the_rights_reach_for_nothing_else(lab: Lab, token: str, alice: Person) -> None:
    """The token may look at the servers of a user and stop them: no list of users, no start, no change, no entry."""
    await alice.start({"profile": "cpu"})
    refused = [
        ("GET", "users"),
        ("GET", "groups"),
        ("GET", "services"),
        ("GET", "proxy"),
        ("POST", "users/mallory"),
        ("DELETE", "users/alice"),
        ("PATCH", "users/alice"),
        ("POST", "users/alice/server"),
        ("POST", "users/alice/tokens"),
        ("GET", "users/alice/tokens"),
        ("POST", "shutdown"),
    ]
    headers = {"Authorization": f"token {token}"}
    for method, path in refused:
        async with lab.http.request(method, f"{lab.url}hub/api/{path}", headers=headers, json={}) as response:
            assert response.status in (403, 404), f"{method} {path}: {await response.text()}"
    async with lab.http.get(f"{lab.url}hub/api/users", headers=headers) as response:
        assert response.status == 403
    async with lab.http.get(f"{lab.url}hub/api/users/alice", headers=headers) as response:
        model = await response.json()
    assert set(model) <= {"kind", "name", "servers", "admin", "user_info"}
    assert not model["user_info"]
    assert "state" not in model["servers"][""]


async def test_a_wrong_token_is_an_error_with_the_hubs_words(lab: Lab, alice: Person) -> None:
    """The log says what the Hub said."""
    with pytest.raises(HubError, match=r"status 403 .*Missing or invalid credentials"):
        await HubApi(f"{lab.url}hub/api", "nonsense").stop(Owner("alice"), FUTURE)


async def test_a_token_that_may_not_look_stops_nothing(lab: Lab, alice: Person) -> None:
    """Without read:servers it cannot be known whose server that is."""
    await alice.start({"profile": "cpu"})
    blind = orm.APIToken.new(user=alice.user.orm_user, scopes=["read:users:name!user=alice"])
    with pytest.raises(HubError, match="needs the scope read:servers"):
        await HubApi(f"{lab.url}hub/api", blind).stop(Owner("alice"), began(alice))
    assert alice.container().running


async def test_a_hub_that_is_down_is_asked_again(lab: Lab) -> None:
    """After the last try it is an error that says where nobody answers."""
    url = f"http://127.0.0.1:{free_port()}/hub/api"
    with pytest.raises(HubError, match=r"GET .*users/alice: no answer"):
        await HubApi(url, "x", tries=3, pause_seconds=0.01).stop(Owner("alice"), FUTURE)


@pytest.mark.parametrize(
    ("first", "asked"),
    [pytest.param(503, 3, id="503 is tried again"), pytest.param(500, 1, id="500 is not")],
)
async def test_what_is_tried_again(first: int, asked: int) -> None:
    """A proxy says 503 while the Hub restarts; what fails inside the Hub fails."""
    requests = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        return web.Response(status=first if requests < 3 else 404)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        hub = HubApi(f"http://127.0.0.1:{port}/hub/api", "x", pause_seconds=0.01)
        if asked == 1:
            with pytest.raises(HubError, match="status 500"):
                await hub.stop(Owner("alice"), FUTURE)
        else:
            assert await hub.stop(Owner("alice"), FUTURE) is Outcome.ABSENT
        assert requests == asked
    finally:
        await runner.cleanup()


async def test_a_hub_that_hangs_is_given_up(lab: Lab) -> None:
    """One request has a time limit, and is not repeated: the Hub may still be at it."""
    release: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        release.append(writer)

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(HubError, match="no answer"):
            await HubApi(f"http://127.0.0.1:{port}/hub/api", "x", call_seconds=0.3).stop(Owner("alice"), FUTURE)
        await until(lambda: release, "it was asked")
        assert len(release) == 1
    finally:
        for writer in release:
            writer.close()
        server.close()
