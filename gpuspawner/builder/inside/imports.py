"""Put in a starting server's way as `sitecustomize`: tells on standard error how long each import takes.

In the words of `python -X importtime`, which leaves out what comes through `importlib.import_module`, as all server
extensions do. Standard library only.
"""

from __future__ import annotations

import _thread
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(find_and_load: Callable[..., Any], write: Callable[[str], object]) -> Callable[..., Any]:
    """An import function that also writes a line about each import when it has ended."""
    # Thread -> the seconds that imports within the present ones took.
    within: dict[int, list[float]] = {}

    def load(name: str, *rest: Any) -> Any:
        stack = within.setdefault(_thread.get_ident(), [])
        stack.append(0.0)
        began = time.perf_counter()
        try:
            return find_and_load(name, *rest)
        finally:
            whole = time.perf_counter() - began
            own = whole - stack.pop()
            if stack:
                stack[-1] += whole
            write(f"import time: {own * 1e6:9.0f} | {whole * 1e6:10.0f} | {'  ' * len(stack)}{name}\n")

    return load


if __name__ == "sitecustomize":
    machinery: Any = sys.modules["_frozen_importlib"]
    machinery._find_and_load = timed(machinery._find_and_load, sys.stderr.write)
    # The image's own, which this one hides.
    here = str(Path(__file__).parent)
    sys.path[:] = [folder for folder in sys.path if folder != here]
    mine = sys.modules.pop(__name__)
    try:
        importlib.import_module(__name__)
    except ImportError:
        sys.modules[__name__] = mine
