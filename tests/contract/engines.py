"""The engines that the contract cases run against: the stand-in always, a real one where it is lent.

``GPUSPAWNER_TEST_ENGINE`` lends one: the address of its socket (``unix:///...``), or any other value while
``DOCKER_HOST`` has the address, as ``python -m tests.standins.netns_engine exec`` leaves it. What the cases
make carries a label of their own and is removed after each of them; nothing else of the engine is touched.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError

from tests.standins import rootfs
from tests.standins.engine import StandinEngine
from tests.standins.gpustate import DEFAULT_CARDS

IMAGE = "gpuspawner-test/busybox"
IMAGE_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE": "1"}
IMAGE_LABEL = "gpuspawner.test.image"
LABEL = "gpuspawner.test.contract"
CARDS = {card.uuid: card.minor for card in DEFAULT_CARDS}


@dataclass
class Engine:
    """One engine under test, seen through the real docker-py; ``prefix`` makes names that no one else has."""

    client: docker.APIClient
    real: bool
    image: str = IMAGE
    prefix: str = field(default_factory=lambda: f"gs-contract-{secrets.token_hex(4)}")

    def name(self, suffix: str = "a") -> str:
        """A name for a container, network or volume of this case."""
        return f"{self.prefix}-{suffix}"

    def create(self, *command: str, suffix: str = "a", host: Mapping[str, Any] | None = None, **more: Any) -> str:
        """Create a container and return its name."""
        labels = {LABEL: self.prefix, **more.pop("labels", {})}
        config = self.client.create_host_config(**(host or {}))
        self.client.create_container(
            more.pop("image", self.image),
            list(command),
            name=self.name(suffix),
            labels=labels,
            host_config=config,
            **more,
        )
        return self.name(suffix)

    def run(self, *command: str, suffix: str = "a", host: Mapping[str, Any] | None = None, **more: Any) -> str:
        """Create and start a container and return its name."""
        name = self.create(*command, suffix=suffix, host=host, **more)
        self.client.start(name)
        return name

    def state(self, name: str) -> dict[str, Any]:
        """The State part of inspect."""
        state: dict[str, Any] = self.client.inspect_container(name)["State"]
        return state

    def listed(self, filters: Mapping[str, Any] | None = None, *, everything: bool = False) -> list[str]:
        """The names of this case's containers that a list call gives."""
        label = [f"{LABEL}={self.prefix}", *(filters or {}).get("label", [])]
        found = self.client.containers(all=everything, filters={**(filters or {}), "label": label})
        return [each["Names"][0].removeprefix("/") for each in found]

    def output(self, name: str, *command: str) -> tuple[int, str]:
        """Exit code and output of a command run in a container."""
        made = self.client.exec_create(name, list(command))
        text = self.client.exec_start(made["Id"])
        return self.client.exec_inspect(made["Id"])["ExitCode"], text.decode()

    def clear(self) -> None:
        """Remove what this case made."""
        for each in self.client.containers(all=True, filters={"label": f"{LABEL}={self.prefix}"}):
            with suppress(docker.errors.NotFound):
                self.client.remove_container(each["Id"], force=True, v=True)
        for network in self.client.networks(filters={"label": f"{LABEL}={self.prefix}"}):
            self.client.remove_network(network["Id"])
        for volume in self.client.volumes(filters={"name": self.prefix})["Volumes"]:
            self.client.remove_volume(volume["Name"])


def refusal(call: Callable[..., object], *words: Any, **more: Any) -> tuple[int, str]:
    """Status and text of the error that a call must end with."""
    with pytest.raises(APIError) as caught:
        call(*words, **more)
    return caught.value.status_code, caught.value.explanation


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll a condition to a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        threading.Event().wait(0.02)


def real_engine() -> tuple[str | None, str]:
    """The address of the lent engine, or None and why there is none."""
    lent = os.environ.get("GPUSPAWNER_TEST_ENGINE", "")
    if not lent:
        return None, "no real engine is lent: set GPUSPAWNER_TEST_ENGINE, or use tests.standins.netns_engine exec"
    address = lent if lent.startswith("unix://") else os.environ.get("DOCKER_HOST", "")
    if not Path(address.removeprefix("unix://")).is_socket():
        return None, f"GPUSPAWNER_TEST_ENGINE is {lent!r}, but no engine listens at {address!r}"
    return address, ""


@contextmanager
def standin(**settings: Any) -> Iterator[docker.APIClient]:
    """docker-py at a new stand-in with the cards and the image."""
    with StandinEngine(gpus=CARDS, **settings) as one, docker.APIClient(one.url, timeout=30) as api:
        one.add_image(IMAGE, env=IMAGE_ENV, cmd=("sleep", "3600"), labels={IMAGE_LABEL: "stand-in"}, notebook=False)
        yield api


@contextmanager
def real() -> Iterator[docker.APIClient]:
    """docker-py at the lent engine, with the image; skips the case where there is none."""
    address, reason = real_engine()
    if address is None:
        pytest.skip(reason)
    try:
        archive = rootfs._archive(rootfs._static_busybox())
    except rootfs.RootfsError as missing:
        pytest.skip(str(missing))
    with docker.APIClient(address, timeout=60) as api:
        import_image(api, archive)
        yield api


def import_image(api: docker.APIClient, archive: bytes) -> None:
    """Make the test image of a tar, unless the engine has it already: each import leaves an image behind."""
    changes = ['CMD ["sleep", "3600"]', *(f"ENV {key}={value}" for key, value in IMAGE_ENV.items())]
    mark = hashlib.sha256(archive + repr(changes).encode()).hexdigest()
    with suppress(docker.errors.ImageNotFound):
        if (api.inspect_image(IMAGE)["Config"]["Labels"] or {}).get(IMAGE_LABEL) == mark:
            return
    changes.append(f"LABEL {IMAGE_LABEL}={mark}")
    api.import_image_from_data(archive, repository=IMAGE, tag="latest", changes=changes)
