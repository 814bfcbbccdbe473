"""People with accounts on the Hub of a test, by REST and with a browser; and how to wait for something."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from bs4 import BeautifulSoup, Tag

from tests.standins.engine import Container

if TYPE_CHECKING:
    from tests.hub.lab import Lab

NO_BODY: Any = object()


def one_shot() -> aiohttp.TCPConnector:
    """A connection for each request: the proxy closes idle ones, and a POST on such a one would fail."""
    return aiohttp.TCPConnector(force_close=True)


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Wait until `condition()` is true (it may be async) and return what it gave; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Answer:
    """An answer of the Hub."""

    status: int
    text: str
    url: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)

    @property
    def message(self) -> str:
        """The sentence of a refusal by REST."""
        return str(self.json["message"])

    @property
    def page(self) -> BeautifulSoup:
        """The body as a page."""
        return BeautifulSoup(self.text, "html.parser")

    @property
    def form_error(self) -> str:
        """The sentence in the red box above the form, "" where there is none."""
        box = self.page.select_one(".spawn-error-msg")
        return box.get_text().removeprefix("Error: ").strip() if box else ""

    @property
    def checked(self) -> str | None:
        """The profile that is checked on the form."""
        radio = self.page.select_one("input[name=profile][checked]")
        return str(radio["value"]) if isinstance(radio, Tag) else None

    def card(self, slug: str) -> str:
        """The words on one card of the form, in one line."""
        radio = self.page.select_one(f"input[name=profile][value={slug}]")
        assert radio is not None, f"no card {slug!r} in {self.text}"
        assert radio.parent is not None
        return " ".join(radio.parent.get_text().split())


class Person:
    """Somebody with an account: by REST with a token, or with a browser."""

    def __init__(self, lab: Lab, user: Any) -> None:
        self._lab = lab
        self.user = user
        self.name: str = user.name
        self._token = user.new_api_token()
        self._browser: aiohttp.ClientSession | None = None

    # --- by REST ----------------------------------------------------------------------------------------------------

    async def api(
        self, method: str, path: str, body: Any = NO_BODY, language: str = "", raw: bytes | None = None
    ) -> Answer:
        """Any call of the Hub's REST API."""
        data = raw if raw is not None else None if body is NO_BODY else json.dumps(body).encode()
        headers = {"Authorization": f"token {self._token}", "Accept-Language": language}
        url = f"{self._lab.url}hub/api/{path}"
        async with self._lab.http.request(method, url, data=data, headers=headers) as response:
            return Answer(response.status, await response.text(), str(response.url))

    def _server(self, server: str, of: str | None) -> str:
        user = quote(of or self.name, safe="")
        return f"users/{user}/servers/{server}" if server else f"users/{user}/server"

    async def start(
        self, options: Any = NO_BODY, server: str = "", *, of: str | None = None, language: str = ""
    ) -> Answer:
        """Start a server with the body `options`; of another user with `of`."""
        return await self.api("POST", self._server(server, of), options, language)

    async def stop(self, server: str = "", *, of: str | None = None) -> Answer:
        """Stop a server, or cancel its start."""
        return await self.api("DELETE", self._server(server, of))

    async def model(self, server: str = "") -> dict[str, Any]:
        """What the API says of a server; {} where it knows none that is active."""
        answer = await self.api("GET", f"users/{quote(self.name, safe='')}")
        found: dict[str, Any] = answer.json["servers"].get(server, {})
        return found

    async def events(self, server: str = "") -> list[dict[str, Any]]:
        """The progress stream of a start, to its end."""
        return await (await self.follow(server))()

    async def follow(self, server: str = "") -> Callable[[], Awaitable[list[dict[str, Any]]]]:
        """Returns when the progress stream has begun; what is returned reads it to its end."""
        url = f"{self._lab.url}hub/api/{self._server(server, None)}/progress"
        response = await self._lab.http.get(url, headers={"Authorization": f"token {self._token}"})

        async def rest() -> list[dict[str, Any]]:
            async with response:
                text = await response.text()
            return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]

        return rest

    # --- with a browser ---------------------------------------------------------------------------------------------

    async def browse(self, path: str, method: str = "GET", language: str = "", **kwargs: Any) -> Answer:
        """A page of the Hub, after a login where that is needed."""
        browser = self._browser or await self._log_in()
        headers = {"Sec-Fetch-Mode": "navigate", "Accept-Language": language}
        async with browser.request(method, f"{self._lab.url}hub/{path}", headers=headers, **kwargs) as response:
            return Answer(response.status, await response.text(), str(response.url))

    async def form(self, server: str = "", language: str = "") -> Answer:
        """The spawn page."""
        path = f"spawn/{quote(self.name, safe='')}" + (f"/{server}" if server else "")
        return await self.browse(path, language=language)

    async def submit(self, profile: str | None, language: str = "", **more: str) -> Answer:
        """Send the form. What comes back is the form again, or the page that the Hub sends the browser to."""
        await self.form(language=language)
        chosen = {} if profile is None else {"profile": profile}
        path = f"spawn/{quote(self.name, safe='')}?_xsrf={self._xsrf()}"
        return await self.browse(path, "POST", language, data={**chosen, **more})

    def _xsrf(self) -> str:
        assert self._browser is not None
        return next(cookie.value for cookie in self._browser.cookie_jar if cookie.key == "_xsrf")

    async def _log_in(self) -> aiohttp.ClientSession:
        self._browser = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), connector=one_shot())
        login = f"{self._lab.url}hub/login"
        async with self._browser.get(login):
            pass
        words = {"username": self.name, "password": "", "_xsrf": self._xsrf()}
        async with self._browser.post(login, data=words, allow_redirects=False) as response:
            assert response.status == 302, await response.text()
        return self._browser

    async def close(self) -> None:
        """Close the browser."""
        if self._browser:
            await self._browser.close()

    # --- what there is of theirs ------------------------------------------------------------------------------------

    def container(self, server: str = "") -> Container:
        """The container of a server. Raises LookupError unless there is exactly one."""
        labels = {"gpuspawner.user": self.name, "gpuspawner.server": server}
        found = [each for each in self._lab.engine.containers if labels.items() <= each.labels.items()]
        if len(found) != 1:
            raise LookupError(f"{len(found)} containers of {self.name}/{server}")
        return found[0]

    @property
    def containers(self) -> list[Container]:
        """All containers of this person."""
        return [each for each in self._lab.engine.containers if each.labels.get("gpuspawner.user") == self.name]

    @property
    def spawner(self) -> Any:
        """The Hub's spawner of the default server."""
        return self.user.get_or_create_spawner("", "")

    def choose_last_time(self, options: dict[str, Any]) -> None:
        """Let these be the options of an earlier start; before anything else is done with this person's server."""
        assert "" not in self.user.spawners, "the Hub has made the spawner already"
        self.user.orm_spawners[""].user_options = options
        self.user.db.commit()

    @property
    def saved_options(self) -> dict[str, Any]:
        """What the database keeps as the choice of last time."""
        found: dict[str, Any] = self.user.orm_spawners[""].user_options or {}
        return found
