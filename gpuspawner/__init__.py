"""The JupyterHub spawner for a shared GPU server. `c.JupyterHub.spawner_class = "gpu"`."""

from __future__ import annotations

from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.spawner import GPUSpawner, check_config

__all__ = ["FakeGPUs", "GPUSpawner", "check_config"]
