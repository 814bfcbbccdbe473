"""Rules: who holds what on this machine now, as the one read model behind the command line, the JSON and the pages.

Pure: no await, no clock, no environment, no I/O; the moment is an argument. It joins what the labels say, what the
driver lists and what the engine has of images, and it decides who may see whose name. What is not known is called
unknown: neither free nor up to date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, Protocol

from gpuspawner import leases
from gpuspawner.errors import LabelError
from gpuspawner.gpus import Gpu, Inventory
from gpuspawner.leases import CardShare, Lease
from gpuspawner.profiles import SHELF
from gpuspawner.texts import Language, Text

CardState = Literal["free", "whole", "shared", "drained", "fault", "gone", "unknown"]
Environment = Literal["current", "older", "unknown"]

_READY = Text("A newer environment is ready.", "새 실행 환경이 준비되었습니다.")
_HOW = Text(
    "Restart to get it: save your work, stop the server, start it again. "
    "The files in your home folder stay; running kernels end.",
    "작업을 저장하고 서버를 중지한 뒤 다시 시작하면 적용됩니다. "
    "홈 폴더의 파일은 그대로 남고, 실행 중인 커널은 종료됩니다.",
)
_MY_SERVER = Text("My Server", "기본 서버(My Server)")


class Container(Protocol):
    """A container that holds a lease, as `dockerd` lists it. `lease` is None where its labels cannot be read."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def image_id(self) -> str: ...
    @property
    def cards(self) -> tuple[CardShare, ...]: ...
    @property
    def lease(self) -> Lease | None: ...


@dataclass(frozen=True)
class Image:
    """An image of the engine: its id, every reference that means it now (tags and digests), and when it was made."""

    id: str
    references: tuple[str, ...]
    created: datetime


@dataclass(frozen=True)
class Running:
    """What a container says of itself: its profile, and Docker's id of the image that it was made from."""

    profile: str
    image_id: str

    @classmethod
    def of(cls, inspected: Mapping[str, Any] | None) -> Running | None:
        """From what `docker inspect` shows; None where there is no container, or no lease that can be read."""
        if inspected is None:
            return None
        try:
            lease = leases.decode(inspected["Config"].get("Labels") or {})
        except LabelError:
            return None
        return cls(lease.profile, inspected.get("Image", "")) if lease else None


def environment(runs: str, now: str | None) -> Environment:
    """How the image that a server runs stands to the one that its reference means `now`. Both are Docker's ids."""
    if not runs or not now:
        return "unknown"
    return "current" if runs == now else "older"


@dataclass(frozen=True)
class HomeNotice:
    """The sentence on the Hub's home page for somebody with servers of an older environment: ready words."""

    language: Language
    lead: str
    servers: str
    how: str


def home_notice(servers: Sequence[str], language: Language) -> HomeNotice | None:
    """The notice about the servers of these names ("" is the default one); None where there are none."""
    if not servers:
        return None
    names = ", ".join(f"“{name}”" if name else _MY_SERVER.into(language) for name in servers)
    still = Text(
        f"{names} still {'runs' if len(servers) == 1 else 'run'} the older one.",
        f"이전 환경으로 실행 중인 서버: {names}.",
    )
    return HomeNotice(language, _READY.into(language), still.into(language), _HOW.into(language))


# --- the whole machine -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Viewer:
    """Who looks. `sees_all` is for admins; anybody else sees their own name and servers only. None: nobody's."""

    user: str | None = None
    sees_all: bool = False

    def may_see(self, user: str | None) -> bool:
        """Whether the name of this user, and what is theirs, is for the viewer's eyes."""
        return self.sees_all or (user is not None and user == self.user)


ADMIN = Viewer(sees_all=True)
NO_EXTENSIONS: Mapping[str, datetime] = MappingProxyType({})


@dataclass(frozen=True)
class Holder:
    """Who holds a card, or `memory_bytes` of it. `user` is None where the viewer may not know, or nobody can.

    `unreadable` names a container whose labels cannot be read; only admins are told.
    """

    user: str | None
    server: str = ""
    memory_bytes: int | None = None
    unreadable: str = ""


