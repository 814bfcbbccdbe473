"""Asks a notebook server whether it answers, as often as it takes. It knows HTTP and nothing of Docker.

The Hub's own wait backs off with jitter up to 5 s and costs about a second of each start. To connect to a bridge
address of this machine every few tens of milliseconds costs little; a request each time, while many boot, does not.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp

INTERVAL_SECONDS = 0.03
CONNECT_SECONDS = 1.0


def server_url(scheme: str, ip: str, port: int) -> str:
    """Where a notebook server is, without a path; an IPv6 address gets its brackets."""
    return f"{scheme}://{f'[{ip}]' if ':' in ip else ip}:{port}"


async def wait_until_answering(url: str) -> None:
    """Return when a GET of `url` is answered with anything below 500. Waits for ever: the caller sets the limit.

    An https URL (the Hub's internal SSL) is only connected to: the handshake needs the user's certificates, and the
    Hub makes it right afterwards.
    """
    # Until somebody listens a bare connection is all that can be had, and costs a tenth of a request.
    while not await _accepts(url):  # noqa: ASYNC110 - another process is waited for: nobody could set an Event
        await asyncio.sleep(INTERVAL_SECONDS)
    if url.startswith("https:"):
        return
    timeout = aiohttp.ClientTimeout(total=5, connect=CONNECT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as session:
        while not await _answers(session, url):  # noqa: ASYNC110 - as above
            await asyncio.sleep(INTERVAL_SECONDS)


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, allow_redirects=False) as response:
            return response.status < 500
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return False


async def _accepts(url: str) -> bool:
    parts = urlsplit(url)
    connecting = asyncio.ensure_future(asyncio.open_connection(parts.hostname, parts.port))
    connecting.add_done_callback(_hang_up)
    try:
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes in the moment when the connection does,
        # and whoever stopped the start would wait for a server that may never answer.
        done, _ = await asyncio.wait([connecting], timeout=CONNECT_SECONDS)
    finally:
        connecting.cancel()
    return bool(done) and connecting.exception() is None


def _hang_up(connecting: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    """Close what was opened, whether or not somebody still waits for it."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result()[1].close()
