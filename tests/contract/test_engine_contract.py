"""What the project relies on in a Docker Engine: every case runs against the stand-in and against a real one.

A case that only the stand-in passes is a lie in the stand-in. So no case looks at what an engine is made of,
only at what docker-py gets from it. Here: the life of a container, and what is refused in which words.
"""

from __future__ import annotations

import re
import time
from typing import Any

import docker
import pytest

from tests.contract.engines import IMAGE_LABEL, LABEL, Engine, refusal, until

pytestmark = pytest.mark.contract

HEX64 = re.compile("[0-9a-f]{64}")
NEVER = "0001-01-01T00:00:00Z"


class TestLife:
    """Create, start, inspect, stop, remove."""

    def test_a_created_container_has_not_run(self, engine: Engine) -> None:
        """Its state is all zeroes and "created", and it has no address."""
        info = engine.client.inspect_container(engine.create("sleep", "60"))
        wanted = {"Status": "created", "Running": False, "Pid": 0, "ExitCode": 0, "OOMKilled": False, "Error": ""}
        assert {key: info["State"][key] for key in wanted} == wanted
        assert info["State"]["StartedAt"] == info["State"]["FinishedAt"] == NEVER
        assert [each["IPAddress"] for each in info["NetworkSettings"]["Networks"].values()] == [""]

    def test_inspect_shows_what_was_asked_over_what_the_image_says(self, engine: Engine) -> None:
        """Environment, labels, command and host config come back as they were given."""
        host = {"mem_limit": "64m", "shm_size": "8m", "pids_limit": 50, "init": True, "cap_drop": ["ALL"]}
        name = engine.create(
            "sleep", "60", host=host, labels={"x": "y"}, environment={"A": "1"}, ports={"8888/tcp": None}
        )
        info = engine.client.inspect_container(name)
        assert info["Name"] == f"/{name}"
        assert HEX64.fullmatch(info["Id"])
        assert info["Image"] == engine.client.inspect_image(engine.image)["Id"]
        assert info["Config"]["Image"] == engine.image
        assert {"A=1", "FROM_IMAGE=1"} <= set(info["Config"]["Env"])
        labels = info["Config"]["Labels"]
        assert labels.pop(IMAGE_LABEL), "the image's own labels are inherited"
        assert labels == {LABEL: engine.prefix, "x": "y"}
        assert info["Config"]["ExposedPorts"] == {"8888/tcp": {}}
        assert (info["Path"], info["Args"]) == ("sleep", ["60"])
        kept = {"Memory": 64 * 2**20, "ShmSize": 8 * 2**20, "PidsLimit": 50, "Init": True, "CapDrop": ["ALL"]}
        assert {key: info["HostConfig"][key] for key in kept} == kept

    def test_a_memory_limit_alone_adds_as_much_swap(self, engine: Engine) -> None:
        """MemorySwap is twice the limit unless it is given."""
        alone = engine.create("sleep", "60", host={"mem_limit": "64m"})
        both = engine.create("sleep", "60", suffix="b", host={"mem_limit": "64m", "memswap_limit": "64m"})
        found = [engine.client.inspect_container(each)["HostConfig"]["MemorySwap"] for each in (alone, both)]
        assert found == [128 * 2**20, 64 * 2**20]

    def test_no_command_takes_the_images(self, engine: Engine) -> None:
        """The image's command is what runs."""
        engine.client.create_container(engine.image, name=engine.name(), labels={LABEL: engine.prefix})
        assert engine.client.inspect_container(engine.name())["Config"]["Cmd"] == ["sleep", "3600"]

    def test_a_started_container_runs_and_has_an_address(self, engine: Engine) -> None:
        """Status, Pid, StartedAt and the address of its network are there."""
        info = engine.client.inspect_container(engine.run("sleep", "60", host={"network_mode": "bridge"}))
        assert (info["State"]["Status"], info["State"]["Running"]) == ("running", True)
        assert info["State"]["Pid"] > 0
        assert info["State"]["StartedAt"] > "2020"
        assert re.fullmatch(r"\d+(\.\d+){3}", info["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])

    def test_starting_twice_is_no_error(self, engine: Engine) -> None:
        """The second start is answered with "not modified"."""
        name = engine.run("sleep", "60")
        engine.client.start(name)
        assert engine.state(name)["Running"] is True

    def test_a_stop_kills_what_ignores_it(self, engine: Engine) -> None:
        """A first process without a handler ends by SIGKILL after the grace time: 137; a second stop is no error."""
        name = engine.run("sleep", "60")
        began = time.monotonic()
        engine.client.stop(name, timeout=1)
        assert time.monotonic() - began >= 0.9
        state = engine.state(name)
        assert (state["Status"], state["Running"], state["ExitCode"], state["Pid"]) == ("exited", False, 137, 0)
        assert state["FinishedAt"] > state["StartedAt"]
        engine.client.stop(name, timeout=1)

    def test_with_an_init_a_stop_ends_at_once(self, engine: Engine) -> None:
        """SIGTERM reaches the command: 143."""
        name = engine.run("sleep", "60", host={"init": True})
        engine.client.stop(name, timeout=30)
        assert engine.state(name)["ExitCode"] == 143

    def test_an_ended_container_can_be_started_again(self, engine: Engine) -> None:
        """The engine resumes it, with its old configuration: why our spawner never does."""
        name = engine.run("sh", "-c", "exit 3")
        engine.client.wait(name)
        engine.client.start(name)
        assert engine.client.wait(name)["StatusCode"] == 3

    def test_kill_ends_a_container(self, engine: Engine) -> None:
        """Exit code 137."""
        name = engine.run("sleep", "60")
        engine.client.kill(name)
        assert engine.client.wait(name)["StatusCode"] == 137

    def test_a_removed_container_is_gone(self, engine: Engine) -> None:
        """Inspect knows it no longer, by name and by id."""
        name = engine.create("sleep", "60")
        container_id = engine.client.inspect_container(name)["Id"]
        engine.client.remove_container(name, v=True)
        assert refusal(engine.client.inspect_container, name) == (404, f"No such container: {name}")
        assert refusal(engine.client.inspect_container, container_id)[0] == 404

    def test_a_running_container_is_not_removed_without_force(self, engine: Engine) -> None:
        """The refusal names the whole id; with force it goes."""
        name = engine.run("sleep", "60")
        container_id = engine.client.inspect_container(name)["Id"]
        assert refusal(engine.client.remove_container, name) == (
            409,
            f"You cannot remove a running container {container_id}."
            " Stop the container before attempting removal or force remove",
        )
        engine.client.remove_container(name, force=True)
        assert engine.listed(everything=True) == []

    def test_auto_remove_takes_the_evidence_along(self, engine: Engine) -> None:
        """After its end such a container is not there to be asked why."""
        name = engine.run("sh", "-c", "exit 3", host={"auto_remove": True})
        until(lambda: engine.listed(everything=True) == [])
        assert refusal(engine.client.inspect_container, name)[0] == 404

    def test_a_paused_container_still_counts_as_running(self, engine: Engine) -> None:
        """Running stays true, exec and remove are refused, unpause brings it back."""
        name = engine.run("sleep", "60")
        engine.client.pause(name)
        state = engine.state(name)
        assert (state["Status"], state["Running"], state["Paused"]) == ("paused", True, True)
        assert refusal(engine.client.exec_create, name, ["true"]) == (
            409,
            f"Container {name} is paused, unpause the container before exec",
        )
        assert refusal(engine.client.remove_container, name)[1].startswith("You cannot remove a paused container")
        engine.client.unpause(name)
        assert engine.state(name)["Status"] == "running"

    def test_a_short_id_and_a_slashed_name_find_it(self, engine: Engine) -> None:
        """As the docker command line allows."""
        name = engine.create("sleep", "60")
        container_id = engine.client.inspect_container(name)["Id"]
        assert engine.client.inspect_container(container_id[:12])["Id"] == container_id
        assert engine.client.inspect_container(f"/{name}")["Id"] == container_id


class TestRefusals:
    """Calls that an engine refuses, and its words."""

    def test_a_name_in_use_is_a_conflict(self, engine: Engine) -> None:
        """The refusal names the holder by its whole id."""
        name = engine.create("sleep", "60")
        holder = engine.client.inspect_container(name)["Id"]
        assert refusal(engine.create, "sleep", "60") == (
            409,
            f'Conflict. The container name "/{name}" is already in use by container "{holder}".'
            " You have to remove (or rename) that container to be able to reuse that name.",
        )

    def test_a_missing_image_is_not_found(self, engine: Engine) -> None:
        """At inspect and at create; nothing is made."""
        ref = "gpuspawner-test/never-built:1"
        with pytest.raises(docker.errors.ImageNotFound) as inspected:
            engine.client.inspect_image(ref)
        assert inspected.value.explanation == f"no such image: {ref}: No such image: {ref}"
        with pytest.raises(docker.errors.ImageNotFound) as created:
            engine.create("sleep", "60", image=ref)
        assert created.value.explanation == f"No such image: {ref}"
        assert engine.listed(everything=True) == []

    def test_a_missing_image_without_a_tag_is_called_latest(self, engine: Engine) -> None:
        """The engine completes the name in its answer."""
        _, text = refusal(engine.create, "sleep", image="gpuspawner-test/never-built")
        assert text == "No such image: gpuspawner-test/never-built:latest"

    @pytest.mark.parametrize(
        "method",
        ["inspect_container", "start", "stop", "remove_container", "logs", "wait"],
    )
    def test_a_container_that_is_not_there(self, engine: Engine, method: str) -> None:
        """Each call says so in the same words."""
        name = engine.name("nobody")
        assert refusal(getattr(engine.client, method), name) == (404, f"No such container: {name}")

    def test_kill_and_exec_of_a_container_that_is_not_there(self, engine: Engine) -> None:
        """Kill puts its own words in front."""
        name = engine.name("nobody")
        assert refusal(engine.client.kill, name) == (
            404,
            f"Cannot kill container: {name}: No such container: {name}",
        )
        assert refusal(engine.client.exec_create, name, ["true"]) == (404, f"No such container: {name}")

    def test_kill_and_exec_of_a_container_that_does_not_run(self, engine: Engine) -> None:
        """Both are conflicts."""
        name = engine.create("sleep", "60")
        text = f"Container {engine.client.inspect_container(name)['Id']} is not running"
        assert refusal(engine.client.kill, name) == (409, f"Cannot kill container: {name}: {text}")
        assert refusal(engine.client.exec_create, name, ["true"]) == (409, text)

    @pytest.mark.parametrize(
        ("host", "status", "text"),
        [
            pytest.param({"runtime": "nosuch"}, 400, "Unknown runtime specified nosuch", id="runtime"),
            pytest.param({"mem_limit": 1024}, 400, "Minimum memory limit allowed is 6MB", id="memory"),
            pytest.param({"binds": ["/tmp:/x:ro", "/var:/x:rw"]}, 400, "Duplicate mount point: /x", id="mount point"),
        ],
    )
    def test_what_create_already_refuses(self, engine: Engine, host: dict[str, Any], status: int, text: str) -> None:
        """Nothing is made then."""
        assert refusal(engine.create, "sleep", "60", host=host) == (status, text)
        assert engine.listed(everything=True) == []

    def test_an_illegal_name(self, engine: Engine) -> None:
        """The engine says which characters are allowed."""
        assert refusal(engine.create, "sleep", suffix="a b") == (
            400,
            f"Invalid container name ({engine.name('a b')}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
        )

    def test_a_command_that_the_image_lacks_fails_at_start(self, engine: Engine) -> None:
        """A 400; the container stays created with exit code 127 and the text in its state."""
        name = engine.create("jupyterhub-singleuser-nosuch")
        status, text = refusal(engine.client.start, name)
        assert status == 400
        assert text.endswith('exec: "jupyterhub-singleuser-nosuch": executable file not found in $PATH: unknown')
        state = engine.state(name)
        assert (state["Status"], state["ExitCode"], state["Error"]) == ("created", 127, text)

    def test_a_network_that_is_not_there_fails_at_start(self, engine: Engine) -> None:
        """Create takes it; start is a 404."""
        missing = engine.name("net")
        name = engine.create("sleep", "60", host={"network_mode": missing})
        assert refusal(engine.client.start, name) == (404, f"network {missing} not found")
        state = engine.state(name)
        assert (state["Status"], state["ExitCode"], state["Error"]) == (
            "created",
            128,
            f"network {missing} not found",
        )

    def test_a_failed_start_with_auto_remove_leaves_nothing(self, engine: Engine) -> None:
        """The engine removes it at once, text and all."""
        engine.create("nosuch-command", host={"auto_remove": True})
        refusal(engine.client.start, engine.name())
        until(lambda: engine.listed(everything=True) == [])

    def test_a_pull_of_what_no_registry_has_is_an_error(self, engine: Engine) -> None:
        """Whether the registry cannot be reached or does not know it: docker-py raises."""
        refusal(engine.client.pull, "localhost:1/gpuspawner-test/never-built", tag="1")
