"""The benchmark of the Hub's pages: it runs, and what it times is a full house. What comes out is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_program_runs_and_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody starts it, each page once, and the Hub at rest for a moment."""
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, BENCHMARKS / "pages.py", "--rounds", "1", "--rest", "0.1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=BENCHMARKS.parent)
    found = json.loads(done.stdout)
    assert set(found["pages"]) == {"no limits", "limits and a reservation"}
    for pages in found["pages"].values():
        assert pages["the form"]["median"] > 0
        assert pages["the home page"]["median"] > 0
    # One for all, and what the house asks by itself now and then.
    assert all(row["calls"] < 4 for row in found["at_once"].values())
    assert found["rest"]["cpu_seconds_a_minute"] >= 0
    assert len(found["targets"]) == 2
