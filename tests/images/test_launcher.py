"""The faster start of the notebook server: what it leaves out, and when it steps aside for pip's own program."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.images.conftest import IMAGES, Box
from tests.images.test_base import AS_THE_HUB_STARTS_IT

FAMILY = "base"
pytestmark = pytest.mark.images

Open = Callable[..., Box]

LAUNCHER = "/usr/local/sbin/jupyterhub-singleuser"
DATABASE_LAYER = "grep -l sqlalchemy /proc/[0-9]*/maps 2>/dev/null || true"
OTHER_VERSION = "import jupyterhub; jupyterhub.version_info = (6, 99, 0, '', '')\n"
NEEDS_THE_TABLES = """
cp -r /opt/jupyter/lib/python3*/site-packages/jupyterhub /tmp/jupyterhub
printf 'from jupyterhub.orm import User\nclass Needed(User): pass\n' >> /tmp/jupyterhub/singleuser/mixins.py
"""
LOOK = """
import gc, runpy, sys
launcher = runpy.run_path("/usr/local/sbin/jupyterhub-singleuser")
main = launcher["fast_main"]()
print([n for n in ("lark", "arrow", "sqlalchemy", "alembic", "nbconvert") if n in sys.modules], gc.isenabled())
import sqlalchemy, ssl
print(sqlalchemy.__version__[0].isdigit(), "set_default_verify_paths" in vars(ssl.SSLContext))
"""


def start(box: Box, **environment: str) -> str:
    """Start the server as the Hub does, until it answers; what it wrote."""
    hub = box.put("hub.py", Path(__file__).with_name("hub_in_miniature.py").read_bytes())
    box.container.exec_run(["python", hub], detach=True)
    argv = ["sh", "-c", "exec jupyterhub-singleuser >/tmp/said 2>&1"]
    box.start(argv, "/user/u/api", **AS_THE_HUB_STARTS_IT, **environment)
    return box.run("cat", "/tmp/said").output


def build(engine: Any, image: Any, fast_start: str, tidy: contextlib.ExitStack) -> str:
    """The end of base's Dockerfile, from `ARG FAST_START` on, built again on an image; its id."""
    tail = (IMAGES / "base" / "Dockerfile").read_text().partition("ARG FAST_START")
    text = f"FROM {image.id}\nUSER root\n{''.join(tail[1:])}"
    made, _ = engine.images.build(
        fileobj=io.BytesIO(text.encode()), buildargs={"FAST_START": fast_start}, rm=True, forcerm=True
    )
    tidy.callback(engine.images.remove, made.id, force=True)
    return str(made.id)


def test_the_server_imports_nothing_that_it_does_not_use(open_box: Open) -> None:
    """The expensive ones, by name; collection is on again; who needs SQLAlchemy finds the real one."""
    assert open_box().run("/opt/jupyter/bin/python", "-c", LOOK).output.splitlines() == ["[] True", "True False"]


def test_another_version_of_jupyterhub_starts_plainly_and_says_so(open_box: Open) -> None:
    """A version that was not tried may need what is left out: the server that answers is pip's own."""
    box = open_box()
    box.put("sitecustomize.py", OTHER_VERSION.encode())
    said = start(box, PYTHONPATH="/tmp")
    assert "jupyterhub-singleuser: plain start, because ImportError('the fast one is tested with jupyterhub 6.1" in said
    assert "and this is 6.99" in said
    assert box.run("sh", "-c", DATABASE_LAYER).output


def test_a_jupyterhub_that_needs_what_is_left_out_starts_plainly_and_says_so(open_box: Open) -> None:
    """Within the versions that are known, too: it fails while it is imported, before anything is listened to."""
    box = open_box()
    box.run("sh", "-c", NEEDS_THE_TABLES)
    said = start(box, PYTHONPATH="/tmp")
    assert "plain start, because ImportError('jupyterhub uses a part of the Hub that is left out here')" in said
    assert box.run("sh", "-c", DATABASE_LAYER).output


def test_the_server_as_the_hub_starts_it_says_nothing_of_a_plain_start(open_box: Open) -> None:
    """The versions in the lock are among those that the launcher knows."""
    box = open_box()
    assert "plain start" not in start(box)
    assert box.run("sh", "-c", DATABASE_LAYER).output == ""


def test_the_plain_start_is_one_build_argument_away(
    engine: Any, image: Any, open_box: Open, tidy: contextlib.ExitStack
) -> None:
    """FAST_START=0: pip's own program, to see whether a fault is the launcher's."""
    built = build(engine, image, "0", tidy)
    container = engine.containers.run(built, ["sleep", "600"], detach=True, network_mode="none", init=True)
    tidy.callback(container.remove, force=True)
    box = Box(container)
    assert box.run("readlink", "-f", LAUNCHER).output.strip() == "/opt/jupyter/bin/jupyterhub-singleuser"
    assert box.run("id", "-un").output.strip() == "jovyan"
    start(box)
    assert box.run("sh", "-c", DATABASE_LAYER).output


@pytest.mark.parametrize("value", ["", "no"])
def test_another_value_of_the_build_argument_is_refused(
    engine: Any, image: Any, value: str, tidy: contextlib.ExitStack
) -> None:
    """Not every word for no is 0: the build ends instead of guessing."""
    with pytest.raises(docker.errors.BuildError):
        build(engine, image, value, tidy)


@pytest.mark.parametrize(
    ("trusts", "lines"),
    [
        pytest.param("school", ["0", "trusted", "1"], id="a certificate of the bundle"),
        pytest.param("debian", ["0", "refused", "many"], id="a certificate of nobody"),
    ],
)
def test_the_certificates_are_read_before_the_first_connection(open_box: Open, trusts: str, lines: list[str]) -> None:
    """A start reads no bundle; a Hub behind https is still checked against it."""
    box = open_box()
    script = box.put("late.py", Path(__file__).with_name("late_certificates.py").read_bytes())
    box.run("mkdir", "/tmp/made")
    before, answer, after = box.run("/opt/jupyter/bin/python", script, "/tmp/made", trusts).output.split()
    assert [before, answer, "many" if int(after) > 50 else after] == lines
