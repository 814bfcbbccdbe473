"""Runs in a box whose network a candidate joins: plays the Hub for it, and tells when it begins to answer.

Arguments: the Hub's version, the port of the server, the path to ask for. Prints a JSON object a line:
{"hub": true} when the Hub is there, {"answered": <seconds since 1970>, "status": <HTTP status>} at the first answer of
each server, one after the other; {"alive": true} now and then. Standard library only.
"""

from __future__ import annotations

import http.client
import http.server
import json
import sys
import threading
import time
from typing import Any

HUB_PORT = 8081
POLL_SECONDS, AFTERWARDS_SECONDS = 0.015, 0.1
# Whoever reads along gives up on a silent line after a minute.
ALIVE_SECONDS = 5
USER = {
    "kind": "user",
    "name": "u",
    "admin": False,
    "groups": [],
    "scopes": ["access:servers!user=u", "access:servers!server=u/", "users:activity!user=u"],
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows one user, whoever asks."""

    protocol_version = "HTTP/1.1"
    version = ""

    def do_GET(self) -> None:
        """The user, or the version."""
        self.answer(USER if self.path.endswith("/user") else {"version": self.version})

    def do_POST(self) -> None:
        """Activity, or a token for a code."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer({"access_token": "x", "token_type": "Bearer"})

    def answer(self, content: dict[str, Any]) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-JupyterHub-Version", self.version)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the output is for what this tells."""


def say(**words: Any) -> None:
    """One line."""
    print(json.dumps(words), flush=True)


def ask(port: int, path: str) -> int | None:
    """The HTTP status of the server's answer, None where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def watch(port: int, path: str) -> None:
    """Tell of each server that begins to answer."""
    answering, spoke = False, time.monotonic()
    while True:
        status = ask(port, path)
        if status is None:
            answering = False
        elif status < 500 and not answering:
            say(answered=time.time(), status=status)
            answering = True
        if time.monotonic() - spoke > ALIVE_SECONDS:
            say(alive=True)
            spoke = time.monotonic()
        # One that has answered is left in peace; what is awaited then is its end.
        time.sleep(AFTERWARDS_SECONDS if answering else POLL_SECONDS)


if __name__ == "__main__":
    Hub.version = sys.argv[1]
    hub = http.server.ThreadingHTTPServer(("127.0.0.1", HUB_PORT), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    say(hub=True)
    watch(int(sys.argv[2]), sys.argv[3])