@dataclass(frozen=True)
class CardStatus:
    """One card. `gpu` is None for a card that is held and not listed; it is "gone" then, or "unknown" in trouble."""

    uuid: str
    gpu: Gpu | None
    state: CardState
    holders: tuple[Holder, ...] = ()

    @property
    def shared_bytes(self) -> int:
        """How much of it is promised in shares."""
        return sum(holder.memory_bytes or 0 for holder in self.holders)


@dataclass(frozen=True)
class ServerStatus:
    """One server; `state` is Docker's word. Without a readable lease there is only the container's name and state.

    `ends` is when its time is over, in UTC and extensions included; None where it has no time limit.
    """

    container: str
    state: str
    cards: tuple[CardShare, ...]
    environment: Environment
    lease: Lease | None = None
    ends: datetime | None = None


@dataclass(frozen=True)
class ImageStatus:
    """What a reference means now, None where the engine does not have it; how many servers run it, or an older one."""

    reference: str
    image: Image | None
    current: int = 0
    older: int = 0


@dataclass(frozen=True)
class Status:
    """Everything at one moment. `trouble` says why the cards cannot be seen; `detail` of it is for admins."""

    at: datetime
    cards: tuple[CardStatus, ...]
    servers: tuple[ServerStatus, ...]
    images: tuple[ImageStatus, ...]
    simulated: bool = False
    trouble: Text | None = None
    detail: str = ""

    @property
    def wrong(self) -> bool:
        """Whether an admin has to look after something: a sick or vanished card, a lease that cannot be read.

        Cards that cannot be seen are nothing wrong as long as nobody holds one: not every machine has a GPU. A drained
        card is looked after already.
        """
        return any(card.state in ("fault", "gone", "unknown") for card in self.cards) or any(
            server.lease is None for server in self.servers
        )


def report(
    containers: Iterable[Container],
    inventory: Inventory,
    images: Sequence[Image],
    *,
    at: datetime,
    viewer: Viewer,
    extensions: Mapping[str, datetime] = NO_EXTENSIONS,
) -> Status:
    """What `viewer` may know of the machine at the moment `at`. `extensions`: lease id → its new end."""
    found = sorted(containers, key=lambda each: (each.lease is None, _order(each)))
    meanings = {reference: image for image in images for reference in image.references}
    servers = [
        ServerStatus(
            each.name,
            each.state,
            each.cards,
            _environment(each, meanings),
            each.lease,
            each.lease.ends_with(extensions) if each.lease else None,
        )
        for each in found
    ]
    return Status(
        at=at,
        cards=_cards(found, inventory, viewer),
        servers=tuple(each for each in servers if viewer.may_see(each.lease.owner.user if each.lease else None)),
        images=_images(servers, meanings),
        simulated=inventory.simulated,
        trouble=inventory.trouble,
        detail=inventory.detail if viewer.sees_all else "",
    )


def _order(container: Container) -> tuple[str, ...]:
    owner = container.lease.owner if container.lease else None
    return (owner.hub, owner.user, owner.server) if owner else (container.name,)


def _environment(container: Container, meanings: Mapping[str, Image]) -> Environment:
    if container.lease is None:
        return "unknown"
    now = meaning(container.lease.image, meanings)
    return environment(container.image_id, now.id if now else None)


def meaning(reference: str, meanings: Mapping[str, Image]) -> Image | None:
    """The image that a reference means, by Docker's rules of leaving out `:latest` and the name of Docker's registry.

    `meanings` holds the references as the engine lists them.
    """
    short = reference.removeprefix("docker.io/").removeprefix("library/")
    tagged = "@" in short or ":" in short.rpartition("/")[2]
    return meanings.get(reference) or meanings.get(short if tagged else f"{short}:latest")


