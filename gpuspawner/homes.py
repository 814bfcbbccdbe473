"""Home folders on the host, for admins who prefer a path to a Docker volume. It touches the file system, nothing else.

Docker makes a missing bind source as root, and the student then cannot write to it; so the folder is made here, with
the owner that the notebook image runs as.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gpuspawner.errors import EngineError
from gpuspawner.texts import Text

# jovyan of the shelf's images, and of docker-stacks: uid 1000 in group users.
NOTEBOOK_UID, NOTEBOOK_GID = 1000, 100


def ensure_home(path: str, uid: int = NOTEBOOK_UID, gid: int = NOTEBOOK_GID) -> None:
    """Make the folder with mode 0700 for `uid`; one that exists is left as it is.

    Raises:
        EngineError: it cannot be made, with the system's reason in `detail`.
    """
    home = Path(path)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _make(home, uid, gid)
        if not home.is_dir():
            raise NotADirectoryError(f"{path} is there and is not a folder")
    except OSError as error:
        raise EngineError(
            Text(
                "Your home folder could not be made on this server. Please tell the admin.",
                "서버에 홈 폴더를 만들 수 없습니다. 관리자에게 알려 주세요.",
            ),
            detail=f"{path}: {error}. The Hub must run as root on the engine's host for home_path_template to work.",
        ) from error


def _make(home: Path, uid: int, gid: int) -> None:
    """Raises FileExistsError where it is already there: another server of the same user may start at this moment."""
    home.mkdir(mode=0o700)
    try:
        os.chown(home, uid, gid)
    except OSError:
        # Left behind, it would pass for a good one at the next start.
        home.rmdir()
        raise
