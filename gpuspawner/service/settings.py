"""What the service is told by its environment: by the Hub, and by `gpuspawner.config.watch_service`. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpuspawner.errors import ConfigError
from gpuspawner.guard import Policy
from gpuspawner.units import parse_duration

T = TypeVar("T")
D = TypeVar("D")

LOOK_SECONDS = 20
DEFAULTS = Policy()


@dataclass(frozen=True)
class Settings:
    """Where the Hub is and how to speak to it, whose containers to watch, how often, and by which rules.

    `hub_process` is the Hub that started this; None where somebody else did.
    """

    api_url: str
    api_token: str
    state: Path
    hub: str = "jupyter"
    hub_process: int | None = None
    look_seconds: int = LOOK_SECONDS
    policy: Policy = DEFAULTS

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Settings:
        """From these variables.

        Raises:
            ConfigError: one is missing or cannot be read; the message names it.
        """
        return cls(
            api_url=_needed(environ, "JUPYTERHUB_API_URL", "the Hub sets it for its services"),
            api_token=_needed(environ, "JUPYTERHUB_API_TOKEN", "the Hub sets it for its services"),
            state=Path(_needed(environ, "GPUSPAWNER_STATE", "the state folder of the Hub")),
            hub=environ.get("GPUSPAWNER_PREFIX") or "jupyter",
            hub_process=_read(environ, "GPUSPAWNER_HUB_PROCESS", int, None),
            look_seconds=_read(environ, "GPUSPAWNER_WATCH_EVERY", parse_duration, LOOK_SECONDS),
            policy=Policy(
                warn_seconds=_read(environ, "GPUSPAWNER_WARN_BEFORE", _durations, DEFAULTS.warn_seconds),
                grace_seconds=_read(environ, "GPUSPAWNER_WARN_AT_LEAST", parse_duration, DEFAULTS.grace_seconds),
            ),
        )


def _needed(environ: Mapping[str, str], name: str, why: str) -> str:
    if value := environ.get(name):
        return value
    raise ConfigError(f"{name} is not set: {why}")


def _read(environ: Mapping[str, str], name: str, parse: Callable[[str], T], default: D) -> T | D:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{name} {error}") from None


def _durations(text: str) -> tuple[int, ...]:
    return tuple(sorted((parse_duration(part) for part in text.split(",")), reverse=True))
