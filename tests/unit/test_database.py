"""The Hub's SQLite database, as JupyterHub opens it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from jupyterhub import orm

from gpuspawner.database import sqlite_opener

# synchronous=1 is NORMAL; JupyterHub turns the foreign keys on.
PRAGMAS = {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1}

CRASHES = """
import os, signal, sys
from pathlib import Path
from jupyterhub import orm
from gpuspawner.database import sqlite_opener
path = sys.argv[1]
session = orm.new_session_factory(f"sqlite:///{path}", creator=sqlite_opener(Path(path)))()
session.add(orm.User(name="ann"))
session.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_jupyterhub_opens_it_so_that_a_commit_does_not_wait(tmp_path: Path) -> None:
    """Through JupyterHub's own way to a session; a database that there is already is taken over with what is in it."""
    path = tmp_path / "jupyterhub.sqlite"
    before = orm.new_session_factory(f"sqlite:///{path}")()
    before.add(orm.User(name="ann"))
    before.commit()
    before.close()
    session = orm.new_session_factory(f"sqlite:///{path}", creator=sqlite_opener(path))()
    pragmas = {name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS}
    assert pragmas == PRAGMAS
    assert orm.User.find(session, "ann") is not None
    session.close()


def test_a_killed_hub_loses_nothing(tmp_path: Path) -> None:
    """What was committed is there for the next Hub, and for a program that knows nothing of this."""
    path = tmp_path / "jupyterhub.sqlite"
    killed = subprocess.run([sys.executable, "-c", CRASHES, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM users").fetchall() == [("ann",)]
    connection.close()
