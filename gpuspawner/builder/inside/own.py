"""Runs as the user of an image, in a box made from it: who that is, which server there is, whether packages fit.

Prints one JSON object, in the last line: {"uid": …, "server_version": <text> or null,
"packages": [{"python": …, "pip": <whether one could be asked>, "lines": […]}]}. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVER = "jupyterhub-singleuser"
SECONDS = 120


def begin(argv: list[str]) -> subprocess.Popen[str] | OSError:
    """Start a program; the error where it cannot be."""
    try:
        return subprocess.Popen(argv, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        return error


def end(process: subprocess.Popen[str] | OSError) -> tuple[int, str]:
    """Exit status and output of a program."""
    if isinstance(process, OSError):
        return 127, str(process)
    try:
        output = process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return 124, process.communicate()[0] + f"\nno answer within {SECONDS} seconds"
    return process.returncode, output


def interpreter_of(program: str) -> str | None:
    """The Python in a script's first lines, or None where it is another kind of program."""
    try:
        with Path(program).open(errors="replace") as file:
            lines = file.read(2000).splitlines()[:3]
    except OSError:
        return None
    if not lines or not lines[0].startswith("#!"):
        return None
    words = lines[0][2:].split()
    if words and Path(words[0]).name == "env":
        words = [shutil.which(word) or "" for word in words[1:] if not word.startswith("-") and "=" not in word]
    elif words and Path(words[0]).name == "sh" and len(lines) > 1:
        # What pip writes where the path is too long for a first line: '''exec' "/long/path/python3" "$0" "$@"
        words = re.findall(r"^'''exec' \"?([^\"\s]+)", lines[1])
    found = words[0] if words and words[0] else ""
    return found if "python" in Path(found).name and os.access(found, os.X_OK) else None


def pythons() -> list[str]:
    """The students' Python and the server's, each once."""
    found: list[str] = []
    server = shutil.which(SERVER)
    for program in (shutil.which("python3") or sys.executable, interpreter_of(server) if server else None):
        # Not by where links lead: the python of a virtual environment is a link to the one that it was made with.
        if program and program not in found:
            found.append(program)
    return found


def has_pip(python: str) -> bool:
    """Whether it can be asked for its packages."""
    return end(begin([python, "-c", "import pip"]))[0] == 0


def look() -> dict[str, Any]:
    """All that the module's docstring names, asked for at the same time."""
    version = begin([SERVER, "--version"])
    interpreters = pythons()
    with_pip = [python for python in interpreters if has_pip(python)]
    packages: list[dict[str, Any]] = []
    asked = []
    for python in interpreters:
        packages.append({"python": python, "pip": bool(with_pip), "lines": []})
        if python in with_pip:
            asked.append(begin([python, "-m", "pip", "check"]))
        elif with_pip:
            asked.append(begin([with_pip[0], "-m", "pip", "--python", python, "check"]))
    # Either all are asked, or none.
    for entry, process in zip(packages, asked):  # noqa: B905  (strict: only from Python 3.10 on)
        status, output = end(process)
        if status:
            lines = [line for line in output.splitlines() if line.strip()]
            entry["lines"] = lines or [f"pip check ended with status {status}"]
    return {"uid": os.getuid(), "server_version": end(version)[1], "packages": packages}


if __name__ == "__main__":
    result = look()
    print()
    print(json.dumps(result))
