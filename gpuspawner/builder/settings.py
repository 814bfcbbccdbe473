"""What a build has to be told about this machine's way to the network: mirrors of the package index, and proxies."""

from __future__ import annotations

import configparser
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

PIP_FILES = (Path("/etc/pip.conf"), Path("~/.config/pip/pip.conf"), Path("~/.pip/pip.conf"))
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def network_arguments(
    environ: Mapping[str, str], say: Callable[[str], None], pip_files: Iterable[Path] = PIP_FILES
) -> dict[str, str]:
    """Build arguments for pip's index settings and the proxies that are set on this machine.

    Left out is what a build cannot reach (this machine itself, its files), and what holds a password, which would stay
    in the history of the image: `say` gets a sentence about that.
    """
    found: dict[str, str] = {}
    configured = _pip_settings(pip_files)
    for option in ("index-url", "extra-index-url", "trusted-host"):
        name = f"PIP_{option.upper().replace('-', '_')}"
        words = (environ.get(name) or configured.get(option, "")).split()
        usable = [word for word in words if option == "trusted-host" or _is_usable(name, word, say)]
        if usable:
            found[name] = " ".join(usable)
    for name in _PROXIES:
        value = environ.get(name) or environ.get(name.upper()) or ""
        if value and (name == "no_proxy" or _is_usable(name, value, say)):
            found[name] = found[name.upper()] = value
    return found


def _pip_settings(files: Iterable[Path]) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read([path.expanduser() for path in files], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["global"]) if parser.has_section("global") else {}


def _is_usable(name: str, url: str, say: Callable[[str], None]) -> bool:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or parts.hostname in (None, "localhost", "127.0.0.1", "::1"):
        return False
    if parts.username or parts.password:
        say(f"{name} holds a password, which would stay in the images: it is not passed on.")
        return False
    return True
