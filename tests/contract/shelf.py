"""The images of one contract case: made and built under names that no one else has, and removed afterwards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import docker

from tests.contract.engines import LABEL, Engine


def packed(**files: str) -> bytes:
    """A tar archive; `_` in a name stands for a dot."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("_", "."))
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


class Shelf:
    """The images of one case, all below a name of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.client = engine, engine.client

    @property
    def address(self) -> str:
        """The engine's address, from docker-py's own adapter."""
        return "unix://" + str(self.client._custom_adapter.socket_path)

    def ref(self, name: str = "a:1") -> str:
        """A name of this case."""
        return f"{self.engine.prefix}/{name}"

    def make(self, name: str = "a:1", content: str = "x", changes: tuple[str, ...] = ()) -> str:
        """Import an image; its id."""
        repository, tag = self.ref(name).rsplit(":", 1)
        labels = [f"LABEL {LABEL}={self.engine.prefix}", *changes]
        self.client.import_image_from_data(packed(file=content), repository=repository, tag=tag, changes=labels)
        return self.id(name)

    def build(self, name: str, dockerfile: str, files: Mapping[str, str] | None = None, **more: Any) -> list[Any]:
        """Build an image with the classic builder; what it said."""
        more["labels"] = {LABEL: self.engine.prefix, **more.get("labels", {})}
        context = io.BytesIO(packed(**{"Dockerfile": dockerfile, **(files or {})}))
        asked = self.client.build(
            fileobj=context, custom_context=True, tag=self.ref(name), decode=True, rm=True, **more
        )
        return list(asked)

    def inspect(self, name: str = "a:1") -> dict[str, Any]:
        """What the engine says of an image, by one of this case's names or an id."""
        found: dict[str, Any] = self.client.inspect_image(name if name.startswith("sha256:") else self.ref(name))
        return found

    def id(self, name: str = "a:1") -> str:
        """The id of an image."""
        return str(self.inspect(name)["Id"])

    def names(self, key: str) -> list[str]:
        """The names of an image without this case's part."""
        return [name.removeprefix(self.ref("")) for name in self.inspect(key)["RepoTags"]]

    def clear(self) -> None:
        """Remove what this case made."""
        self.engine.clear()
        label = f"{LABEL}={self.engine.prefix}"
        for _ in range(5):
            found = self.client.images(filters={"label": [label]})
            for image in found:
                for key in [ref for ref in image["RepoTags"] or () if ref != "<none>:<none>"] or [image["Id"]]:
                    try:
                        self.client.remove_image(key, force=True)
                    except docker.errors.NotFound:
                        continue
            if not found:
                return
