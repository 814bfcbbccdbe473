"""A Debian machine with a mirror of its own, as files; its debootstrap; certificates."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
UBUNTU = 'NAME="Ubuntu"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n'
MIRROR = "http://mirror.example/debian"
NEW_FORM = f"""\
# The mirror of the school
Types: deb deb-src
URIs: {MIRROR}
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
"""


def pem(content: str, *, width: int = 64) -> str:
    """A certificate that says nothing."""
    body = base64.b64encode(content.encode() * 20).decode()
    lines = "\n".join(body[at : at + width] for at in range(0, len(body), width))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def etc_in(folder: Path) -> Path:
    """The /etc of a Debian 12 machine with a mirror of its own."""
    etc = folder / "etc"
    (etc / "apt/sources.list.d").mkdir(parents=True)
    (etc / "apt/sources.list.d/debian.sources").write_text(NEW_FORM)
    (etc / "os-release").write_text(DEBIAN)
    return etc


def debootstrap_in(folder: Path, *, status: int = 0, packages: str = "bash 5") -> None:
    """A debootstrap that makes next to nothing; it leaves its arguments beside itself."""
    program = folder / "debootstrap"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" > {folder}/debootstrap.asked\n'
        "echo I: Retrieving Release\n"
        f"[ {status} = 0 ] || {{ echo E: no mirror; exit {status}; }}\n"
        "while [ $# -gt 2 ]; do shift; done\n"
        "mkdir -p $1/etc/apt $1/etc/dpkg/dpkg.cfg.d $1/usr/share/doc/x $1/usr/share/man $1/var/lib/dpkg\n"
        "echo me > $1/etc/hostname; echo text > $1/usr/share/doc/x/README; echo law > $1/usr/share/doc/x/copyright\n"
        f"echo {packages} > $1/var/lib/dpkg/status\n"
    )
    program.chmod(0o755)


def tools_in(folder: Path, *names: str) -> Path:
    """A folder with these programs of this machine and no others, for a PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = shutil.which(name)
        assert found, f"this test needs the program {name}"
        (folder / name).symlink_to(found)
    return folder
