"""Reads a configuration before the Hub runs, so that a mistake meets the admin and not the first student.

`check_config` looks at the settings alone, without I/O, and stops the Hub; `report_missing_images` asks the engine, and
only says something. `watch_service` is the entry of the service that ends servers whose time is over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import timezone
from pathlib import Path
from typing import Any

from traitlets.log import get_logger

from gpuspawner.container import check_create_kwargs, check_host_config
from gpuspawner.dockerd import Engine
from gpuspawner.dockerd.translate import build_command
from gpuspawner.errors import ConfigError, Refused
from gpuspawner.profiles import Catalogue
from gpuspawner.terms import Rules

SERVICE = "gpu"
# Where the engine is: docker-py's variables. The Hub hands none of its environment on by itself.
_DOCKER = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
_WATCH = ("GPUSPAWNER_WATCH_EVERY", "GPUSPAWNER_WARN_BEFORE", "GPUSPAWNER_WARN_AT_LEAST")


def check_config(config: Any) -> None:
    """Stop the Hub here, with a sentence, if the configuration of `GPUSpawner` is wrong. Ends `jupyterhub_config.py`.

    JupyterHub makes its first spawner when somebody logs in, and looks at no setting of it before.

    Raises:
        SystemExit: with every mistake, its path, what is accepted and what was given.
    """
    ours, inherited = config.GPUSpawner, config.DockerSpawner
    try:
        _catalogue(config)
        for trait, check in (("extra_host_config", check_host_config), ("extra_create_kwargs", check_create_kwargs)):
            # What is a callable is asked, and checked, at each start.
            if isinstance(theirs := ours.get(trait, inherited.get(trait, {})), Mapping):
                check(theirs)
        settings = (ours.get("limits", {}), ours.get("gpu_hours", {}), ours.get("reservations", []))
        rules = Rules.parse(*settings, timezone.utc, "c.GPUSpawner.")
        if rules.limits.longest_window_seconds and not (ours.get("state_path") or os.environ.get("GPUSPAWNER_STATE")):
            raise ConfigError(
                "c.GPUSpawner.gpu_hours needs a folder for the journal that hours are counted from: "
                "set c.GPUSpawner.state_path"
            )
        if not ours.get("remove", inherited.get("remove", True)):
            raise ConfigError("c.GPUSpawner.remove must be True: a kept container would resume with its old GPUs")
    except ConfigError as error:
        raise SystemExit(f"The Hub does not start, because its configuration is wrong:\n{error}") from None


def report_missing_images(config: Any, engine: Engine) -> None:
    """Say in the Hub's log which images of the shelf were never built, and which profiles need them.

    The Hub starts all the same: the other profiles work, and these do as soon as their image is built, without a
    restart. An image that is not of the shelf is fetched when it is first wanted. Blocks for a few milliseconds.

    Raises:
        ConfigError: the profiles cannot be read; `check_config` comes first and says so.
    """
    needed: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for profile in _catalogue(config).profiles:
        if profile.shelf_image:
            needed.setdefault(profile.image_reference, []).append(profile.display_name.into("en"))
            names[profile.image_reference] = profile.shelf_image
    log = get_logger()
    try:
        missing = engine.missing_images(needed)
    except Refused as error:
        log.warning("Whether every image is built cannot be known now: %s", error.detail or error)
        return
    for reference in (each for each in needed if each in missing):
        profiles = " and ".join(f"{name!r}" for name in needed[reference])
        log.warning(
            "The image %r was never built, so nobody can start %s. Build it with: %s",
            names[reference],
            profiles,
            build_command(names[reference]),
        )


def watch_service(
    state: Path, prefix: str = "jupyter", environ: Mapping[str, str] = os.environ
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The service that warns and stops servers whose time is over, and its role: for `c.JupyterHub.services` and
    `c.JupyterHub.load_roles`.

    Call it in the Hub's process: the service ends when that does. `state` is the folder of the Hub's state, `prefix`
    the one of its containers' names (`c.DockerSpawner.prefix`). Without these two entries no server is ever stopped
    for its time, and all else works.
    """
    told = {name: environ[name] for name in (*_DOCKER, *_WATCH) if name in environ}
    service = {
        "name": SERVICE,
        "display": False,
        "command": [sys.executable, "-m", "gpuspawner.service"],
        "environment": {
            **told,
            "GPUSPAWNER_STATE": str(state.resolve()),
            "GPUSPAWNER_PREFIX": prefix,
            "GPUSPAWNER_HUB_PROCESS": str(os.getpid()),
        },
    }
    role = {
        "name": "gpu-watch",
        "description": "Stops servers whose time is over, after a look whether they are still the same",
        "services": [SERVICE],
        # delete:servers is for the stop. read:servers is for the look before it: the owner may have started anew.
        "scopes": ["delete:servers", "read:servers"],
    }
    return service, role


def _catalogue(config: Any) -> Catalogue:
    return Catalogue.parse(config.GPUSpawner.get("profile_list", []), "c.GPUSpawner.profile_list")
