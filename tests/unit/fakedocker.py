"""A docker program that remembers what it was asked and hands every build on to the engine that DOCKER_HOST names.

So there is one truth about images, the engine's, whichever way a build takes. Only what a program adds is here: its
version, whether it has buildx, and BuildKit's way to write its steps.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Runs alone: `-I` keeps this process's settings out of it, `-S` makes it quick to start.
_PROGRAM = """#!{python} -IS
import http.client, json, os, socket, sys
from urllib.parse import urlencode

version, buildx = {version!r}, {buildx!r}
argv = sys.argv[1:]
names = ("DOCKER_BUILDKIT", "DOCKER_HOST", "BUILDX_NO_DEFAULT_ATTESTATIONS")
with open({record!r}, "a") as record:
    record.write(json.dumps([argv, {{name: os.environ.get(name) for name in names}}, {path!r}]) + "\\n")
if argv == ["--version"]:
    print("Docker version %s, build 1" % version)
    sys.exit()
if argv == ["buildx", "version"] and buildx:
    print("github.com/docker/buildx 0.13.1")
    sys.exit()
if argv[:1] != ["build"] and argv[:2] != ["buildx", "build"]:
    sys.exit("docker: '%s' is not a docker command." % " ".join(argv))


def values(flag):
    return [after for before, after in zip(argv, argv[1:]) if before == flag]


def pairs(flag):
    return json.dumps(dict(value.split("=", 1) for value in values(flag)))


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["DOCKER_HOST"][len("unix://") :])


query = {{
    "t": values("--tag")[0],
    "labels": pairs("--label"),
    "buildargs": pairs("--build-arg"),
    "nocache": int("--no-cache" in argv),
    "networkmode": "".join(values("--network")),
    "version": 2,
}}
connection = Connection("engine")
connection.request("POST", "/build?" + urlencode(query), body=sys.stdin.buffer.read())
answer = connection.getresponse()
if answer.status != 200:
    sys.exit("ERROR: " + json.loads(answer.read())["message"])
for line in answer:
    entry = json.loads(line)
    if "error" in entry:
        print("ERROR: failed to solve: " + entry["error"], flush=True)
        sys.exit(1)
    text = entry.get("stream", "").strip()
    if text.startswith("Step "):
        place, _, step = text[len("Step ") :].partition(" : ")
        text = "#%s [%s] %s" % (place.split("/")[0], place, step)
    if text:
        print(text, flush=True)
"""


@dataclass(frozen=True)
class Asked:
    """One call of a docker program."""

    argv: list[str]
    environment: dict[str, str | None]
    program: str

    def values(self, flag: str) -> list[str]:
        """What was given for a flag, each time that it was given."""
        return [after for before, after in zip(self.argv, self.argv[1:], strict=False) if before == flag]


@dataclass(frozen=True)
class FakeDocker:
    """A folder with a docker program in it."""

    root: Path

    @classmethod
    def make(cls, root: Path, *, version: str = "28.2.2", buildx: bool = True) -> FakeDocker:
        """By default one of today, with buildx."""
        root.mkdir(parents=True, exist_ok=True)
        fake = cls(root)
        fake.write(version=version, buildx=buildx)
        return fake

    def write(self, **about: Any) -> None:
        """Put the program there, or another version of it in its place."""
        program = self.root / "docker"
        text = _PROGRAM.format(python=sys.executable, record=str(self._record), path=str(program), **about)
        program.write_text(text)
        program.chmod(0o755)

    @property
    def _record(self) -> Path:
        return self.root / "asked.jsonl"

    @property
    def asked(self) -> list[Asked]:
        """Every call so far."""
        return (
            [Asked(*json.loads(line)) for line in self._record.read_text().splitlines()]
            if self._record.exists()
            else []
        )

    def builds(self) -> list[Asked]:
        """The calls that built something."""
        return [call for call in self.asked if "build" in call.argv]

    def environ(self, docker_host: str) -> dict[str, str]:
        """The environment of a program that finds this docker, that engine, and the tools of a bare system."""
        return {"PATH": f"{self.root}:/usr/local/bin-of-nobody", "DOCKER_HOST": docker_host, "HOME": str(self.root)}


def only(*folders: Path) -> str:
    """A PATH of these folders alone, first of all an empty one."""
    return os.pathsep.join(["/nowhere", *map(str, folders)])
