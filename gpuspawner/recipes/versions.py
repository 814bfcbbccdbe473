"""The versions of an image that an engine has: which is in use, which was good before, which may go, what they cost.

The engine itself remembers all of it, by tags. Of the image NAME, `NAME:latest` is what servers start from; a version
that was checked carries the beginning of its digest; one that was rolled back carries `bad-` before it, so that the
same content is not published again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

LATEST = "latest"
CANDIDATE = "candidate-"
FAILED = "failed"
BAD = "bad-"

_GOOD = re.compile(r"[0-9a-f]{12}(-[0-9a-f]{12})?")


@dataclass(frozen=True)
class Version:
    """One image of a recipe. `tags` are those of the recipe's name, `promoted` is when it was tagged last (seconds)."""

    id: str
    tags: frozenset[str]
    digest: str
    promoted: float
    size_bytes: int = 0

    @property
    def is_latest(self) -> bool:
        """Whether servers start from it."""
        return LATEST in self.tags

    @property
    def is_good(self) -> bool:
        """Whether it has passed its checks, and was not rolled back."""
        return any(_GOOD.fullmatch(tag) for tag in self.tags)

    @property
    def good_tags(self) -> tuple[str, ...]:
        """Its own tags: usually one."""
        return tuple(sorted(tag for tag in self.tags if _GOOD.fullmatch(tag)))


def earlier_tag(digest: str, image_id: str) -> str:
    """The own tag of a version that makes room for another build of the same content."""
    return f"{digest[:12]}-{image_id.removeprefix('sha256:')[:12]}"


def bad_tag(digest: str) -> str:
    """The mark of a content that was rolled back."""
    return BAD + digest[:12]


def previous_good(versions: Iterable[Version]) -> Version | None:
    """What a roll-back goes to: the good version that was published last before the one in use."""
    good = [version for version in versions if version.is_good and not version.is_latest]
    return max(good, key=lambda version: version.promoted, default=None)


def to_prune(versions: Iterable[Version], keep: int, used: Collection[str]) -> dict[Version, tuple[str, ...]]:
    """The tags that may go, by version.

    Kept are the version in use, the `keep` newest good ones (the one in use among them), and whatever `used` names: ids
    of images that containers have, and references that profiles name.
    """
    versions = list(versions)
    good = sorted((version for version in versions if version.is_good), key=lambda v: v.promoted, reverse=True)
    good.sort(key=lambda version: not version.is_latest)
    keepers = {version.id for version in good[: max(keep, 1)]} | {v.id for v in versions if v.is_latest}
    found: dict[Version, tuple[str, ...]] = {}
    for version in versions:
        if version.id in used:
            continue
        gone = sorted(
            tag
            for tag in version.tags
            if tag not in used
            and (version.id not in keepers or tag == FAILED or tag.startswith(CANDIDATE))
            # An empty one is nothing but the mark.
            and (version.size_bytes or not tag.startswith(BAD))
        )
        if gone:
            found[version] = tuple(gone)
    return found


@dataclass(frozen=True)
class Layer:
    """One entry of `docker history`: equal ones are the same files on disk, counted once."""

    created: float
    created_by: str
    size_bytes: int


@dataclass(frozen=True)
class Cost:
    """Bytes of one image: all of it, and the part that no other one has."""

    size_bytes: int
    own_bytes: int

    @property
    def shared_bytes(self) -> int:
        """The part that lies on disk once for several images."""
        return self.size_bytes - self.own_bytes


def disk_cost(layers: Mapping[str, Sequence[Layer]]) -> tuple[dict[str, Cost], int]:
    """What each image costs, and what all of them cost together. `layers` are those of each image, the lowest first.

    Two images share the layers up to the first one in which they differ.
    """
    owners: dict[tuple[Layer, ...], set[str]] = {}
    for name, own in layers.items():
        for depth in range(1, len(own) + 1):
            owners.setdefault(tuple(own[:depth]), set()).add(name)
    costs = {
        name: Cost(
            sum(layer.size_bytes for layer in own),
            sum(own[depth - 1].size_bytes for depth in range(1, len(own) + 1) if len(owners[tuple(own[:depth])]) == 1),
        )
        for name, own in layers.items()
    }
    return costs, sum(chain[-1].size_bytes for chain in owners)
