"""Ask the Docker engine of DOCKER_HOST, or of the default socket, what scripts/run has to know of it.

Prints one `name=value` per line: `state` (up, denied, down), `detail` (why it is not up), and of an engine that
is up its `id`, `version`, `gpu` (yes where a runtime or CDI devices of NVIDIA are known to it) and, for each image
named on the command line, `image.<name>` with its id. Always exits 0: an engine that is down is an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import docker  # noqa: TID251 - a set-up step, before anything of the package can be relied on
from docker.errors import DockerException, ImageNotFound  # noqa: TID251


def facts(images: list[str]) -> Iterator[tuple[str, str]]:
    """The pairs that are printed."""
    try:
        client = docker.from_env(timeout=20)
        info = client.info()
    except DockerException as error:
        cause = _system_error(error)
        yield "state", "denied" if isinstance(cause, PermissionError) else "down"
        yield "detail", cause.strerror if cause and cause.strerror else " ".join(str(error).split())
        return
    yield "state", "up"
    yield "id", str(info.get("ID", ""))
    yield "version", str(info.get("ServerVersion", ""))
    devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()]
    runtime = "nvidia" in (info.get("Runtimes") or {})
    yield "gpu", "yes" if runtime or any("nvidia.com/gpu" in name for name in devices) else "no"
    for image in images:
        try:
            yield f"image.{image}", str(client.images.get(image).id)
        except ImageNotFound:
            continue


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said, below the layers of docker, requests and urllib3 (whose own errors are OSErrors too)."""
    found = None
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            found = error
        error = error.__cause__ or error.__context__
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}={value}" for name, value in facts(sys.argv[1:])))
