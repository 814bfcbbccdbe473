"""The JupyterHub spawner for a shared GPU server. `c.JupyterHub.spawner_class = "gpu"`.

The public names load on first use: programs that only build images need not wait for JupyterHub's imports.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuspawner.config import check_config
    from gpuspawner.fakegpus import FakeGPUs
    from gpuspawner.spawner import GPUSpawner

__all__ = ["FakeGPUs", "GPUSpawner", "check_config"]

_HOMES = {"FakeGPUs": "fakegpus", "GPUSpawner": "spawner", "check_config": "config"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gpuspawner.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gpuspawner' has no attribute {name!r}")
