#!/usr/bin/python3 -IS
"""Stand-in for NVIDIA's OCI runtime: registered as `nvidia`, it adds the container hook and becomes runc.

With `default-runtime: nvidia` it reproduces the hole that many GPU hosts have: a container without any device
request gets cards because its *image* says NVIDIA_VISIBLE_DEVICES=all. Like the hook it is a program of its
own that imports nothing of this project. It expects runc and `nvidia-container-runtime-hook` on PATH.
"""

from __future__ import annotations

import json
import os
import sys

HOOK = "nvidia-container-runtime-hook"


def find(program: str) -> str:
    """Path of a program; containerd may hand down a PATH without the sbin folders."""
    folders = [*os.environ.get("PATH", "").split(":"), "/usr/local/sbin", "/usr/sbin", "/usr/bin"]
    for folder in folders:
        path = f"{folder}/{program}"
        if folder and os.access(path, os.X_OK):
            return path
    sys.exit(f"The stub runtime needs {program}, and it is in none of {':'.join(folders)}.")


def bundle_of(arguments: list[str]) -> str | None:
    """The bundle folder of a `create` or `run` call; None for every other call."""
    if not {"create", "run"} & set(arguments):
        return None
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag in ("--bundle", "-b"):
            return value
        if flag.startswith("--bundle="):
            return flag.partition("=")[2]
    return "."


def add_hook(bundle: str) -> None:
    """Add the hook to config.json, unless a device request of Docker's has put it there already."""
    path = f"{bundle}/config.json"
    with open(path, encoding="utf-8") as file:  # pathlib is slow to import
        config = json.load(file)
    hooks = config.setdefault("hooks", {}).setdefault("prestart", [])
    if any(hook["path"].endswith(HOOK) for hook in hooks):
        return
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    hooks.append({"path": find(HOOK), "args": [HOOK, "prestart"], "env": environment})
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)


def main() -> None:
    """Edit the bundle if a container is being made, then be runc."""
    bundle = bundle_of(sys.argv[1:])
    if bundle is not None:
        add_hook(bundle)
    os.execv(find("runc"), ["runc", *sys.argv[1:]])


if __name__ == "__main__":
    main()