def _cards(containers: Sequence[Container], inventory: Inventory, viewer: Viewer) -> tuple[CardStatus, ...]:
    holders: dict[str, list[Holder]] = {gpu.uuid: [] for gpu in inventory.gpus}
    for container in containers:
        for card in container.cards:
            holders.setdefault(card.uuid, []).append(_holder(container, card, viewer))
    return tuple(_card(uuid, inventory, tuple(held)) for uuid, held in holders.items())


def _holder(container: Container, card: CardShare, viewer: Viewer) -> Holder:
    lease = container.lease
    if lease is None:
        return Holder(None, memory_bytes=card.memory_bytes, unreadable=container.name if viewer.sees_all else "")
    if not viewer.may_see(lease.owner.user):
        return Holder(None, memory_bytes=card.memory_bytes)
    return Holder(lease.owner.user, lease.owner.server, card.memory_bytes)


def _card(uuid: str, inventory: Inventory, holders: tuple[Holder, ...]) -> CardStatus:
    gpu = inventory.get(uuid)
    state: CardState = "free"
    if gpu is None:
        state = "unknown" if inventory.trouble else "gone"
    elif gpu.fault:
        state = "drained" if gpu.drained else "fault"
    elif holders:
        state = "whole" if any(holder.memory_bytes is None for holder in holders) else "shared"
    return CardStatus(uuid, gpu, state, holders)


def _images(servers: Iterable[ServerStatus], meanings: Mapping[str, Image]) -> tuple[ImageStatus, ...]:
    """Those that servers were started from, and `latest` of the whole shelf; the shelf first."""
    counts = Counter((server.lease.image, server.environment) for server in servers if server.lease)
    shelf = {each for each in meanings if each.startswith(f"{SHELF}/") and each.endswith(":latest")}
    used = {reference for reference, _ in counts}
    return tuple(
        ImageStatus(
            reference, meaning(reference, meanings), counts[(reference, "current")], counts[(reference, "older")]
        )
        for reference in sorted(shelf | used, key=lambda each: (each not in shelf, each))
    )


def as_json(status: Status) -> dict[str, Any]:
    """Plain values with units in their names; moments are ISO 8601 in UTC, what is not known is null."""
    return {
        "at": status.at.isoformat(timespec="seconds"),
        "simulated": status.simulated,
        "trouble": status.trouble.en if status.trouble else None,
        "detail": status.detail or None,
        "cards": [_card_json(card) for card in status.cards],
        "servers": [_server_json(server, status.at) for server in status.servers],
        "images": [
            {
                "reference": each.reference,
                "id": each.image.id if each.image else None,
                "created": each.image.created.isoformat(timespec="seconds") if each.image else None,
                "servers_current": each.current,
                "servers_older": each.older,
            }
            for each in status.images
        ],
    }


def _card_json(card: CardStatus) -> dict[str, Any]:
    gpu = card.gpu
    return {
        "uuid": card.uuid,
        "index": gpu.index if gpu else None,
        "name": gpu.name if gpu else None,
        "memory_bytes": gpu.memory_bytes if gpu else None,
        "state": card.state,
        "fault": gpu.fault.en if gpu and gpu.fault else None,
        "shared_bytes": card.shared_bytes,
        "holders": [
            {"user": holder.user, "server": holder.server, "memory_bytes": holder.memory_bytes}
            for holder in card.holders
        ],
    }


def _server_json(server: ServerStatus, at: datetime) -> dict[str, Any]:
    lease, ends = server.lease, server.ends
    return {
        "container": server.container,
        "state": server.state,
        "hub": lease.owner.hub if lease else None,
        "user": lease.owner.user if lease else None,
        "server": lease.owner.server if lease else None,
        "profile": lease.profile if lease else None,
        "started": lease.started.isoformat(timespec="seconds") if lease else None,
        "ends": ends.isoformat(timespec="seconds") if ends else None,
        "left_seconds": max(0, int((ends - at).total_seconds())) if ends else None,
        "cards": [{"uuid": card.uuid, "memory_bytes": card.memory_bytes} for card in server.cards],
        "image": lease.image if lease else None,
        "environment": server.environment,
    }
