"""Whether a notebook server answers: asked of real sockets on this machine."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from jupyterhub.utils import make_ssl_context

from gpuspawner.probe import wait_until_answering

SOON = 10.0
NOT_YET = 0.3

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def status(code: int, **headers: str) -> Handler:
    """Answers with that status."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=code, headers=headers)

    return answer


@asynccontextmanager
async def serving(handler: Handler, listener: socket.socket | None = None) -> AsyncIterator[str]:
    """A server on a free port of the loopback; gives its URL."""
    listener = listener or listening()
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/user/ann/api"
    finally:
        await runner.cleanup()


def listening() -> socket.socket:
    """A bound socket that accepts nothing yet."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


async def answers(url: str, within: float = SOON) -> bool:
    """Whether the wait ends in that time."""
    try:
        await asyncio.wait_for(wait_until_answering(url), within)
    except asyncio.TimeoutError:
        return False
    return True


@pytest.mark.parametrize("code", [200, 204, 302, 401, 403, 404, 405])
async def test_any_answer_below_500_is_an_answer(code: int) -> None:
    """The Hub's own check comes afterwards; a redirect to the login page is not followed."""
    async with serving(status(code, Location="http://127.0.0.1:1/")) as url:
        assert await answers(url)


@pytest.mark.parametrize("code", [500, 502, 503])
async def test_a_server_error_is_not_an_answer_yet(code: int) -> None:
    """A server that is starting up may say so."""
    async with serving(status(code)) as url:
        assert not await answers(url, NOT_YET)


async def test_it_waits_from_nothing_to_the_first_good_answer() -> None:
    """Port closed, then 503, then 200: it is asked again and again, and ends soon after the good one."""
    said: list[int] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        said.append(503 if len(said) < 3 else 200)
        return web.Response(status=said[-1])

    with listening() as bound:
        port = bound.getsockname()[1]
        waiting = asyncio.ensure_future(wait_until_answering(f"http://127.0.0.1:{port}/"))
        await asyncio.wait([waiting], timeout=NOT_YET)
        assert not waiting.done()
        async with serving(answer, bound):
            await asyncio.wait_for(waiting, SOON)
    assert said == [503, 503, 503, 200]


async def test_a_server_that_hangs_up_is_asked_again() -> None:
    """As one does that is restarting."""
    calls: list[int] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        calls.append(1)
        if len(calls) < 3 and request.transport is not None:
            request.transport.abort()
        return web.Response()

    async with serving(answer) as url:
        assert await answers(url)
    assert len(calls) == 3


async def test_a_wait_that_is_cancelled_ends_at_once() -> None:
    """The Stop button gives a second for everything."""

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(3600)
        return web.Response()

    async with serving(never) as url:
        waiting = asyncio.ensure_future(wait_until_answering(url))
        await asyncio.wait([waiting], timeout=NOT_YET)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=0.5)
        assert waiting.cancelled()


async def test_a_cancellation_in_the_moment_of_the_connection_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would go on, for ever if the server never answers, and with it the undoing of that start."""
    connected: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def connect(*address: Any) -> Any:
        return await connected

    class Writer:
        closed = False

        def close(self) -> None:
            self.closed = True

    writer = Writer()
    monkeypatch.setattr(asyncio, "open_connection", connect)
    waiting = asyncio.ensure_future(wait_until_answering("http://127.0.0.1:1/"))
    for _ in range(5):
        await asyncio.sleep(0)
    connected.set_result((None, writer))
    await asyncio.sleep(0)  # the connection is there, and the one who waits for it has not heard of it
    waiting.cancel()
    await asyncio.wait([waiting], timeout=0.5)
    assert waiting.cancelled()
    assert writer.closed


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Any]:
    """What the Hub's internal SSL gives to a server: its key, its certificate, the authority of its clients."""
    certipy = pytest.importorskip("certipy")
    store = certipy.Certipy(store_dir=str(tmp_path))
    store.create_ca("hub-ca")
    store.create_signed_pair("server", "hub-ca", alt_names=["IP:127.0.0.1"])
    files = store.store.get_record("server")["files"]
    return {
        "keyfile": files["key"],
        "certfile": files["cert"],
        "cafile": store.store.get_record("hub-ca")["files"]["cert"],
    }


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_internal_ssl_is_only_connected_to(certificates: dict[str, Any], version: ssl.TLSVersion) -> None:
    """The server wants a certificate that only the Hub has: that it accepts a connection is all one can see."""
    context = make_ssl_context(**certificates, purpose=ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = context.maximum_version = version
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await answers(f"https://127.0.0.1:{port}/user/ann/api")


async def test_internal_ssl_waits_for_the_port() -> None:
    """A closed port is not an answer in https either."""
    with listening() as bound:
        port = bound.getsockname()[1]
        assert not await answers(f"https://127.0.0.1:{port}/", NOT_YET)
        bound.listen()
        assert await answers(f"https://127.0.0.1:{port}/")
