"""Adapter: stops a server through the Hub's REST API. It knows HTTP and the Hub's answers, and decides nothing.

It needs the scopes `delete:servers` and `read:servers`. The second one is for looking before stopping: between the look
at the labels and the stop, the owner may have ended that server and started another one under the same name.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from gpuspawner.errors import HubError
from gpuspawner.leases import Owner

# A label tells the start in whole seconds, and the Hub notes its own a moment before that.
SAME_START = timedelta(seconds=1)
_RETRIED = (502, 503, 504)


class Outcome(str, Enum):
    """What became of the wish to stop a server."""

    STOPPED = "stopped"
    """The Hub stops it, or has done so."""

    ABSENT = "absent"
    """The Hub knows no such server that runs."""

    NEWER = "newer"
    """Another start of the same server has begun since; it was left alone."""


class HubApi:
    """The API of one Hub.

    Args:
        url: where it is, as JUPYTERHUB_API_URL says it: `http://127.0.0.1:8081/hub/api`.
        token: of a service with the scopes above.
        call_seconds: the time limit of one request. A stop is answered by the Hub after about ten seconds at most.
        tries, pause_seconds: how often a Hub is asked that refuses connections or says 503, and the pause between.
    """

    def __init__(
        self, url: str, token: str, *, call_seconds: float = 30.0, tries: int = 3, pause_seconds: float = 1.0
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"token {token}"}
        self._timeout = aiohttp.ClientTimeout(total=call_seconds)
        self._tries, self._pause_seconds = tries, pause_seconds

    async def stop(self, owner: Owner, started: datetime) -> Outcome:
        """Stop the server of this owner if it is still the one whose lease began at `started`.

        Raises:
            HubError: the Hub refuses, or does not answer; the server may run on.
        """
        user = f"users/{quote(owner.user, safe='')}"
        server = f"{user}/servers/{quote(owner.server, safe='')}" if owner.server else f"{user}/server"
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=self._timeout, connector=connector, headers=self._headers) as http:
            status, model = await self._ask(http, "GET", user)
            found = _server(model, owner.server) if status == 200 else None
            if found is None:
                return Outcome.ABSENT
            if _begun(found) >= started + SAME_START:
                return Outcome.NEWER
            status, _ = await self._ask(http, "DELETE", server)
            return Outcome.ABSENT if status == 404 else Outcome.STOPPED

    async def _ask(self, http: aiohttp.ClientSession, method: str, path: str) -> tuple[int, Any]:
        """Status and body (JSON, else None) of an answer that is a success or 404."""
        left = self._tries
        while True:
            left -= 1
            try:
                # The path is quoted already: a slash in a name must stay %2F.
                async with http.request(method, URL(f"{self._url}/{path}", encoded=True)) as response:
                    if response.status in (200, 202, 204, 404):
                        known = response.content_type == "application/json"
                        return response.status, await response.json() if known else None
                    problem, again = await _refusal(response), response.status in _RETRIED
            except (aiohttp.ClientConnectionError, asyncio.TimeoutError) as error:
                problem = f"no answer ({str(error) or type(error).__name__})"
                again = isinstance(error, aiohttp.ClientConnectorError)
            except (aiohttp.ClientError, ValueError) as error:
                problem, again = f"an answer that cannot be read ({error})", False
            if not again or left <= 0:
                raise HubError(f"{method} {self._url}/{path}: {problem}")
            await asyncio.sleep(self._pause_seconds)


async def _refusal(response: aiohttp.ClientResponse) -> str:
    text = " ".join((await response.text(errors="replace")).split())[:300]
    return f"status {response.status} {text}".strip()


def _server(model: Any, name: str) -> Any:
    """What the Hub says of a server, None where none of that name is active.

    Raises:
        HubError: it says nothing of servers.
    """
    if not isinstance(model, dict) or "servers" not in model:
        raise HubError("the Hub tells nothing of its servers: the service needs the scope read:servers")
    found = model["servers"].get(name)
    return None if not found or found.get("stopped") else found


def _begun(server: Any) -> datetime:
    """When the Hub began to start it; long ago where it does not say."""
    text = server.get("started") or "1970-01-01T00:00:00Z"
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
