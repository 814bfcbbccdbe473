"""An admin's own values with ours upon them: what a spawner gives to DockerSpawner, anew for each start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpuspawner.container import literal


def copied(value: Any) -> Any:
    """Dictionaries anew, everything else as it is: the Hub changes them in place when it overrides for a group."""
    return {key: copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def merging(configured: Any, ours: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None]) -> Any:
    """The admin's dictionary (or callable) with ours upon it, as a callable: it is asked at each start."""

    async def merged(spawner: Any) -> dict[str, Any]:
        theirs = configured(spawner) if callable(configured) else configured
        theirs = dict(await theirs if hasattr(theirs, "__await__") else theirs)
        check(theirs)
        for key, value in literal(ours).items():
            of_both = isinstance(value, Mapping) and isinstance(theirs.get(key), Mapping)
            theirs[key] = {**theirs[key], **value} if of_both else value
        return theirs

    return merged
