"""A stand-in Docker Engine: the Engine API over a unix socket, under the real docker-py and DockerSpawner.

It replaces the engine and nothing else: requests travel over HTTP, started notebook containers really answer
HTTP on a loopback address of their own, and other commands really run as small processes. What it must not do
is be friendlier than Docker; ``tests/contract`` runs the same cases against it and against a real engine.
"""

from __future__ import annotations

from .answers import ApiError
from .faults import (
    CreateConflict,
    DiesOnBoot,
    DiskFull,
    EngineDown,
    EngineSlow,
    Fault,
    GpuNodeMissing,
    HangsOnStop,
    HangsUp,
    HookFails,
    Http500,
    ImageHasNoHub,
    NeverAnswers,
    NoDeviceDriver,
    NoSuchImage,
    RemovalInProgress,
    SlowBoot,
    StartFails,
)
from .image_faults import BuildFails, BuildHangs, RegistryDown, RegistrySilent
from .server import StandinEngine
from .state import Container, ExecAnswer, Image

__all__ = [
    "ApiError",
    "BuildFails",
    "BuildHangs",
    "Container",
    "CreateConflict",
    "DiesOnBoot",
    "DiskFull",
    "EngineDown",
    "EngineSlow",
    "ExecAnswer",
    "Fault",
    "GpuNodeMissing",
    "HangsOnStop",
    "HangsUp",
    "HookFails",
    "Http500",
    "Image",
    "ImageHasNoHub",
    "NeverAnswers",
    "NoDeviceDriver",
    "NoSuchImage",
    "RegistryDown",
    "RegistrySilent",
    "RemovalInProgress",
    "SlowBoot",
    "StandinEngine",
    "StartFails",
]
