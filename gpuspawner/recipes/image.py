"""What an engine knows of one image, as a value, read from what `docker image inspect` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuspawner.recipes.names import HASH_LABEL, PREFIX
from gpuspawner.recipes.versions import Version
from gpuspawner.units import moment_of


@dataclass(frozen=True)
class Image:
    """One image. `references` are its names with tags; `digest` is the registry's where it came from one, else the id.

    `tagged` is when it last got a name, in seconds since 1970: 0 where the engine does not say.
    """

    id: str
    size_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    references: frozenset[str] = frozenset()
    digest: str = ""
    tagged: float = 0.0

    @classmethod
    def read(cls, inspected: Mapping[str, Any]) -> Image:
        """From the engine's own description."""
        digests = [entry.partition("@")[2] for entry in inspected.get("RepoDigests") or ()]
        return cls(
            id=inspected["Id"],
            size_bytes=int(inspected.get("Size") or 0),
            labels=(inspected.get("Config") or {}).get("Labels") or {},
            references=frozenset(inspected.get("RepoTags") or ()),
            digest=digests[0] if digests else inspected["Id"],
            tagged=moment_of((inspected.get("Metadata") or {}).get("LastTagTime", "")),
        )

    def as_version_of(self, name: str) -> Version:
        """Seen as a version of the recipe `name`."""
        repository = f"{PREFIX}{name}:"
        tags = frozenset(ref.removeprefix(repository) for ref in self.references if ref.startswith(repository))
        return Version(self.id, tags, self.labels.get(HASH_LABEL, ""), self.tagged, self.size_bytes)
