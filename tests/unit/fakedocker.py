"""A docker program that remembers what it was asked, for tests of what asks it. Its engine is a small file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Runs alone: `-I` keeps this process's settings out of it, `-S` makes it quick to start.
_PROGRAM = """#!{python} -IS
import json, os, sys
state = {state!r}
config = json.load(open({config!r}))
argv = sys.argv[1:]
with open({record!r}, "a") as record:
    asked = {{name: os.environ.get(name) for name in ("DOCKER_BUILDKIT", "DOCKER_HOST")}}
    record.write(json.dumps([argv, asked, {path!r}]) + "\\n")
images = json.load(open(state))

def leave(status, text="", error=""):
    sys.stdout.write(text)
    sys.stderr.write(error)
    json.dump(images, open(state, "w"))
    sys.exit(status)

def named(reference):
    return reference if ":" in reference else reference + ":latest"

if argv == ["--version"]:
    leave(0, "Docker version %s, build 1\\n" % config["version"])
if argv[:2] == ["buildx", "version"]:
    leave(0 if config["buildx"] else 1, error="docker: 'buildx' is not a docker command.\\n")
if config["trouble"]:
    leave(1, error=config["trouble"] + "\\n")
if argv[0] == "version":
    leave(0, "20.10.24\\n")
if argv[:2] == ["network", "inspect"]:
    leave(0 if config["bridge"] else 1, error="Error: No such network: bridge\\n")
if argv[:2] == ["image", "inspect"]:
    image = images.get(named(argv[2]))
    leave(0, json.dumps([image])) if image else leave(1, "[]\\n", "Error: No such image: %s\\n" % argv[2])
if argv[0] == "tag":
    images[named(argv[2])] = images[named(argv[1])]
    leave(0)
if argv[0] == "pull":
    if config["pull"] == "silence":
        os.execv("/bin/sleep", ["sleep", "60"])
    if config["pull"] == "refusal":
        leave(1, error="Error response from daemon: no such host\\n")
    images[named(argv[1])] = {{"Id": "sha256:" + argv[1], "Size": 1, "Config": {{}}}}
    leave(0, "12-slim: Pulling from library/debian\\n")
if argv[0] == "import":
    size = len(sys.stdin.buffer.read())
    images[named(argv[-1])] = {{"Id": "sha256:" + argv[-1], "Size": size, "Config": {{"Labels": None}}}}
    leave(0)
if "build" in argv:
    def values(flag):
        return [after for before, after in zip(argv, argv[1:]) if before == flag]
    tag = values("--tag")[0]
    print("#5 [1/2] FROM x", flush=True)
    print("#6 [2/2] RUN   work", flush=True)
    if tag.partition(":")[0] in config["broken"]:
        leave(1, "#6 ERROR: exit code: 1\\n")
    labels = dict(label.split("=", 1) for label in values("--label"))
    images[named(tag)] = {{"Id": "sha256:%d" % len(images), "Size": 3 << 20, "Config": {{"Labels": labels}}}}
    leave(0)
leave(125, error="docker: what is %s?\\n" % argv)
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


@dataclass
class FakeDocker:
    """A folder with a docker program in it; several of them can share one engine (`beside`)."""

    root: Path
    engine: Path
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, root: Path, *, beside: FakeDocker | None = None, **config: Any) -> FakeDocker:
        """`config`: version, buildx, bridge, pull (works, refusal, silence), broken (images), trouble (an error)."""
        root.mkdir(parents=True, exist_ok=True)
        fake = cls(root, beside.engine if beside else root / "engine.json")
        if not beside:
            fake.engine.write_text("{}")
        usual = {"version": "20.10.24", "buildx": False, "bridge": True, "pull": "works", "broken": [], "trouble": ""}
        fake.set(**{**usual, **config})
        values = {
            "python": sys.executable,
            "state": str(fake.engine),
            "config": str(root / "config.json"),
            "record": str(fake.engine.with_name("record.jsonl")),
            "path": str(root / "docker"),
        }
        (root / "docker").write_text(_PROGRAM.format(**values))
        (root / "docker").chmod(0o755)
        return fake

    def set(self, **config: Any) -> None:
        """Change how it behaves from now on."""
        self.config.update(config)
        (self.root / "config.json").write_text(json.dumps(self.config))

    @property
    def asked(self) -> list[Asked]:
        """Every call so far, of all programs that share the engine."""
        record = self.engine.with_name("record.jsonl")
        return [Asked(*json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []

    def builds(self) -> list[Asked]:
        """The calls that built something."""
        return [call for call in self.asked if "build" in call.argv]

    @property
    def images(self) -> dict[str, Any]:
        """What the engine has, by name and tag."""
        found: dict[str, Any] = json.loads(self.engine.read_text())
        return found

    def add_image(self, reference: str, labels: dict[str, str] | None = None) -> None:
        """An image that somebody built before."""
        image = {"Id": f"sha256:{reference}", "Size": 1, "Config": {"Labels": labels}}
        self.engine.write_text(json.dumps({**self.images, reference: image}))

    def remove_image(self, reference: str) -> None:
        """What `docker image prune` does."""
        self.engine.write_text(json.dumps({name: image for name, image in self.images.items() if name != reference}))

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a program that finds this docker and nothing else."""
        return {"PATH": str(self.root), "DOCKER_HOST": "unix:///nowhere.sock", "HOME": str(self.root)}
