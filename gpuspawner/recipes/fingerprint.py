"""What an image is made of, as a digest, and in words what has changed since it was built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from gpuspawner.recipes.files import ContextFile
from gpuspawner.recipes.names import HASH_LABEL, PARTS_LABEL
from gpuspawner.recipes.shelf import Shelf, in_order

# Through which door the packages come says nothing about what is in them.
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
NEUTRAL_ARGUMENTS = frozenset(
    {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", *_PROXIES, *(name.upper() for name in _PROXIES)}
)
# More than this would make a label of tens of kilobytes; such a folder is only known as a whole.
MOST_PARTS = 200
_TAG = "base tag "


@dataclass(frozen=True)
class Fingerprint:
    """What an image is made of: a digest over everything, and a short one of each part, so that a change has a name."""

    digest: str
    parts: Mapping[str, str]

    @property
    def tag(self) -> str:
        """The tag that only this content has."""
        return self.digest[:12]

    def labels(self) -> dict[str, str]:
        """The labels by which `reasons` recognises the image later."""
        parts = self.parts if len(self.parts) <= MOST_PARTS else {}
        return {HASH_LABEL: self.digest, PARTS_LABEL: json.dumps(parts, sort_keys=True, separators=(",", ":"))}


def fingerprints(
    shelf: Shelf,
    *,
    outside: Mapping[str, str] | None = None,
    base_digests: Mapping[str, str] | None = None,
    held: Mapping[str, str] | None = None,
) -> dict[str, Fingerprint]:
    """What each image is made of.

    Neither the order of the files, nor their times, nor line endings matter; content, the executable bit, build
    arguments, what the image stands on and the rest of what is given do:

    - `outside` names what else goes into every image that does not stand on one of the shelf (certificates, for
      example), by a word that a person understands;
    - `base_digests` are those of images from elsewhere, by reference, as far as they are known;
    - `held` are digests of images that stay as they are although their folder says otherwise, by name: what stands on
      them stands on that.
    """
    found: dict[str, Fingerprint] = {}
    digests = base_digests or {}
    standing = dict(held or {})
    for recipe in in_order(shelf, shelf):
        parts = {path: _digest_of(file) for path, file in recipe.files.items()}
        for name in recipe.inner_arguments - NEUTRAL_ARGUMENTS:
            if (value := recipe.arguments[name]) is not None:
                parts[f"argument {name}"] = _sha(value.encode())
        for parent in recipe.parents:
            parts[f"parent {parent}"] = standing[parent]
        if foreign := sorted(source.reference for source in recipe.sources if not source.recipe):
            parts["base image"] = _sha("\n".join(foreign).encode())
            parts.update({_TAG + name: _sha(digests[name].encode()) for name in foreign if name in digests})
        if not recipe.parents:
            parts.update({word: _sha(value.encode()) for word, value in (outside or {}).items()})
        digest = _sha(json.dumps(parts, sort_keys=True).encode())
        found[recipe.name] = Fingerprint(digest, {part: value[:12] for part, value in parts.items()})
        standing.setdefault(recipe.name, digest)
    return found


def _digest_of(file: ContextFile) -> str:
    is_text = b"\0" not in file.content
    content = file.content.replace(b"\r\n", b"\n") if is_text else file.content
    kind = b"link " if file.is_link else b"program " if file.executable else b"file "
    return _sha(kind + content)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def reasons(wanted: Fingerprint, labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """Why an image has to be built, in words; nothing where the one that exists is what is wanted.

    `labels` are those of the existing image, None where there is none.
    """
    if labels is None:
        return ("never built",)
    if labels.get(HASH_LABEL) == wanted.digest:
        return ()
    if HASH_LABEL not in labels:
        return ("not built by this program",)
    before = parts_of(labels)
    if not before or len(wanted.parts) > MOST_PARTS:
        return ("its folder changed",)
    changed = [_changed(part) for part in before.keys() & wanted.parts if before[part] != wanted.parts[part]]
    new = [f"{part} is new" for part in wanted.parts.keys() - before]
    gone = [f"{part} is gone" for part in before.keys() - wanted.parts]
    return tuple(sorted(changed) + sorted(new) + sorted(gone)) or ("its folder changed",)


def parts_of(labels: Mapping[str, str]) -> Mapping[str, str]:
    """The short digest of each part of an image, from its labels; empty where they do not say."""
    try:
        parts = json.loads(labels.get(PARTS_LABEL, ""))
    except ValueError:
        return {}
    return parts if isinstance(parts, dict) else {}


def _changed(part: str) -> str:
    return f"{part} has a new digest" if part.startswith(_TAG) else f"{part} changed"
