"""A first look at the engine's images, over its socket and without docker-py.

Importing docker-py takes longer than all the rest of a run that finds nothing to do, and a run from a timer finds
nothing to do almost every time. Whatever is not plainly answered here is asked again through docker-py, which has the
words for what is wrong.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from gpuspawner.recipes.image import Image

USUAL_SOCKET = "unix:///var/run/docker.sock"
SECONDS = 10.0


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def look(references: Iterable[str], environ: Mapping[str, str]) -> dict[str, Image | None] | None:
    """Each image by its reference, None for one that the engine does not have; None altogether for "ask properly"."""
    host = environ.get("DOCKER_HOST") or USUAL_SOCKET
    if not host.startswith("unix://"):
        return None
    found: dict[str, Image | None] = {}
    connection = _SocketConnection(host.removeprefix("unix://"))
    try:
        for reference in references:
            connection.request("GET", f"/images/{quote(reference)}/json")
            response = connection.getresponse()
            content = response.read()
            if response.status not in (200, 404):
                return None
            found[reference] = Image.read(json.loads(content)) if response.status == 200 else None
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return found


def look_or_ask(references: Iterable[str]) -> dict[str, Image | None]:
    """The same for the engine that this process's environment names, through docker-py where a look is not enough.

    Raises:
        BuildError: the engine does not answer, or may not be asked.
    """
    wanted = list(references)
    seen = look(wanted, os.environ)
    if seen is None:
        from gpuspawner.dockerd.images import Images

        images = Images(os.environ)
        seen = {reference: images.get(reference) for reference in wanted}
    return seen
