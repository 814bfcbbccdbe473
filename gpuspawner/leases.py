"""Nouns: who holds which cards, and the labels that say so on the container. No I/O.

The labels are the lease: nothing else records it (law 1 of the design). `encode` and `decode` are the only place that
knows their names. Labels carry raw user and server names; names of containers and volumes carry slugs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from gpuspawner.errors import LabelError
from gpuspawner.gpus import GpuUuid

PREFIX = "gpuspawner."
LEASE = PREFIX + "lease"
_FORMAT = "1"


@dataclass(frozen=True)
class Owner:
    """A user's server: `server` is "" for the default one. `hub` tells apart Hubs that share an engine."""

    user: str
    server: str = ""
    hub: str = "jupyter"


@dataclass(frozen=True)
class CardShare:
    """One leased card: the whole of it, or a counted `memory_bytes` of its VRAM."""

    uuid: GpuUuid
    memory_bytes: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nobody else may hold a part of the card."""
        return self.memory_bytes is None


@dataclass(frozen=True)
class Limits:
    """What the container may use, as written on its labels. None: no limit."""

    mem_limit_bytes: int | None = None
    cpu_limit: float | None = None
    time_limit_seconds: int | None = None
    idle_timeout_seconds: int | None = None


@dataclass(frozen=True)
class Lease:
    """Cards promised to one server. `id` is new for each start, so that two starts of one server are never mixed up.

    `started` is in UTC. `image_id` is Docker's id of the image that the profile's reference meant at that moment.
    """

    id: str
    owner: Owner
    profile: str
    cards: tuple[CardShare, ...]
    started: datetime
    limits: Limits = Limits()
    image: str = ""
    image_id: str = ""

    @property
    def ends(self) -> datetime | None:
        """When its time is over, in UTC; None where it has no time limit."""
        limit = self.limits.time_limit_seconds
        return None if limit is None else self.started + timedelta(seconds=limit)

    def ends_with(self, extensions: Mapping[str, datetime]) -> datetime | None:
        """When its time is over, with what was added to it: lease id → new end. Nothing there makes it shorter."""
        ends = self.ends
        return None if ends is None else max(ends, extensions.get(self.id, ends))

    @property
    def vram_bytes(self) -> int | None:
        """The counted budget of a share, or None for whole cards and for no card."""
        return self.cards[0].memory_bytes if self.cards else None


@dataclass(frozen=True)
class Held:
    """Cards that are taken: what counts of a lease, and of a promise that is no lease yet.

    `owner` is None where the labels cannot be read. `ends` is in UTC, None where nobody can say.
    """

    cards: tuple[CardShare, ...]
    owner: Owner | None = None
    ends: datetime | None = None


Holdings = Mapping[str, Held]
"""Lease id → what it holds: what the labels of all containers say."""


def encode(lease: Lease) -> dict[str, str]:
    """The labels of a container that holds `lease`."""
    limits = lease.limits
    values: dict[str, object] = {
        "lease": _FORMAT,
        "id": lease.id,
        "hub": lease.owner.hub,
        "user": lease.owner.user,
        "server": lease.owner.server,
        "profile": lease.profile,
        "image": lease.image,
        "image-id": lease.image_id,
        "gpus": ",".join(card.uuid for card in lease.cards),
        "vram": lease.vram_bytes,
        "started": lease.started.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "mem-limit": limits.mem_limit_bytes,
        "cpu-limit": limits.cpu_limit,
        "time-limit": limits.time_limit_seconds,
        "idle-timeout": limits.idle_timeout_seconds,
    }
    return {PREFIX + key: "" if value is None else str(value) for key, value in values.items()}


def decode(labels: Mapping[str, str]) -> Lease | None:
    """The lease that these labels say, or None when they speak of no lease.

    Raises:
        LabelError: they speak of one, but cannot be read. `held_cards` still tells which cards to leave alone.
    """
    if LEASE not in labels:
        return None
    if labels[LEASE] != _FORMAT:
        raise LabelError(f"lease label format {labels[LEASE]!r} is not {_FORMAT!r}: written by another version?")
    try:
        vram = _number(labels, "vram")
        return Lease(
            id=labels[PREFIX + "id"],
            owner=Owner(labels[PREFIX + "user"], labels[PREFIX + "server"], labels[PREFIX + "hub"]),
            profile=labels[PREFIX + "profile"],
            cards=tuple(CardShare(uuid, vram) for uuid in _uuids(labels[PREFIX + "gpus"])),
            started=_time(labels[PREFIX + "started"]),
            limits=Limits(
                # JupyterHub's word for "no limit" is 0, which earlier versions wrote down as it was.
                mem_limit_bytes=None if labels.get(PREFIX + "mem-limit") == "0" else _number(labels, "mem-limit"),
                cpu_limit=float(labels.get(PREFIX + "cpu-limit") or 0) or None,
                time_limit_seconds=_number(labels, "time-limit"),
                idle_timeout_seconds=_number(labels, "idle-timeout"),
            ),
            image=labels.get(PREFIX + "image", ""),
            image_id=labels.get(PREFIX + "image-id", ""),
        )
    except (KeyError, ValueError) as error:
        raise LabelError(f"the lease labels cannot be read: {error!r}") from error


def held_cards(labels: Mapping[str, str]) -> tuple[CardShare, ...]:
    """The cards that unreadable labels name, each taken as whole: in doubt nobody else gets them."""
    return tuple(CardShare(uuid) for uuid in _uuids(labels.get(PREFIX + "gpus", "")))


def _uuids(text: str) -> list[GpuUuid]:
    return [GpuUuid(uuid) for uuid in text.split(",") if uuid]


def _number(labels: Mapping[str, str], key: str) -> int | None:
    text = labels.get(PREFIX + key, "")
    if not text:
        return None
    number = int(text)
    if number <= 0:
        raise ValueError(f"{PREFIX}{key} must be above zero, got {text!r}")
    return number


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
