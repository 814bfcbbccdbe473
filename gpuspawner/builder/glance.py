"""A first look at the engine's images, over its socket and without docker-py.

Importing docker-py takes longer than all the rest of a run that finds nothing to do, and a run from a timer finds
nothing to do almost every time. Whatever is not plainly answered here is asked again through docker-py, which has the
words for what is wrong.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from gpuspawner.recipes.image import Image

USUAL_SOCKET = "unix:///var/run/docker.sock"
SECONDS = 10.0


def look(references: Iterable[str], environ: Mapping[str, str]) -> dict[str, Image | None] | None:
    """Each image by its reference, None for one that the engine does not have; None altogether for "ask properly"."""
    host = environ.get("DOCKER_HOST") or USUAL_SOCKET
    if not host.startswith("unix://"):
        return None
    found: dict[str, Image | None] = {}
    try:
        for reference in references:
            status, content = _get(host.removeprefix("unix://"), f"/images/{quote(reference)}/json")
            if status not in (200, 404):
                return None
            found[reference] = Image.read(json.loads(content)) if status == 200 else None
    except (OSError, ValueError, KeyError):
        return None
    return found


def _get(path: str, url: str) -> tuple[int, bytes]:
    """Status and body. HTTP/1.0: one answer, which ends where the engine closes (http.client takes 10 ms to import)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(f"GET {url} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0, content


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
