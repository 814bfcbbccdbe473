"""What is read back from an engine: lists, evidence of the dead, output of commands, networks, volumes, itself.

As in ``test_engine_contract``, each case runs against the stand-in and against a real engine.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.contract.engines import IMAGE_LABEL, LABEL, Engine, refusal, until

pytestmark = pytest.mark.contract


class TestLists:
    """What ``GET /containers/json`` gives."""

    @pytest.fixture
    def three(self, engine: Engine) -> Engine:
        """A created, a running and an exited container."""
        engine.create("sleep", "60", suffix="created", labels={"gs.k": "1"})
        engine.run("sleep", "60", suffix="running", labels={"gs.k": "2", "gs.other": ""})
        engine.client.wait(engine.run("sh", "-c", "exit 7", suffix="exited", labels={"gs.k": "2"}))
        return engine

    @pytest.mark.parametrize(
        ("everything", "filters", "suffixes"),
        [
            pytest.param(False, {}, ["running"], id="only the running ones by default"),
            pytest.param(True, {}, ["exited", "running", "created"], id="all, the newest first"),
            pytest.param(True, {"status": "created"}, ["created"], id="by status"),
            pytest.param(False, {"status": "exited"}, ["exited"], id="a status stands for all"),
            pytest.param(True, {"status": ["created", "exited"]}, ["exited", "created"], id="statuses are or"),
            pytest.param(True, {"label": ["gs.k=2"]}, ["exited", "running"], id="by label and value"),
            pytest.param(True, {"label": ["gs.other"]}, ["running"], id="by label alone"),
            pytest.param(True, {"label": ["gs.k=2", "gs.other"]}, ["running"], id="labels are and"),
            pytest.param(True, {"label": ["gs.k=3"]}, [], id="no such label"),
            pytest.param(True, {"name": "-run"}, ["running"], id="a part of the name"),
            pytest.param(True, {"name": "-(created|exited)$"}, ["exited", "created"], id="a name is a pattern"),
        ],
    )
    def test_filters(self, three: Engine, everything: bool, filters: dict[str, Any], suffixes: list[str]) -> None:
        """Each filter chooses as the real engine's does."""
        assert three.listed(filters, everything=everything) == [three.name(each) for each in suffixes]

    def test_what_a_list_says_of_each(self, three: Engine) -> None:
        """State, words, labels, image and names, without another call."""
        found = three.client.containers(all=True, filters={"label": f"{LABEL}={three.prefix}"})
        assert [each["State"] for each in found] == ["exited", "running", "created"]
        assert found[0]["Status"].startswith("Exited (7)")
        assert found[1]["Status"].startswith("Up ")
        assert found[2]["Status"] == "Created"
        assert found[1]["Labels"].pop(IMAGE_LABEL), "the image's own labels are inherited"
        assert found[1]["Labels"] == {LABEL: three.prefix, "gs.k": "2", "gs.other": ""}
        assert {each["Image"] for each in found} == {three.image}
        assert {each["ImageID"] for each in found} == {three.client.inspect_image(three.image)["Id"]}
        assert abs(found[2]["Created"] - time.time()) < 60

    @pytest.mark.parametrize(
        ("filters", "text"),
        [
            pytest.param({"bogus": "x"}, "Invalid filter 'bogus'", id="key"),
            pytest.param({"status": "bogus"}, "Invalid filter 'status=bogus'", id="status"),
        ],
    )
    def test_an_unknown_filter(self, engine: Engine, filters: dict[str, str], text: str) -> None:
        """A 400, not an empty list."""
        assert refusal(engine.client.containers, filters=filters) == (400, text)


