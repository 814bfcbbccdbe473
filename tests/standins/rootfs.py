"""A minimal image for tests that need a container, not a notebook: busybox and nothing else, some 2 MB.

It is imported from a tar made in memory, so no registry is asked. Needs the package busybox-static.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.standins.netns_engine import PrivateEngine

_LABEL = "gpuspawner.test.rootfs"
_FOLDERS = ("bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var")
_ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\njovyan:x:1000:100::/home:/bin/sh\n",
    "etc/group": "root:x:0:\nusers:x:100:\n",
}


class RootfsError(RuntimeError):
    """There is no static busybox to make the image from; the text says what to install."""


def import_rootfs(engine: PrivateEngine, tag: str, environment: Mapping[str, str] | None = None) -> str:
    """Make the image `tag` with `environment` as its ENV in the engine, unless it is there; returns `tag`.

    Its command is `sleep` for an hour, so that a test can look around with `docker exec`.
    """
    archive = _archive(_static_busybox())
    changes = [f"ENV {name}={value}" for name, value in (environment or {}).items()]
    changes.append('CMD ["sleep", "3600"]')
    mark = hashlib.sha256(archive + "\n".join(changes).encode()).hexdigest()
    inspect = ("image", "inspect", "--format", f'{{{{index .Config.Labels "{_LABEL}"}}}}', tag)
    if engine.docker(*inspect, check=False) != mark:
        options = [word for change in (*changes, f"LABEL {_LABEL}={mark}") for word in ("--change", change)]
        engine.docker("import", *options, "-", tag, stdin=archive)
    return tag


def _static_busybox() -> Path:
    """The machine's busybox, if it runs without shared libraries."""
    found = shutil.which("busybox")
    if found is None:
        raise RootfsError("The test image is made from busybox: install the package busybox-static.")
    path = Path(found).resolve()
    if b"/ld-linux" in path.read_bytes()[:4096]:  # the interpreter's name stands near the start of the file
        raise RootfsError(f"{path} needs shared libraries: install the package busybox-static in its place.")
    return path


def _archive(busybox: Path) -> bytes:
    """A tar with fixed times and owners, so that the same busybox gives the same image."""
    listed = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        files = {"bin/busybox": busybox.read_bytes(), **{name: text.encode() for name, text in _ETC.items()}}
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name.startswith("bin/") else 0o644
            tar.addfile(entry, io.BytesIO(content))
        for applet in listed.stdout.split():
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, "busybox", 0o777
                tar.addfile(entry)
    return buffer.getvalue()
