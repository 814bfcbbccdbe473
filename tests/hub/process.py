"""A Hub in a process of its own, which can be killed: `jupyterhub -f FILE` and the REST API."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.hub.people import Answer, one_shot, until
from tests.standins.engine import Container, StandinEngine

REPOSITORY = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 2

# What every configuration of these tests ends with: a way in by REST, beside the services that it has.
WAY_IN = f"""
c.JupyterHub.services = [*c.JupyterHub.get("services", []), {{"name": "test", "api_token": "{TOKEN}"}}]
c.JupyterHub.load_roles = [
    *c.JupyterHub.get("load_roles", []),
    {{"name": "test", "services": ["test"], "scopes": ["admin:users", "admin:servers", "list:users"]}}
]
"""


class HubProcess:
    """One state folder and one configuration; `start` may follow `kill`."""

    def __init__(self, folder: Path, config: str, port: int, environment: Mapping[str, str]) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}/"
        (folder / "config.py").write_text(config + WAY_IN)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What all its processes have printed so far."""
        return (self.folder / "hub.log").read_text(errors="replace")

    async def start(self) -> None:
        """Start it and wait until its API answers."""
        with (self.folder / "hub.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(self.folder / "config.py")],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            await until(self._answers, "the Hub answers", seconds=60)
        except AssertionError as late:
            raise AssertionError(f"{late}; its log:\n{self.log}") from None

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the Hub has ended; its log:\n{self.log}"
        try:
            return (await self.api("GET", "users")).status == 200
        except aiohttp.ClientError:
            return False

    def kill(self) -> None:
        """`kill -9`: nothing is cleaned up, and the proxy runs on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it as a service manager does, with its proxy."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=30)

    async def api(self, method: str, path: str, body: Any = None) -> Answer:
        """Any call of the REST API, as the service `test`."""
        data = None if body is None else json.dumps(body)
        headers = {"Authorization": f"token {TOKEN}"}
        async with (
            aiohttp.ClientSession(connector=one_shot()) as http,
            http.request(method, f"{self.url}hub/api/{path}", data=data, headers=headers) as response,
        ):
            return Answer(response.status, await response.text(), str(response.url))

    async def model(self, user: str) -> dict[str, Any]:
        """The default server of a user; {} while there is none."""
        found: dict[str, Any] = (await self.api("GET", f"users/{user}")).json["servers"].get("", {})
        return found

    async def reaches(self, user: str) -> bool:
        """Whether the notebook of a user answers through the proxy."""
        async with (
            aiohttp.ClientSession(connector=one_shot()) as http,
            http.get(f"{self.url}user/{user}/api", allow_redirects=False) as response,
        ):
            return response.status == 200 and "version" in await response.json()


@asynccontextmanager
async def running(hub: HubProcess) -> AsyncIterator[HubProcess]:
    """The Hub is up inside the block, and down with its proxy afterwards."""
    try:
        await hub.start()
        yield hub
    finally:
        hub.end()


def container_of(engine: StandinEngine, user: str) -> Container:
    """The one container of a user."""
    (found,) = [each for each in engine.containers if each.labels.get("gpuspawner.user") == user]
    return found


def ports_in_a_row(*steps: int) -> int:
    """A port of 127.0.0.1 that is free together with those that lie `steps` above it."""
    for start in range(20_000, 32_000, 97):
        try:
            for step in (0, *steps):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", start + step))
        except OSError:
            continue
        return start
    raise OSError("No free ports are left on 127.0.0.1: end other test runs.")