class TestEvidence:
    """What a dead container tells: exit code, logs, wait."""

    def test_exit_code_and_logs_of_a_dead_container(self, engine: Engine) -> None:
        """The state has the code, the log both streams."""
        name = engine.run("sh", "-c", "echo one; echo two; echo oops >&2; exit 7")
        assert engine.client.wait(name)["StatusCode"] == 7
        state = engine.state(name)
        assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 7, False)
        assert sorted(engine.client.logs(name).splitlines()) == [b"one", b"oops", b"two"]
        assert engine.client.logs(name, stderr=False) == b"one\ntwo\n"
        assert engine.client.logs(name, stdout=False) == b"oops\n"

    @pytest.mark.parametrize(
        ("tail", "wanted"), [(1, b"c\n"), (2, b"b\nc\n"), (9, b"a\nb\nc\n"), ("all", b"a\nb\nc\n")]
    )
    def test_the_last_lines(self, engine: Engine, tail: int | str, wanted: bytes) -> None:
        """``tail`` counts from the end."""
        name = engine.run("sh", "-c", "echo a; echo b; echo c")
        engine.client.wait(name)
        assert engine.client.logs(name, tail=tail) == wanted

    def test_time_stamps_stand_before_each_line(self, engine: Engine) -> None:
        """In UTC, in RFC 3339."""
        name = engine.run("echo", "hello")
        engine.client.wait(name)
        assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z hello\n", engine.client.logs(name, timestamps=True))

    def test_following_a_log_ends_with_the_container(self, engine: Engine) -> None:
        """Lines come as a stream."""
        name = engine.run("sh", "-c", "echo a; sleep 0.3; echo b")
        assert b"".join(engine.client.logs(name, stream=True, follow=True)) == b"a\nb\n"

    def test_a_created_container_has_no_log(self, engine: Engine) -> None:
        """Empty, not an error."""
        assert engine.client.logs(engine.create("sleep", "60")) == b""

    def test_a_log_of_no_stream_is_refused(self, engine: Engine) -> None:
        """A 400."""
        name = engine.create("sleep", "60")
        assert refusal(engine.client.logs, name, stdout=False, stderr=False) == (
            400,
            "Bad parameters: you must choose at least one stream",
        )

    def test_waiting_for_a_created_container_is_over_at_once(self, engine: Engine) -> None:
        """It is "not running", so the code is 0: wait proves nothing about a start."""
        assert engine.client.wait(engine.create("sleep", "60"), timeout=5)["StatusCode"] == 0

    def test_waiting_lasts_until_the_end(self, engine: Engine) -> None:
        """The code is that of the command."""
        began = time.monotonic()
        name = engine.run("sh", "-c", "sleep 0.5; exit 5")
        assert engine.client.wait(name, timeout=10)["StatusCode"] == 5
        assert time.monotonic() - began >= 0.5


