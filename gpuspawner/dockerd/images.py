"""The engine's images, as the program that builds them asks for them: one call after another, each a plain method.

Every method raises BuildError with a sentence for the admin where the engine or a registry fails. The Hub asks with
`engine.Engine` instead; what a build itself looks like is in `builder`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import IO, Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils import kwargs_from_env, parse_repository_tag

from gpuspawner.dockerd.translate import for_the_admin
from gpuspawner.errors import BuildError
from gpuspawner.recipes import HASH_LABEL
from gpuspawner.recipes.image import Image
from gpuspawner.recipes.versions import Layer

Say = Callable[[str], None]

ANSWER_SECONDS = 60
LONGEST_SILENCE_SECONDS = 3600


class Images:
    """The images of the engine that DOCKER_HOST and its relatives name in `environ`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    @cached_property
    def client(self) -> Any:
        """docker-py's client."""
        return self.connect(ANSWER_SECONDS)

    def connect(self, timeout_seconds: float) -> Any:
        """A client of its own, for another patience or another thread."""
        with self._sentences():
            settings = kwargs_from_env(environment=dict(self.environ))
            return docker.APIClient(version="auto", timeout=timeout_seconds, **settings)

    def engine_id(self) -> str:
        """What tells this engine from all others. Before version 23 all engines of a machine have the same ID."""
        with self._sentences():
            info = self.client.info()
        return f"{info['ID']} {info.get('DockerRootDir', '')}"

    def get(self, reference: str) -> Image | None:
        """An image that the engine has, or None."""
        with self._sentences():
            try:
                return Image.read(self.client.inspect_image(reference))
            except ImageNotFound:
                return None

    def built_here(self) -> tuple[Image, ...]:
        """Every image that a shelf's program built on this engine, also those without a name."""
        with self._sentences():
            found = self.client.images(filters={"label": [HASH_LABEL]})
        images = (self.get(entry["Id"]) for entry in found)
        return tuple(image for image in images if image)

    def layers(self, reference: str) -> tuple[Layer, ...]:
        """The layers of an image, the lowest first."""
        with self._sentences():
            history = self.client.history(reference)
        return tuple(
            Layer(entry.get("Created", 0), entry.get("CreatedBy", ""), int(entry.get("Size") or 0))
            for entry in reversed(history)
        )

    def used_by_containers(self) -> frozenset[str]:
        """The ids of the images that containers were made from, running or not."""
        with self._sentences():
            return frozenset(entry["ImageID"] for entry in self.client.containers(all=True))

    def tag(self, reference: str, new: str) -> None:
        """Give an image another name, taking it from the one that has it."""
        repository, tag = parse_repository_tag(new)
        with self._sentences():
            self.client.tag(reference, repository, tag)

    def untag(self, reference: str) -> None:
        """Take a name away; the last one takes the image with it. A name that nothing has is fine."""
        with self._sentences():
            try:
                self.client.remove_image(reference)
            except NotFound:
                return

    def mark(self, reference: str, labels: Mapping[str, str]) -> None:
        """Make an empty image that is nothing but a name with labels."""
        empty = io.BytesIO()
        tarfile.open(fileobj=empty, mode="w").close()
        self.load(io.BytesIO(empty.getvalue()), reference, labels=labels)

    def load(self, tree: IO[bytes], reference: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Make an image of one layer from a tar archive of a file system."""
        repository, tag = parse_repository_tag(reference)
        changes = ['CMD ["bash"]', *(f'LABEL {name}="{value}"' for name, value in (labels or {}).items())]
        with self._sentences():
            patient = self.connect(LONGEST_SILENCE_SECONDS)
            try:
                # Not import_image_from_stream: it says "chunked" of whatever has a length, too, and sends it whole.
                patient.import_image(src=tree, repository=repository, tag=tag, changes=changes)
            finally:
                patient.close()

    def build_network(self) -> str | None:
        """The network for builds: None is the engine's own choice. Without a default bridge only the host's works."""
        with self._sentences():
            try:
                self.client.inspect_network("bridge")
            except NotFound:
                return "host"
            return None

    # --- registries ---------------------------------------------------------------------------------------------------

    def remote_digest(self, reference: str, *, answer_within_seconds: float) -> str:
        """The digest that a registry has for a reference now; nothing is downloaded.

        Raises:
            BuildError: the registry refuses, does not have it, or gives no answer in time.
        """
        try:
            asking = self.connect(answer_within_seconds)
            try:
                return str(asking.inspect_distribution(reference)["Descriptor"]["digest"])
            finally:
                asking.close()
        except requests.exceptions.ReadTimeout as error:
            raise BuildError(f"the registry gave no answer within {answer_within_seconds:g} seconds") from error
        except APIError as error:
            raise BuildError(_explanation(error)) from error
        except (DockerException, requests.RequestException) as error:
            raise self._error(error) from error

    def pull(self, reference: str, say: Say) -> None:
        """Pull an image; `say` gets what happens to it."""
        repository, tag = parse_repository_tag(reference)
        self._follow(
            say, lambda client: client.pull(repository, tag=tag or "latest", stream=True, decode=True), reference
        )

    def push(self, reference: str, say: Say) -> None:
        """Push an image to the registry that its name begins with."""
        repository, tag = parse_repository_tag(reference)
        self._follow(
            say, lambda client: client.push(repository, tag=tag or "latest", stream=True, decode=True), reference
        )

    def _follow(self, say: Say, begin: Callable[[Any], Iterable[Mapping[str, Any]]], reference: str) -> None:
        patient = self.connect(LONGEST_SILENCE_SECONDS)
        try:
            for entry in begin(patient):
                if problem := entry.get("error"):
                    raise BuildError(f"{reference}: {problem}")
                # The progress of each layer comes many times a second and is nothing to read.
                if (status := entry.get("status")) and not entry.get("progressDetail"):
                    say(f"{entry['id']}: {status}" if entry.get("id") else str(status))
        except APIError as error:
            raise BuildError(f"{reference}: {_explanation(error)}") from error
        except (DockerException, requests.RequestException) as error:
            raise self._error(error) from error
        finally:
            patient.close()

    # --- errors -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except (DockerException, requests.RequestException) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> BuildError:
        where = self.environ.get("DOCKER_HOST") or "its usual socket"
        return for_the_admin(error, where=where, waited_seconds=ANSWER_SECONDS)


def _explanation(error: APIError) -> str:
    return str(error.explanation or error).strip()
