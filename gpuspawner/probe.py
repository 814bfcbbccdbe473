"""Asks a notebook server whether it answers, as often as it takes. It knows HTTP and nothing of Docker.

The Hub's own wait backs off with jitter up to 5 s and costs about a second of each start; asking a bridge address of
this machine every few tens of milliseconds costs nothing.
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
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(parts.hostname, parts.port), CONNECT_SECONDS)
    except (asyncio.TimeoutError, OSError):
        return False
    writer.close()
    return True
