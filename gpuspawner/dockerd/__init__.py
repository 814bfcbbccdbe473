"""Adapter: the Docker engine. Only this package imports docker-py.

`engine` is asked by the Hub, asynchronously and for many users at once; `translate` turns docker-py's errors into
sentences; `events` tells when it is worth asking. Nothing here decides anything.
"""

from gpuspawner.dockerd.engine import HOLDING_STATES, Engine, EngineFacts, LeasedContainer, collecting, ended
from gpuspawner.dockerd.events import watch_leases
from gpuspawner.dockerd.translate import image_missing, is_name_conflict, translate

__all__ = [
    "HOLDING_STATES",
    "Engine",
    "EngineFacts",
    "LeasedContainer",
    "collecting",
    "ended",
    "image_missing",
    "is_name_conflict",
    "translate",
    "watch_leases",
]
