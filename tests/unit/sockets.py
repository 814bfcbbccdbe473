"""docker-py leaves the socket of a broken connection to the garbage collector, which complains in a later test."""

from __future__ import annotations

import pytest

# For `pytestmark`: such sockets are collected before the module ends (`collected` in conftest.py), within its filter.
BROKEN_SOCKETS = [
    pytest.mark.filterwarnings("ignore:unclosed <socket.socket fd=.*family=1:ResourceWarning"),
    pytest.mark.usefixtures("collected"),
]
