"""Home folders on the host: made once, private, owned by the user of the notebook images."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from gpuspawner.errors import EngineError
from gpuspawner.homes import NOTEBOOK_GID, NOTEBOOK_UID, ensure_home

ME = (os.getuid(), os.getgid())
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder to somebody else")
NOT_ALLOWED = "Operation not permitted"


def refuse(path: object, uid: int, gid: int) -> None:
    """`chown` for somebody who is not root."""
    raise PermissionError(1, NOT_ALLOWED)


def test_a_home_is_made_with_its_parents_and_is_private(tmp_path: Path) -> None:
    """Nobody else on the host reads a student's files."""
    home = tmp_path / "homes" / "ann"
    ensure_home(str(home), *ME)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@AS_ROOT
def test_a_home_belongs_to_the_user_of_the_images(tmp_path: Path) -> None:
    """Made by Docker it would be root's, and the student could not write to it."""
    home = tmp_path / "ann"
    ensure_home(str(home))
    assert (home.stat().st_uid, home.stat().st_gid) == (NOTEBOOK_UID, NOTEBOOK_GID)


def test_a_home_that_exists_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, mode and owner; the Hub needs no right over it."""
    monkeypatch.setattr(os, "chown", refuse)
    home = tmp_path / "ann"
    home.mkdir(mode=0o750)
    (home / "thesis.txt").write_text("draft")
    ensure_home(str(home))
    assert stat.S_IMODE(home.stat().st_mode) == 0o750
    assert (home / "thesis.txt").read_text() == "draft"


def test_a_home_that_cannot_be_given_away_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next start would take it for a good one, and the student could write nothing."""
    with monkeypatch.context() as without_root:
        without_root.setattr(os, "chown", refuse)
        for _ in range(2):
            with pytest.raises(EngineError, match="could not be made") as caught:
                ensure_home(str(tmp_path / "ann"))
    assert NOT_ALLOWED in caught.value.detail
    assert "must run as root" in caught.value.detail
    assert caught.value.text.ko
    assert not (tmp_path / "ann").exists()


@pytest.mark.parametrize("below", ["", "ann"])
def test_a_file_in_the_way_is_a_sentence(tmp_path: Path, below: str) -> None:
    """At the place of the home, or of its parent."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError) as caught:
        ensure_home(str(tmp_path / "file" / below), *ME)
    assert str(tmp_path / "file") in caught.value.detail
    assert (tmp_path / "file").is_file()


def test_two_servers_of_a_user_may_start_at_once(tmp_path: Path) -> None:
    """Named servers share the home: whoever comes second finds it made."""
    together = Barrier(8)

    def start(number: int) -> None:
        together.wait(10)
        ensure_home(str(tmp_path / f"user-{number // 8}"), *ME)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(160)))
    assert len(list(tmp_path.iterdir())) == 20
