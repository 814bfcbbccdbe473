"""`scripts/run`, as a first-time admin uses it, on a machine that is set up already."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.engine.conftest import sweep
from tests.engine.lab import REPOSITORY, eventually
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

PORT = 8200
Run = Callable[..., str]


@pytest.fixture
def run(engine: PrivateEngine, tmp_path: Path) -> Iterator[Run]:
    """Runs the script with a state folder of its own; gives back what it printed, and stops the Hub in the end."""
    if Path(sys.prefix) != REPOSITORY / ".venv":
        pytest.skip("would set up a .venv first: `scripts/test engine` runs it in the one that is there")
    environment = {**os.environ, "DOCKER_HOST": engine.host, "GPUSPAWNER_STATE": str(tmp_path / "state")}
    for name in ("GPUSPAWNER_FAKE_GPUS", "GPUSPAWNER_PORT"):
        environment.pop(name, None)

    def script(*arguments: str) -> str:
        done = subprocess.run(
            [REPOSITORY / "scripts" / "run", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    yield script
    script("--stop")
    sweep(engine)


def test_it_starts_once_says_the_password_once_and_comes_back_unchanged(run: Run, tmp_path: Path) -> None:
    """Ready with an address and a password that logs in; again while running and after a stop: nothing is set up."""
    url = f"http://127.0.0.1:{PORT}"
    first = run("--detach", "--simulate", "--port", str(PORT))
    assert f"ready at {url}" in first
    password = re.search(r"password +(\S+)", first)
    assert password is not None
    assert not (tmp_path / "state" / "admin-password").exists()
    for page in ("login", "signup"):
        assert "Simulated GPUs" in requests.get(f"{url}/hub/{page}", timeout=10).text

    session = requests.Session()
    session.get(f"{url}/hub/login", timeout=10)
    form = {"username": "admin", "password": password[1], "_xsrf": session.cookies["_xsrf"]}
    assert "Server Options" in session.post(f"{url}/hub/login", data=form, timeout=20).text

    again = run("--detach", "--simulate", "--port", str(PORT))
    assert again.startswith("gpuspawner is already running")
    run("--stop")
    eventually(lambda: not (tmp_path / "state" / "jupyterhub.pid").exists(), "the Hub did not stop")
    back = run("--detach", "--simulate", "--port", str(PORT))
    assert f"ready at {url}" in back
    assert not re.search("password|Installing|Building|Making", back)
