"""The JupyterHub spawner for a shared GPU server. `c.JupyterHub.spawner_class = "gpu"`."""

from __future__ import annotations

from gpuspawner.config import check_config
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.spawner import GPUSpawner

__all__ = ["FakeGPUs", "GPUSpawner", "check_config"]
