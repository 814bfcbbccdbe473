"""How the Hub starts a server, played in two boxes: one is the Hub and asks, the other holds nothing but the server."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

from gpuspawner import candidates
from gpuspawner.dockerd.boxes import Boxes, CannotStart

START_SECONDS, CHECK_ALIVE_SECONDS = 60.0, 0.5

HUB, PORT, PREFIX = "http://127.0.0.1:8081/hub/api", 8888, "/user/u/"
_SCOPES = json.dumps(["access:servers!server=u/", "access:servers!user=u"])
# What JupyterHub 6 and DockerSpawner give a server, for a user called u.
AS_THE_HUB_STARTS_IT = {
    "JPY_API_TOKEN": "of-a-trial",
    "JUPYTERHUB_ACTIVITY_URL": f"{HUB}/users/u/activity",
    "JUPYTERHUB_API_TOKEN": "of-a-trial",
    "JUPYTERHUB_API_URL": HUB,
    "JUPYTERHUB_BASE_URL": "/",
    "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-u",
    "JUPYTERHUB_COOKIE_HOST_PREFIX_ENABLED": "0",
    "JUPYTERHUB_HOST": "",
    "JUPYTERHUB_OAUTH_ACCESS_SCOPES": _SCOPES,
    "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{PREFIX}oauth_callback",
    "JUPYTERHUB_OAUTH_CLIENT_ALLOWED_SCOPES": "[]",
    "JUPYTERHUB_OAUTH_SCOPES": _SCOPES,
    "JUPYTERHUB_PUBLIC_HUB_URL": "",
    "JUPYTERHUB_PUBLIC_URL": "",
    "JUPYTERHUB_SERVER_NAME": "",
    "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
    "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{PORT}{PREFIX}",
    "JUPYTERHUB_USER": "u",
}


class NoAnswer(Exception):
    """A server that did not come to answer: how it ended, and its last lines."""

    def __init__(self, how: str, lines: Sequence[str]) -> None:
        super().__init__(how)
        self.how, self.lines = how, lines


class HubBox:
    """The box that plays the Hub, and what it tells."""

    def __init__(self, boxes: Boxes, name: str) -> None:
        self._boxes = boxes
        self.name = name
        self._told: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True, name="trial-hub").start()
        deadline = time.monotonic() + START_SECONDS
        while (word := self._next(deadline)) is not None:
            if "hub" in word:
                return
        last = " ".join(boxes.log(name, last=3)) or "no output"
        raise CannotStart(f"the python3 of the image does not run a small web server ({last})")

    def await_answer(self, server: str) -> float:
        """The seconds from the start of a server to its first answer, both on the engine's clock.

        Raises:
            NoAnswer: it ended, or was not there in time.
        """
        deadline = time.monotonic() + START_SECONDS
        started = self._boxes.state(server).started
        while time.monotonic() < deadline:
            word = self._next(time.monotonic() + CHECK_ALIVE_SECONDS)
            # What comes late from the server of before is older than this one.
            if word and word.get("answered", 0.0) > started:
                return float(word["answered"]) - started
            state = self._boxes.state(server)
            if not state.running:
                lines = self._boxes.log(server, last=candidates.LOG_LINES)
                out = " (out of memory)" if state.out_of_memory else ""
                raise NoAnswer(f"ended by itself with exit code {state.exit_code}{out}", lines)
        lines = self._boxes.log(server, last=candidates.LOG_LINES)
        raise NoAnswer(f"gave no answer on {PREFIX}api at port {PORT} within {START_SECONDS:g} seconds", lines)

    def _listen(self) -> None:
        for line in self._boxes.follow(self.name):
            word = answer_in([line])
            if word is not None:
                self._told.put(word)
        self._told.put(None)

    def _next(self, deadline: float) -> dict[str, Any] | None:
        """The next word, None where there is none until the deadline, or never will be."""
        try:
            return self._told.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None


def script(name: str) -> str:
    """The source of one of the scripts that run inside images."""
    return (resources.files("gpuspawner.builder") / "inside" / f"{name}.py").read_text(encoding="utf-8")


def answer_in(lines: Sequence[str]) -> dict[str, Any] | None:
    """The JSON object in the last line, None where there is none."""
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, dict) else None
