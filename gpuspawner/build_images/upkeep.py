"""The published images: go back to an earlier one, clear old ones away, copy them to a registry, say what they cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuspawner.builder.children import Say
from gpuspawner.dockerd.images import Images
from gpuspawner.errors import BuildError
from gpuspawner.recipes import HASH_LABEL, PREFIX, parts_of
from gpuspawner.recipes.image import Image
from gpuspawner.recipes.versions import LATEST, Cost, Version, bad_tag, disk_cost, previous_good, to_prune

_NAMED_IN_A_CONFIG = re.compile(re.escape(PREFIX) + r"[a-z0-9._-]+:[\w.-]+")


@dataclass(frozen=True)
class RolledBack:
    """What a roll-back did: the version that is bad now, the one in use, and what stands on the bad one."""

    name: str
    bad: str
    good: str
    standing_on_it: tuple[str, ...]


def roll_back(images: Images, name: str) -> RolledBack:
    """Let servers start from the previous good version of an image again, and remember that the present one is bad.

    Raises:
        BuildError: there is none, or none before it.
    """
    latest = images.get(f"{PREFIX}{name}:{LATEST}")
    if latest is None:
        raise BuildError(f"There is no image {PREFIX}{name} in the engine, so nothing to go back from.")
    all_built = images.built_here()
    before = previous_good(image.as_version_of(name) for image in all_built)
    if before is None:
        raise BuildError(
            f"There is no earlier good version of {PREFIX}{name} in the engine: it was built only once, or the others "
            "were pruned. Mend its folder and build it anew."
        )
    bad = latest.as_version_of(name)
    # In this order a run that is killed in between can simply be repeated: `latest` moves last, so the bad one is still
    # the one to go back from.
    images.tag(latest.id, f"{PREFIX}{name}:{bad_tag(bad.digest)}")
    for tag in bad.good_tags:
        images.untag(f"{PREFIX}{name}:{tag}")
    images.tag(before.id, f"{PREFIX}{name}:{LATEST}")
    return RolledBack(name, bad.digest[:12], before.digest[:12], _children(all_built, latest, name))


def _children(all_built: Iterable[Image], parent: Image, name: str) -> tuple[str, ...]:
    """The images in use that were built on one version of another."""
    digest = parent.labels.get(HASH_LABEL, "")[:12]
    return tuple(
        sorted(
            reference.removeprefix(PREFIX).removesuffix(f":{LATEST}")
            for image in all_built
            if parts_of(image.labels).get(f"parent {name}") == digest
            for reference in image.references
            if reference.endswith(f":{LATEST}")
        )
    )


@dataclass(frozen=True)
class Removed:
    """A name that was taken away; the bytes are those of the whole image, of which others may share a part."""

    reference: str
    size_bytes: int


def prune(images: Images, *, keep: int, named: frozenset[str]) -> tuple[Removed, ...]:
    """Remove all but the `keep` newest good versions of each image, and what has no name any more.

    Never removed is what servers start from, what a container was made from, and what `named` holds (references).
    """
    built = images.built_here()
    used = images.used_by_containers()
    removed: list[Removed] = []
    for name in sorted({name for image in built for name in _names(image)}):
        versions = [image.as_version_of(name) for image in built]
        tagged = [version for version in versions if version.tags]
        keepers = used | {ref.removeprefix(f"{PREFIX}{name}:") for ref in named if ref.startswith(f"{PREFIX}{name}:")}
        doomed = to_prune(tagged, keep, keepers)
        for version in sorted(doomed, key=lambda version: (version.promoted, version.digest)):
            removed += _remove(images, name, version, doomed[version])
    for image in built:
        if not image.references and image.id not in used:
            images.untag(image.id)
            removed.append(Removed(image.id.removeprefix("sha256:")[:12], image.size_bytes))
    return tuple(removed)


def _remove(images: Images, name: str, version: Version, tags: tuple[str, ...]) -> Iterable[Removed]:
    mark = bad_tag(version.digest)
    for tag in tags:
        reference = f"{PREFIX}{name}:{tag}"
        if tag == mark:
            # The memory of a bad one outlives its bytes.
            images.mark(reference, {HASH_LABEL: version.digest})
        else:
            images.untag(reference)
        yield Removed(reference, version.size_bytes)
    if mark in tags and (left := images.get(version.id)) and not left.references:
        # The mark took its last name, but not the image with it.
        images.untag(version.id)


def _names(image: Image) -> set[str]:
    return {ref.removeprefix(PREFIX).rpartition(":")[0] for ref in image.references if ref.startswith(PREFIX)}


def named_in(config: Path) -> frozenset[str]:
    """The images of the shelf that a configuration names with a tag of their own, read as text: it is not executed.

    Raises:
        BuildError: it cannot be read.
    """
    try:
        return frozenset(_NAMED_IN_A_CONFIG.findall(config.read_text(encoding="utf-8", errors="replace")))
    except OSError as error:
        raise BuildError(
            f"The Hub's configuration, {config}, cannot be read: {error.strerror}. Nothing is removed, because its "
            "profiles may name what would go. Name it with --config FILE."
        ) from error


def push(images: Images, registry: str, name: str, say: Say) -> tuple[str, ...]:
    """Copy what servers start from to a registry, under its own tag and as latest; the names there.

    Raises:
        BuildError: the image is not there, or the registry refuses or does not answer.
    """
    latest = images.get(f"{PREFIX}{name}:{LATEST}")
    if latest is None:
        raise BuildError(f"There is no image {PREFIX}{name} in the engine: build it first.")
    pushed = []
    for tag in (*latest.as_version_of(name).good_tags, LATEST):
        reference = f"{registry.rstrip('/')}/{PREFIX}{name}:{tag}"
        images.tag(latest.id, reference)
        try:
            images.push(reference, say)
        except BuildError as error:
            raise BuildError(f"Look whether {registry} runs and takes images from here. It said: {error}") from error
        finally:
            images.untag(reference)
        pushed.append(reference)
    return tuple(pushed)


def costs(images: Images, in_use: Mapping[str, Image]) -> tuple[dict[str, Cost], int]:
    """What each image in use costs on disk, by name, and what all of them cost together. Bytes."""
    return disk_cost({name: images.layers(image.id) for name, image in in_use.items()})
