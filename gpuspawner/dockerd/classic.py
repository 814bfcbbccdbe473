"""Builds one image with Docker's classic builder: `python -m gpuspawner.dockerd.classic OPTION... <context.tar`.

The options are those of `docker build`. A program of its own and not a call, because a call of docker-py cannot be
broken off: when this process ends, the engine gives the build up. It prints what the builder prints; exit status 1 says
that the build failed.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

import docker
import requests
from docker.errors import DockerException
from docker.utils import kwargs_from_env

# The builder paints what a step says on standard error.
_COLOUR = re.compile(r"\x1b\[\d*m")


def main(argv: list[str]) -> int:
    """Build, and print the lines of the builder as they come."""
    parser = argparse.ArgumentParser(prog="classic")
    parser.add_argument("--tag", required=True)
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("--no-cache", action="store_true")
    parser.add_argument("--network")
    options = parser.parse_args(argv)
    try:
        # No limit: a step that compiles may be silent for an hour.
        client = docker.APIClient(version="auto", timeout=None, **kwargs_from_env())
        lines = client.build(
            fileobj=sys.stdin.buffer,
            custom_context=True,
            tag=options.tag,
            labels=dict(entry.split("=", 1) for entry in options.label),
            buildargs=dict(entry.split("=", 1) for entry in options.build_arg),
            nocache=options.no_cache,
            network_mode=options.network,
            rm=True,
            forcerm=True,
            decode=True,
        )
        return max((_print(line) for line in lines), default=0)
    except (DockerException, requests.RequestException) as error:
        print(getattr(error, "explanation", None) or error, flush=True)
        return 1


def _print(entry: dict[str, Any]) -> int:
    """One message of the builder; 1 where it is an error."""
    if "error" in entry:
        print(entry["error"], flush=True)
        return 1
    print(_COLOUR.sub("", entry.get("stream", "")), end="", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
