"""The names of images: given, moved, taken away, and what goes with the last one.

The engine's rules over the ``Store``, in its order; what it refuses is an ApiError.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import replace

from . import answers
from .answers import ApiError
from .state import Image, Store

_REFERENCE = re.compile(r"[^A-Z]+?(:[\w][\w.-]{0,127})?")


def of(store: Store, image_id: str) -> list[str]:
    """The names with tags of an image, sorted as the engine shows them."""
    return sorted(ref for ref, image in store.images.items() if image.id == image_id)


def digests_of(store: Store, image_id: str) -> list[str]:
    """Its names with digests."""
    return sorted(ref for ref, found in store.digests.items() if found == image_id)


def repository(ref: str) -> str:
    """A reference without its tag or digest."""
    name = ref.partition("@")[0]
    return name.rsplit(":", 1)[0] if ":" in name.rsplit("/", 1)[-1] else name


def digest(image: Image) -> str:
    """The digest that registries know an image by; never its id."""
    return "sha256:" + hashlib.sha256(f"manifest of {image.id}".encode()).hexdigest()


def give(store: Store, image: Image, ref: str, *, moment: float | None = None) -> None:
    """Name an image; whoever had the name before loses it. ``moment`` 0.0: the engine does not note when."""
    if not _REFERENCE.fullmatch(ref):
        raise ApiError(500, "invalid reference format: repository name must be lowercase")
    ref = answers.with_tag(ref)
    before = store.images.get(ref)
    store.images[ref] = replace(image, ref=ref)
    store.unnamed.pop(image.id, None)
    store.tagged[image.id] = time.time() if moment is None else moment
    if before is not None and before.id != image.id and not of(store, before.id):
        store.unnamed[before.id] = before


def remove(store: Store, key: str, *, force: bool) -> list[dict[str, str]]:
    """Take a name away, or an image by its id; the last name takes the image with it. Says what was done.

    Raises:
        ApiError: 404 for what is not there, 409 where something needs it.
    """
    image = store.image(key)
    if image is None:
        raise answers.no_such_image(key)
    names, done = [*of(store, image.id), *digests_of(store, image.id)], []
    by_name = answers.with_tag(key) in store.images or key in store.digests
    if by_name:
        ref = key if key in store.digests else answers.with_tag(key)
        user = next((each for each in store.containers.values() if each.image.id == image.id), None)
        if user is not None and not force and _is_single(names):
            raise answers.name_needed(ref, user.id, image.id)
        done += _take(store, image, ref)
        if of(store, image.id) or digests_of(store, image.id):
            return done
    elif _is_single(names):
        _check(store, image, force=force, several=False)
        for ref in names:
            done += _take(store, image, ref)
    elif not force:
        _check(store, image, force=force, several=True)
    return done + _delete(store, image, force=force, quiet=by_name)


def _take(store: Store, image: Image, ref: str) -> list[dict[str, str]]:
    gone = [ref]
    if store.digests.pop(ref, None) is None:
        if store.images.pop(ref, None) is None:
            return []
        if not any(repository(other) == repository(ref) for other in of(store, image.id)):
            gone += [other for other in digests_of(store, image.id) if repository(other) == repository(ref)]
            for other in gone[1:]:
                del store.digests[other]
    if not of(store, image.id):
        store.unnamed[image.id] = image
    return [{"Untagged": name} for name in gone]


def _is_single(refs: Iterable[str]) -> bool:
    """Whether all references are one tag and digests of the same repository, as the engine counts it."""
    refs = list(refs)
    tags = [ref for ref in refs if "@" not in ref]
    repositories = {repository(ref) for ref in refs if "@" in ref}
    if len(refs) <= 1 or len(tags) > 1:
        return len(refs) <= 1
    return repositories == {repository(tags[0] if tags else refs[0])}


def _children(store: Store, image: Image) -> list[Image]:
    return [each for each in (*store.images.values(), *store.unnamed.values()) if each.parent == image.id]


def _check(store: Store, image: Image, *, force: bool, several: bool) -> None:
    """Raise where something needs the image; the engine asks for children first, then running, then other users."""
    if _children(store, image):
        raise answers.image_in_use(image.id, "has dependent child images", forcible=False)
    users = [each for each in store.containers.values() if each.image.id == image.id]
    for each in users:
        if each.running:
            why = f"is being used by running container {answers.short(each.id)}"
            raise answers.image_in_use(image.id, why, forcible=False)
    if several and not force:
        raise answers.image_in_use(image.id, "is referenced in multiple repositories", forcible=True)
    if users and not force:
        why = f"is being used by stopped container {answers.short(users[0].id)}"
        raise answers.image_in_use(image.id, why, forcible=True)


def _delete(store: Store, image: Image, *, force: bool, quiet: bool) -> list[dict[str, str]]:
    """Delete an image that has no name any more, and what only it stood on."""
    try:
        _check(store, image, force=force, several=False)
    except ApiError as conflict:
        if quiet and (_children(store, image) or "is being used by" in conflict.message):
            return []
        raise
    for ref in of(store, image.id):
        del store.images[ref]
    store.unnamed.pop(image.id, None)
    store.tagged.pop(image.id, None)
    done = [{"Deleted": image.id}]
    parent = store.unnamed.get(image.parent)
    if parent is not None and not digests_of(store, parent.id) and not _children(store, parent):
        done += _delete(store, parent, force=False, quiet=True)
    return done
