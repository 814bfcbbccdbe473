"""Program: `build_images.py [NAME...]` builds, tries and publishes the images that have changed.

`command` is the command line, `actions` what its words do, `plan` what is to be done and why, `refresh` a run, `upkeep`
roll-back, prune and push, `lock` one run at a time, `show` and `report` what people and programs see.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpuspawner.build_images.plan import Options, Planner, say_if_current
from gpuspawner.builder import glance
from gpuspawner.builder.certificates import extra_certificates
from gpuspawner.errors import GPUSpawnerError

__all__ = ["main"]

# What the command line also takes from the environment, and a call without options must not overlook.
SETTINGS = ("GPUSPAWNER_BASE", "GPUSPAWNER_CA_BUNDLE", "GPUSPAWNER_METRICS")


def main(folder: Path) -> None:
    """Run the program over one folder of images, with the arguments of this process.

    The plain call of every night, which finds nothing to do, is over before the command line would have been imported.
    """
    # Nothing here becomes garbage in the tenth of a second that such a run takes; neither is it worth tidying up.
    gc.disable()
    if _is_current(folder, sys.argv[1:], os.environ):
        sys.stdout.flush()
        os._exit(0)
    gc.enable()
    from gpuspawner.build_images.command import program

    program(folder)()


def _is_current(folder: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a call without options finds nothing to do, and has said so. What is wrong is not said here."""
    if any(argument.startswith("-") for argument in arguments) or any(name in environ for name in SETTINGS):
        return False
    try:
        planner = Planner(folder, Options(tuple(arguments)), extra_certificates(None), glance.look_or_ask)
        return say_if_current(planner.plan())
    except GPUSpawnerError:
        return False
