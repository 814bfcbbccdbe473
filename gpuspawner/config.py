"""Reads a configuration before the Hub runs, so that a mistake meets the admin and not the first student. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuspawner.container import check_create_kwargs, check_host_config
from gpuspawner.errors import ConfigError
from gpuspawner.profiles import Catalogue


def check_config(config: Any) -> None:
    """Stop the Hub here, with a sentence, if the configuration of `GPUSpawner` is wrong. Ends `jupyterhub_config.py`.

    JupyterHub makes its first spawner when somebody logs in, and looks at no setting of it before.

    Raises:
        SystemExit: with every mistake, its path, what is accepted and what was given.
    """
    ours, inherited = config.GPUSpawner, config.DockerSpawner
    try:
        Catalogue.parse(ours.get("profile_list", []), "c.GPUSpawner.profile_list")
        for trait, check in (("extra_host_config", check_host_config), ("extra_create_kwargs", check_create_kwargs)):
            # What is a callable is asked, and checked, at each start.
            if isinstance(theirs := ours.get(trait, inherited.get(trait, {})), Mapping):
                check(theirs)
        if not ours.get("remove", inherited.get("remove", True)):
            raise ConfigError("c.GPUSpawner.remove must be True: a kept container would resume with its old GPUs")
    except ConfigError as error:
        raise SystemExit(f"The Hub does not start, because its configuration is wrong:\n{error}") from None
