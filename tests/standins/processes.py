"""Small facts about processes, sockets and mounts, as far as a private engine's start and stop need them.

Everything is decided from /proc, and a process is only ever signalled after its command line has been looked
at: a pid file may be older than the process that has its number now. No state.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/<pid>/status; empty if there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return status(pid).get("State", "Z")[0] not in "ZX"


def runs(pid: int, program: str, argument: str) -> bool:
    """Whether `pid` is `program` and has `argument` somewhere on its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return alive(pid) and Path(words[0]).name == program and any(argument in word for word in words[1:])


def of(program: str, argument: str) -> Iterator[int]:
    """The pids of all processes that `runs` says yes to."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and runs(int(folder.name), program, argument):
            yield int(folder.name)


def children(pid: int) -> list[int]:
    """The pids of the processes that `pid` has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def read_pid(file: Path) -> int | None:
    """The number in a pid file; None if there is no such file or no number in it."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def stop(pid: int, seconds: float) -> None:
    """Ask the process to end, and kill it if it is there after `seconds`; returns when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM if seconds else signal.SIGKILL)
        if not _until(lambda: not alive(pid), seconds):
            os.kill(pid, signal.SIGKILL)
            _until(lambda: not alive(pid), 10)


def wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait until `condition` holds; False if the process has ended or the time is over before."""
    return _until(lambda: condition() or process.poll() is not None, seconds) and process.poll() is None


def connects(path: Path) -> bool:
    """Whether somebody listens on the unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def answers(path: Path) -> bool:
    """Whether a Docker engine answers on the unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
            client.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
            return b" 200 " in client.recv(64)
        except OSError:
            return False


def unmount_below(*folders: Path) -> None:
    """Detach every mount below the folders, the innermost first: what a killed engine leaves behind."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted(points, reverse=True):
        if any(Path(point).is_relative_to(folder) for folder in folders):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True
