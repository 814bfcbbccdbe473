"""How engines take GPU requests, which is what the leases stand on.

As in ``test_engine_contract``, each case runs against the stand-in and against a real engine.
"""

from __future__ import annotations

from typing import Any

import pytest
from docker.types import DeviceRequest

from tests.contract.engines import CARDS, Engine, refusal

pytestmark = pytest.mark.contract

FIRST, SECOND = CARDS


def gpus(*requests: DeviceRequest) -> dict[str, Any]:
    """A host config with these device requests."""
    return {"device_requests": list(requests)}


def request(*ids: str, driver: str = "nvidia", **more: Any) -> DeviceRequest:
    """A device request for cards by id."""
    return DeviceRequest(driver=driver, device_ids=list(ids), **{"capabilities": [["gpu"]], **more})


def nodes_in(engine: Engine, *asked: DeviceRequest, host: dict[str, Any] | None = None, **more: Any) -> list[str]:
    """The card nodes in a container with these requests."""
    name = engine.run("sleep", "60", host={**gpus(*asked), **(host or {})}, **more)
    _, text = engine.output(name, "sh", "-c", "for f in /dev/nvidia[0-9]*; do [ -e $f ] && echo $f; done")
    return text.split()


class TestDeviceRequests:
    """How GPU requests are taken, where all errors come: at start."""

    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            pytest.param(
                request("a", driver="nosuch"),
                'could not select device driver "nosuch" with capabilities: [[gpu]]',
                id="unknown driver",
            ),
            pytest.param(
                request("a", driver="nvidia", capabilities=None),
                'could not select device driver "nvidia" with capabilities: []',
                id="no capabilities",
            ),
            pytest.param(
                request("a", driver="", capabilities=[["gpu", "bogus"], ["bogus"]]),
                'could not select device driver "" with capabilities: [[gpu bogus] [bogus]]',
                id="no driver has these capabilities",
            ),
            pytest.param(
                request("nvidia.com/gpu=0", driver="cdi", capabilities=None),
                'could not select device driver "cdi" with capabilities: []',
                id="CDI on an engine without it",
            ),
        ],
    )
    def test_what_no_driver_takes_fails_at_start(self, engine: Engine, asked: DeviceRequest, text: str) -> None:
        """Create works, start is a 500, and the container stays created with code 128 and the text."""
        name = engine.create("sleep", "60", host=gpus(asked))
        assert refusal(engine.client.start, name) == (500, text)
        state = engine.state(name)
        assert (state["Status"], state["ExitCode"], state["Error"]) == ("created", 128, text)
        assert engine.listed(everything=True) == [name]

    @pytest.mark.parametrize(
        ("asked", "nodes"),
        [
            pytest.param([request(FIRST)], [0], id="one by UUID"),
            pytest.param([request(SECOND, driver="")], [1], id="any driver"),
            pytest.param([request(FIRST, SECOND, capabilities=[["gpu", "compute"]])], [0, 1], id="two in one request"),
            pytest.param([request(FIRST, capabilities=[["bogus"], ["gpu", "utility"]])], [0], id="second alternative"),
            pytest.param([request("1")], [1], id="by index"),
            pytest.param([request(FIRST), request(SECOND)], [1], id="of two requests the last wins"),
            pytest.param([DeviceRequest(count=1, capabilities=[["gpu"]])], [0], id="count 1 is the first card"),
            pytest.param([DeviceRequest(count=-1, capabilities=[["gpu"]])], [0, 1], id="count -1 is all"),
            pytest.param([], [], id="none"),
        ],
    )
    def test_which_cards_arrive(self, gpu_engine: Engine, asked: list[DeviceRequest], nodes: list[int]) -> None:
        """The nodes in the container are those of the request."""
        assert nodes_in(gpu_engine, *asked) == [f"/dev/nvidia{each}" for each in nodes]

    @pytest.mark.parametrize("value", ["all", "void"])
    def test_a_request_beats_the_containers_variable(self, gpu_engine: Engine, value: str) -> None:
        """Whatever the environment says, the request's cards arrive."""
        found = nodes_in(gpu_engine, request(SECOND), environment={"NVIDIA_VISIBLE_DEVICES": value})
        assert found == ["/dev/nvidia1"]

    def test_the_injected_variable_is_not_shown(self, gpu_engine: Engine) -> None:
        """Neither inspect nor an exec has it: the request in the host config is the record."""
        name = gpu_engine.run("sleep", "60", host=gpus(request(SECOND)))
        info = gpu_engine.client.inspect_container(name)
        assert not any(each.startswith("NVIDIA_VISIBLE") for each in info["Config"]["Env"])
        assert info["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == [SECOND]
        assert gpu_engine.output(name, "sh", "-c", "echo [$NVIDIA_VISIBLE_DEVICES]") == (0, "[]\n")

    def test_a_node_that_arrived_is_a_device_that_opens(self, gpu_engine: Engine) -> None:
        """A character device that can be read."""
        name = gpu_engine.run("sleep", "60", host=gpus(request(SECOND)))
        test = "test -c /dev/nvidia1 && cat /dev/nvidia1 && test -c /dev/nvidiactl"
        assert gpu_engine.output(name, "sh", "-c", test) == (0, "")

    def test_count_and_ids_together_fail_at_start(self, gpu_engine: Engine) -> None:
        """The engine's own check, behind the choice of a driver."""
        name = gpu_engine.create("sleep", "60", host=gpus(request(FIRST, count=1)))
        status, text = refusal(gpu_engine.client.start, name)
        assert (status, text) == (500, "cannot set both Count and DeviceIDs on device request")

    def test_an_unknown_card_fails_at_start(self, gpu_engine: Engine) -> None:
        """A 500 with the hook's words; the container stays created with code 128."""
        name = gpu_engine.create("sleep", "60", host=gpus(request("GPU-gone")))
        status, text = refusal(gpu_engine.client.start, name)
        assert status == 500
        assert text == (
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to start"
            " container process: error during container init: error running hook #0: error running hook:"
            " exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n"
            "nvidia-container-cli: device error: GPU-gone: unknown device: unknown"
        )
        state = gpu_engine.state(name)
        assert (state["Status"], state["ExitCode"], state["Error"]) == ("created", 128, text)


class TestDefaultNvidiaRuntime:
    """The hole of many GPU hosts: under a default ``nvidia`` runtime the environment alone gives cards."""

    @pytest.mark.parametrize(
        ("environment", "runtime", "asked", "nodes"),
        [
            pytest.param({"NVIDIA_VISIBLE_DEVICES": "all"}, None, [], [0, 1], id="all gives all"),
            pytest.param({"CUDA_VERSION": "11.0"}, None, [], [0, 1], id="an old CUDA image gives all"),
            pytest.param({}, None, [], [], id="a plain image gives none"),
            pytest.param({"NVIDIA_VISIBLE_DEVICES": "void"}, None, [], [], id="void gives none"),
            pytest.param({"NVIDIA_VISIBLE_DEVICES": "all"}, "runc", [], [], id="runc gives none"),
            pytest.param({"NVIDIA_VISIBLE_DEVICES": SECOND}, None, [], [1], id="by UUID"),
            pytest.param({"NVIDIA_VISIBLE_DEVICES": "void"}, None, [request(FIRST)], [0], id="a request beats void"),
            pytest.param({"NVIDIA_VISIBLE_DEVICES": "all"}, None, [request(FIRST)], [0], id="a request beats all"),
        ],
    )
    def test_who_sees_which_cards(
        self,
        nvidia_engine: Engine,
        environment: dict[str, str],
        runtime: str | None,
        asked: list[DeviceRequest],
        nodes: list[int],
    ) -> None:
        """Only ``void`` and the plain runtime keep cards away; a device request always decides."""
        host = {"runtime": runtime} if runtime else {}
        found = nodes_in(nvidia_engine, *asked, host=host, environment=environment)
        assert found == [f"/dev/nvidia{each}" for each in nodes]