class TestExec:
    """Commands run in a container."""

    def test_output_and_exit_code(self, engine: Engine) -> None:
        """Both streams and the code come back; before it ran the code is None."""
        name = engine.run("sleep", "60")
        made = engine.client.exec_create(name, ["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert engine.client.exec_inspect(made["Id"])["ExitCode"] is None
        assert engine.client.exec_start(made["Id"], demux=True) == (b"out\n", b"err\n")
        info = engine.client.exec_inspect(made["Id"])
        assert (info["ExitCode"], info["Running"], info["ID"]) == (3, False, made["Id"])

    def test_a_command_without_output(self, engine: Engine) -> None:
        """No bytes, code 0."""
        assert engine.output(engine.run("sleep", "60"), "true") == (0, "")

    def test_a_command_that_is_not_there(self, engine: Engine) -> None:
        """The text comes as output and the code is 126: no exception tells of it."""
        code, text = engine.output(engine.run("sleep", "60"), "nosuch")
        assert code == 126
        assert 'exec: "nosuch": executable file not found in $PATH: unknown' in text

    def test_it_has_the_containers_environment(self, engine: Engine) -> None:
        """The variables of the create call and of the image."""
        name = engine.run("sleep", "60", environment={"A": "b c"})
        assert engine.output(name, "sh", "-c", "echo $A $FROM_IMAGE") == (0, "b c 1\n")

    def test_apart_from_the_connection(self, engine: Engine) -> None:
        """A detached exec goes on after the call came back."""
        name = engine.run("sleep", "60")
        made = engine.client.exec_create(name, ["sh", "-c", "sleep 0.3; exit 4"])
        engine.client.exec_start(made["Id"], detach=True)
        assert engine.client.exec_inspect(made["Id"])["ExitCode"] is None
        until(lambda: engine.client.exec_inspect(made["Id"])["ExitCode"] == 4)

    def test_one_that_is_not_there(self, engine: Engine) -> None:
        """Start and inspect say so."""
        answer = (404, f"No such exec instance: {'0' * 64}")
        assert refusal(engine.client.exec_inspect, "0" * 64) == answer
        assert refusal(engine.client.exec_start, "0" * 64) == answer


class TestNetworksAndVolumes:
    """The few calls about networks and volumes that we make."""

    def test_a_network_is_made_found_and_used(self, engine: Engine) -> None:
        """A container in it has its address under the network's name."""
        net = engine.name("net")
        made = engine.client.create_network(net, driver="bridge", labels={LABEL: engine.prefix}, check_duplicate=True)
        assert engine.client.inspect_network(net)["Id"] == made["Id"]
        assert [each["Name"] for each in engine.client.networks(names=[net])] == [net]
        name = engine.run("sleep", "60", host={"network_mode": net})
        networks = engine.client.inspect_container(name)["NetworkSettings"]["Networks"]
        assert list(networks) == [net]
        assert networks[net]["IPAddress"]

    def test_a_network_of_that_name_is_there_already(self, engine: Engine) -> None:
        """A conflict."""
        net = engine.name("net")
        engine.client.create_network(net, labels={LABEL: engine.prefix}, check_duplicate=True)
        assert refusal(engine.client.create_network, net, check_duplicate=True) == (
            409,
            f"network with name {net} already exists",
        )

    def test_networks_and_volumes_that_are_not_there(self, engine: Engine) -> None:
        """Both are 404."""
        missing = engine.name("nobody")
        assert refusal(engine.client.inspect_network, missing) == (404, f"network {missing} not found")
        assert refusal(engine.client.inspect_volume, missing) == (404, f"get {missing}: no such volume")

    def test_a_bind_makes_its_volume_and_leaves_it(self, engine: Engine) -> None:
        """A named volume is made at create, is in use while the container is there, and outlives it."""
        volume = engine.name("home")
        name = engine.create("sleep", "60", host={"binds": {volume: {"bind": "/home", "mode": "rw"}}})
        info = engine.client.inspect_container(name)
        assert [(m["Type"], m["Name"], m["Destination"], m["RW"]) for m in info["Mounts"]] == [
            ("volume", volume, "/home", True)
        ]
        assert refusal(engine.client.remove_volume, volume) == (
            409,
            f"remove {volume}: volume is in use - [{info['Id']}]",
        )
        engine.client.remove_container(name, v=True)
        assert engine.client.inspect_volume(volume)["Name"] == volume

    def test_an_anonymous_volume_goes_with_its_container(self, engine: Engine) -> None:
        """With ``v``."""
        name = engine.create("sleep", "60", volumes=["/data"])
        volume = engine.client.inspect_container(name)["Mounts"][0]["Name"]
        engine.client.remove_container(name, v=True)
        assert refusal(engine.client.inspect_volume, volume)[0] == 404

    def test_creating_a_volume_twice_finds_it(self, engine: Engine) -> None:
        """No error, and the labels stay those of the first time."""
        volume = engine.name("home")
        engine.client.create_volume(volume, labels={"a": "b"})
        assert engine.client.create_volume(volume, labels={"a": "c"})["Labels"] == {"a": "b"}


class TestEngine:
    """What the engine says of itself."""

    def test_info_and_version_have_what_we_read(self, engine: Engine) -> None:
        """The keys that our start-up checks look at."""
        info = engine.client.info()
        assert info["ServerVersion"] == engine.client.version()["Version"]
        assert "runc" in info["Runtimes"]
        assert info["DefaultRuntime"] in info["Runtimes"]
        assert info["CgroupDriver"] in ("cgroupfs", "systemd", "none")
        assert engine.client.version()["ApiVersion"] == engine.client.api_version
        assert engine.client.ping() is True

    def test_a_client_that_is_too_new(self, engine: Engine) -> None:
        """A 400 that names both versions."""
        answer = engine.client.get("http+docker://localhost/v9.99/info")
        newest = engine.client.version()["ApiVersion"]
        assert answer.status_code == 400
        assert answer.json() == {
            "message": f"client version 9.99 is too new. Maximum supported API version is {newest}"
        }

    def test_a_call_that_does_not_exist(self, engine: Engine) -> None:
        """Page not found, as JSON."""
        answer = engine.client.get("http+docker://localhost/nosuch")
        assert (answer.status_code, answer.json()) == (404, {"message": "page not found"})

    def test_events_tell_of_the_life_of_a_container(self, engine: Engine) -> None:
        """Create, start, die with the exit code, destroy; labels choose them."""
        filters = {"type": "container", "label": f"{LABEL}={engine.prefix}"}
        stream = engine.client.events(filters=filters, decode=True)
        name = engine.run("sh", "-c", "exit 3", labels={"gs.k": "1"})
        engine.client.wait(name)
        engine.client.remove_container(name)
        seen: list[dict[str, Any]] = []
        for event in stream:
            seen.append(event)
            if event["Action"] == "destroy":
                break
        stream.close()
        actions = [event["Action"] for event in seen]
        assert [each for each in actions if each in ("create", "start", "die", "destroy")] == [
            "create",
            "start",
            "die",
            "destroy",
        ]
        died = next(event for event in seen if event["Action"] == "die")["Actor"]["Attributes"]
        assert (died["exitCode"], died["name"], died["gs.k"]) == ("3", name, "1")
