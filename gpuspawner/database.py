"""The Hub's SQLite database, opened so that nobody waits for the disk.

JupyterHub commits eight or nine times for each start and as often for each stop, in its only thread. With SQLite's
defaults each waits until the disk has it: 4 ms in the mean and up to 60 in which the Hub answers nobody, and most when
the engine is writing too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path


def sqlite_opener(path: Path) -> Callable[[], sqlite3.Connection]:
    """What opens the database, for `c.JupyterHub.db_kwargs = {"creator": …}`.

    Commits go to a write-ahead log, whose file lies beside the database and belongs to it. Nothing is lost when the Hub
    is killed; when the machine loses its power the last commits may be, and never the database (SQLite's documentation,
    "PRAGMA synchronous"). After that no container runs which they could have told of.
    """

    def connect() -> sqlite3.Connection:
        # As SQLAlchemy opens it for JupyterHub.
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return connect
