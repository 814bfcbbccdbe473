"""What a build is given: the files that its fingerprint was made of, and nothing else, as one tar archive.

So nothing that changes while a build runs gets in, and neither times, owners nor the order of a disk make a difference.
"""

from __future__ import annotations

import io
import os
import tarfile
from typing import IO

from gpuspawner.recipes import Folder


def packed(files: Folder) -> IO[bytes]:
    """The files as a tar archive. A .dockerignore has done its work before, and stays out."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, file in sorted(files.items()):
            if path == ".dockerignore":
                continue
            entry = tarfile.TarInfo(path)
            entry.mode = 0o755 if file.executable else 0o644
            if file.is_link:
                entry.type, entry.linkname = tarfile.SYMTYPE, os.fsdecode(file.content)
                tar.addfile(entry)
            else:
                entry.size = len(file.content)
                tar.addfile(entry, io.BytesIO(file.content))
    archive.seek(0)
    return archive
