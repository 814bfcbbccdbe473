"""Adapter: builds images through the docker command line, and finds what the lowest of them stands on.

docker-py can only drive Docker's classic builder, which is why this shells out. Nothing here decides what is built, or
when: that is `recipes` and `build_images`.
"""

from gpuspawner.builder.docker_cli import (
    Builder,
    BuildError,
    BuiltImage,
    DockerProgram,
    Job,
    Kind,
    Say,
    find_program,
    step_of,
)
from gpuspawner.builder.ground import Archive, Ground, archive_from, certificates_in, extra_certificates, find_ground
from gpuspawner.builder.settings import network_arguments

__all__ = [
    "Archive",
    "BuildError",
    "Builder",
    "BuiltImage",
    "DockerProgram",
    "Ground",
    "Job",
    "Kind",
    "Say",
    "archive_from",
    "certificates_in",
    "extra_certificates",
    "find_ground",
    "find_program",
    "network_arguments",
    "step_of",
]
