#!/usr/bin/env python3
"""Builds the images in this folder that have changed: `images/build_images.py --help`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent / ".venv" / "bin" / "python"

try:
    from gpuspawner.build_images import main
except ImportError as error:
    # Started with the system's Python: the package lives in the environment that scripts/run makes.
    if PYTHON.is_file() and Path(sys.prefix) != PYTHON.parent.parent:
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    sys.exit(f"build_images.py: {error}. Run scripts/run first (it makes .venv), or 'pip install {HERE.parent}'.")

if __name__ == "__main__":
    main(HERE)
