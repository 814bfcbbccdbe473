"""What is in an image folder, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ContextFile:
    """One file of a folder: its bytes (or where a symbolic link points), and whether it may be executed."""

    content: bytes
    executable: bool = False
    is_link: bool = False


Folder = Mapping[str, ContextFile]
