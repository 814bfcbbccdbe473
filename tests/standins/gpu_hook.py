#!/usr/bin/python3 -IS
"""Stand-in for NVIDIA's container hook: what dockerd finds as `nvidia-container-runtime-hook` on its PATH.

A program of its own, run by the OCI runtime between the container's mounts and its pivot_root; it imports
nothing of this project, so that it starts in some 30 ms. It reads the OCI state on stdin and the bundle's
config.json, and gives the container the cards its NVIDIA_VISIBLE_DEVICES asks for:

- a node /dev/nvidia<minor> for each of them and /dev/nvidiactl, with the numbers of /dev/null, which
  Docker's device rules allow, so that they can be opened;
- an executable /usr/bin/nvidia-smi that answers `-L` as the real one would inside that container.

Each container that gets cards is a line of JSON in the log, the state file's path with `.log` behind it: `id`, `cards`
(their UUIDs), `memory_mib` (the share it was promised; null: whole cards), `at` (when, in seconds since 1970), and
`beside`: what it found of other
containers that have one of these cards at this moment, decided by whether their first process is still there.

A card that is unknown or lost makes the start fail, with the words of the real tool. Which cards there are is
said by the file named in GPUSPAWNER_TEST_GPUS (format: gpustate.py), a variable of dockerd's environment.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Iterable

CLI = "nvidia-container-cli"


class HookError(Exception):
    """What the real tool would write on stderr before it fails."""


def read_state(path: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The file's single facts and its cards."""
    facts: dict[str, str] = {}
    cards: list[dict[str, str]] = []
    try:
        with open(path, encoding="utf-8") as file:  # importing pathlib doubles the start time
            lines = file.read().splitlines()
    except OSError:
        raise HookError(f"{CLI}: initialization error: nvml error: driver not loaded") from None
    for line in lines:
        word, *fields = line.split("\t")
        if word == "card":
            cards.append(dict(field.partition("=")[::2] for field in fields))
        elif fields and not word.startswith("#"):
            facts[word] = fields[0]
    return facts, cards


def wanted(environment: dict[str, str]) -> str:
    """The value of NVIDIA_VISIBLE_DEVICES that applies; images older than that variable get all cards."""
    legacy = "CUDA_VERSION" in environment and "NVIDIA_REQUIRE_CUDA" not in environment
    return environment.get("NVIDIA_VISIBLE_DEVICES", "all" if legacy else "void")


def choose(asked: str, cards: list[dict[str, str]]) -> list[dict[str, str]]:
    """The cards that `asked` names (by UUID or index, or `all`), in the driver's order."""
    if asked in ("", "void", "none"):
        return []
    present = [(str(index), card) for index, card in enumerate(cards) if card.get("lost") != "1"]
    if asked == "all":
        return [card for _, card in present]
    names = asked.split(",")
    for name in names:
        if not any(name in (index, card["uuid"]) for index, card in present):
            raise HookError(f"{CLI}: device error: {name}: unknown device")
    return [card for index, card in present if index in names or card["uuid"] in names]


def make_node(path: str) -> None:
    """A character device with the numbers of /dev/null, open to everybody."""
    if not os.path.lexists(path):
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chmod(path, 0o666)  # mknod obeys the umask


def smi_script(cards: Iterable[dict[str, str]]) -> str:
    """A shell script that answers like nvidia-smi in a container with these cards."""
    listing = "\n".join(f"GPU {index}: {card['name']} (UUID: {card['uuid']})" for index, card in enumerate(cards))
    return f"""#!/bin/sh
case "$1" in
-L|--list-gpus) cat <<'CARDS'
{listing}
CARDS
;;
*) echo "This stand-in for nvidia-smi knows -L only." >&2; exit 2 ;;
esac
"""


def attach(root: str, pid: int, cards: list[dict[str, str]]) -> None:
    """Put nodes and nvidia-smi into the container's root.

    /proc/<pid>/root leads into the mount namespace of the container, where its /dev is; a plain path would
    end below that tmpfs.
    """
    inside = f"/proc/{pid}/root{root}"
    for name in ("nvidiactl", *(f"nvidia{card['minor']}" for card in cards)):
        make_node(f"{inside}/dev/{name}")
    folder = f"{inside}/usr/bin"
    os.makedirs(folder, exist_ok=True)
    program = f"{folder}/nvidia-smi"
    if os.path.lexists(program):
        os.unlink(program)  # the image's own file may be a link that leads elsewhere
    with open(program, "w", encoding="utf-8") as file:
        file.write(smi_script(cards))
    os.chmod(program, 0o755)


def birth(pid: int) -> str:
    """When the process began, in ticks since the machine did; "" if it is gone or a zombie. Numbers are used again."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def note(path: str, container: dict[str, object], uuids: list[str], memory: str) -> None:
    """Write down who gets the cards, and who has them besides; one hook at a time."""
    pid = int(str(container["pid"]))
    with open(path, "a+", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        earlier = [json.loads(line) for line in log]
        beside = [
            {key: entry[key] for key in ("id", "cards", "memory_mib")}
            for entry in earlier
            if set(entry["cards"]) & set(uuids) and birth(entry["pid"]) == entry["birth"]
        ]
        entry = {
            "id": container["id"],
            "cards": uuids,
            "memory_mib": int(memory) if memory else None,
            "beside": beside,
            "at": time.time(),
            "pid": pid,
            "birth": birth(pid),
        }
        log.write(json.dumps(entry) + "\n")


def main() -> int:
    """Run as an OCI prestart hook; the exit status decides whether the container starts."""
    container = json.load(sys.stdin)
    with open(f"{container['bundle']}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    environment = dict(item.partition("=")[::2] for item in config["process"].get("env") or [])
    asked = wanted(environment)
    if asked in ("", "void"):
        return 0
    state = os.environ.get("GPUSPAWNER_TEST_GPUS", "")
    try:
        facts, cards = read_state(state)
        if facts.get("hook") == "ignore":
            return 0
        if "hook_error" in facts:
            raise HookError(f"{CLI}: {facts['hook_error']}")
        if facts.get("init_error", "0") != "0":
            raise HookError(f"{CLI}: initialization error: nvml error: driver not loaded")
        chosen = choose(asked, cards)
        memory = environment.get("NVIDIA_GPU_MEMORY_LIMIT", "")
        note(f"{state}.log", container, [card["uuid"] for card in chosen], memory)
        attach(config["root"]["path"], container["pid"], chosen)
    except HookError as error:
        print(f"Auto-detected mode as 'legacy'\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
