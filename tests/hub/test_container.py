"""The container that the engine was really asked for: cards, limits, hardening, labels, homes and volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from gpuspawner import FakeGPUs
from gpuspawner.units import GIB
from tests.hub.lab import CARDS, PROFILES, Cards, Lab
from tests.hub.people import Person
from tests.standins.engine import Container, StandinEngine

NVIDIA = [{"Driver": "nvidia", "Count": 0, "Capabilities": [["gpu", "compute", "utility"]], "Options": {}}]


async def inspect(lab: Lab, person: Person, server: str = "") -> dict[str, Any]:
    """`docker inspect` of a person's container, by docker-py."""
    found = await lab.house.engine.find(person.container(server).name)
    assert found is not None
    return found


@pytest.mark.fault(9, 10)
@pytest.mark.parametrize(
    ("profile", "uuids"),
    [
        pytest.param("gpu", ["GPU-aaaa"], id="one card"),
        pytest.param("two", ["GPU-aaaa", "GPU-bbbb"], id="two cards"),
        pytest.param("share", ["GPU-aaaa"], id="share"),
    ],
)
async def test_exactly_the_leased_cards_are_requested_once(
    lab: Lab, alice: Person, profile: str, uuids: list[str]
) -> None:
    """One device request by UUID, with driver and capabilities; the same UUIDs in the variable and on the label."""
    await alice.start({"profile": profile})
    container = alice.container()
    assert container.host_config["DeviceRequests"] == [{**NVIDIA[0], "DeviceIDs": uuids}]
    assert container.env["NVIDIA_VISIBLE_DEVICES"] == ",".join(uuids)
    assert container.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert container.labels["gpuspawner.gpus"] == ",".join(uuids)
    assert list(container.gpus) == uuids
    assert sorted(await lab.leased()) == uuids


async def test_a_share_tells_its_budget(alice: Person) -> None:
    """The counted budget is on the label and in the variable that toolkits and frameworks read."""
    await alice.start({"profile": "share"})
    container = alice.container()
    assert container.labels["gpuspawner.vram"] == str(8 * GIB)
    assert container.env["NVIDIA_GPU_MEMORY_LIMIT"] == str(8 * 1024)


@pytest.mark.fault(11)
async def test_a_cpu_profile_gets_no_card_by_any_way(alice: Person) -> None:
    """No device request, `void` in the environment, and the plain runtime."""
    await alice.start({"profile": "cpu"})
    container = alice.container()
    assert not container.host_config["DeviceRequests"]
    assert container.env["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert container.host_config["Runtime"] == "runc"
    assert container.gpus == ()


@pytest.fixture
def greedy_engine() -> Iterator[StandinEngine]:
    """An engine whose default runtime is nvidia, with images that ask for every card."""
    with StandinEngine(gpus=CARDS, default_runtime="nvidia") as engine:
        for name in ("scipy", "pytorch"):
            engine.add_image(f"gpuspawner/{name}", env={"NVIDIA_VISIBLE_DEVICES": "all"})
        yield engine


@pytest.fixture
def cdi_engine() -> Iterator[StandinEngine]:
    """A newer engine, which lists the CDI names of its cards."""
    with StandinEngine(gpus=CARDS, cdi=True, version="28.5.2", api_version="1.51") as engine:
        for name in ("scipy", "pytorch"):
            engine.add_image(f"gpuspawner/{name}")
        yield engine


# The engine of a test comes before its `lab`, which stops its servers when the test is over.
def move(lab: Lab, engine: StandinEngine, **traits: Any) -> None:
    """Let the Hub work on another engine."""
    lab.engine = engine
    lab.configure(**traits)


@pytest.mark.fault(11)
async def test_under_a_default_nvidia_runtime_each_sees_only_its_own(greedy_engine: StandinEngine, lab: Lab) -> None:
    """Where the image alone would get all cards, a CPU profile gets none and a GPU profile its own."""
    move(lab, greedy_engine)
    cpu, gpu = await lab.person("cleo"), await lab.person("gus")
    await cpu.start({"profile": "cpu"})
    await gpu.start({"profile": "gpu"})
    assert cpu.container().gpus == ()
    assert cpu.container().host_config["Runtime"] == "runc"
    assert cpu.container().env["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert gpu.container().gpus == ("GPU-aaaa",)


@pytest.mark.parametrize(
    ("attach", "driver", "visible"),
    [
        pytest.param("auto", {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-aaaa"]}, "void", id="auto takes cdi"),
        pytest.param("cdi", {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-aaaa"]}, "void", id="cdi"),
        pytest.param("nvidia", {"Driver": "nvidia", "DeviceIDs": ["GPU-aaaa"]}, "GPU-aaaa", id="nvidia on request"),
    ],
)
async def test_where_the_engine_lists_cdi_names_they_are_used(
    cdi_engine: StandinEngine, lab: Lab, alice: Person, attach: str, driver: dict[str, Any], visible: str
) -> None:
    """`gpu_attach` decides; `auto` takes CDI where `docker info` lists the cards."""
    move(lab, cdi_engine, gpu_attach=attach)
    assert (await alice.start({"profile": "gpu"})).status == 201
    container = alice.container()
    (request,) = container.host_config["DeviceRequests"]
    assert driver.items() <= request.items()
    assert container.env["NVIDIA_VISIBLE_DEVICES"] == visible
    assert container.gpus == ("GPU-aaaa",)


async def test_simulated_cards_are_leased_and_never_attached(lab: Lab, alice: Person) -> None:
    """With FakeGPUs the card is on the label and counted, the container gets none, and the form says so."""
    lab.configure(gpus=FakeGPUs("2x24GiB"))
    await alice.start({"profile": "gpu"})
    container = alice.container()
    assert container.labels["gpuspawner.gpus"] in await lab.leased()
    assert not container.host_config["DeviceRequests"]
    assert container.env["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert container.host_config["Runtime"] == "runc"
    assert "Simulated GPUs" in (await alice.form("other")).text


async def test_limits_and_housekeeping_reach_the_engine(lab: Lab, alice: Person) -> None:
    """RAM without swap, CPU, shared memory, processes, init, log rotation; the container stays when it ends."""
    await alice.start({"profile": "gpu"})
    host = (await inspect(lab, alice))["HostConfig"]
    seen = {
        "Memory": 16 * GIB,
        "MemorySwap": 16 * GIB,
        "CpuPeriod": 100_000,
        "CpuQuota": 350_000,
        "ShmSize": 4 * GIB,
        "PidsLimit": 4096,
        "Init": True,
        "AutoRemove": False,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
        "SecurityOpt": ["no-new-privileges:true"],
        "CapDrop": ["ALL"],
    }
    assert {key: host[key] for key in seen} == seen
    environment = alice.container().env
    assert (environment["MEM_LIMIT"], environment["CPU_LIMIT"]) == (str(16 * GIB), "3.5")


async def test_the_profiles_own_shm_and_pids_limits_win(lab: Lab, alice: Person) -> None:
    """`shm_size` and `pids_limit` of a profile replace the defaults."""
    lab.configure(profile_list=[{**PROFILES[0], "shm_size": "1G", "pids_limit": 512}])
    await alice.start({})
    host = (await inspect(lab, alice))["HostConfig"]
    assert (host["ShmSize"], host["PidsLimit"]) == (GIB, 512)


async def test_without_a_profile_limit_the_configured_one_holds(lab: Lab, alice: Person) -> None:
    """c.Spawner's mem_limit and cpu_limit are the defaults of profiles that say nothing, on container and labels."""
    lab.configure(profile_list=[{"display_name": "Plain", "image": "scipy"}], mem_limit="2G", cpu_limit=1.5)
    await alice.start({})
    host = (await inspect(lab, alice))["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["CpuQuota"]) == (2 * GIB, 2 * GIB, 150_000)
    labels = alice.container().labels
    assert (labels["gpuspawner.mem-limit"], labels["gpuspawner.cpu-limit"]) == (str(2 * GIB), "1.5")


async def test_without_any_limit_the_lease_can_be_read(lab: Lab, alice: Person) -> None:
    """No limit is no number: a share stays a share of its card, and is not taken for the whole of it."""
    lab.configure(profile_list=[{"display_name": "Share", "image": "scipy", "gpu": {"memory": "8G"}}])
    await alice.start({})
    host = (await inspect(lab, alice))["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["CpuQuota"]) == (0, 0, 0)
    labels = alice.container().labels
    assert (labels["gpuspawner.mem-limit"], labels["gpuspawner.cpu-limit"]) == ("", "")
    assert await lab.leased() == {"GPU-aaaa": 8 * GIB}


async def test_the_labels_say_everything_about_the_lease(lab: Lab, alice: Person) -> None:
    """User, server, hub, profile, image, cards, start and limits are on the container, under the house's prefix."""
    await alice.start({"profile": "gpu"}, server="exp")
    container = alice.container("exp")
    ours = {key[11:]: value for key, value in container.labels.items() if key.startswith("gpuspawner.")}
    started = datetime.fromisoformat(ours.pop("started"))
    assert 0 <= (datetime.now(timezone.utc) - started).total_seconds() < 120
    assert len(ours.pop("id")) == 32
    image = next(each for each in lab.engine.images if each.ref == "gpuspawner/pytorch:latest")
    assert ours == {
        "lease": "1",
        "hub": "jupyter",
        "user": "alice",
        "server": "exp",
        "profile": "gpu",
        "image": "gpuspawner/pytorch:latest",
        "image-id": image.id,
        "gpus": "GPU-aaaa",
        "vram": "",
        "mem-limit": str(16 * GIB),
        "cpu-limit": "3.5",
        "time-limit": str(12 * 3600),
        "idle-timeout": "3600",
    }


def mounted(container: Container) -> dict[str, tuple[str, bool]]:
    """Where in the container → what is there, and whether it may be written."""
    return {
        mount["Destination"]: (mount.get("Name") or mount["Source"], bool(mount["RW"])) for mount in container.mounts
    }


async def test_the_home_is_a_labelled_volume_that_outlasts_the_server(lab: Lab, alice: Person) -> None:
    """A named volume for each user, with labels, mounted at the image's home and kept when the server stops."""
    await alice.start({"profile": "cpu"})
    assert mounted(alice.container()) == {"/home/jovyan": ("jupyter-home-alice", True)}
    await alice.stop()
    volume = lab.engine.volumes["jupyter-home-alice"]
    assert volume.labels == {"gpuspawner.home": "alice", "gpuspawner.hub": "jupyter"}


async def test_profile_volumes_join_the_configured_ones(lab: Lab, alice: Person) -> None:
    """Data sets are read-only unless the profile says otherwise; the admin's own volumes stay."""
    volumes = {
        "/srv/data/vision": "/data",
        "scratch-{username}": {"bind": "/scratch", "mode": "rw"},
        "/srv/{odd}": "/odd",
    }
    lab.configure(profile_list=[{**PROFILES[0], "volumes": volumes}], volumes={"/srv/all": "/all"})
    await alice.start({})
    assert mounted(alice.container()) == {
        "/home/jovyan": ("jupyter-home-alice", True),
        "/data": ("/srv/data/vision", False),
        "/scratch": ("scratch-alice", True),
        "/odd": ("/srv/{odd}", False),
        "/all": ("/srv/all", True),
    }


async def test_a_home_path_takes_the_place_of_the_volume(lab: Lab, alice: Person, tmp_path: Path) -> None:
    """`home_path_template` mounts the user's folder of the host, and no volume is made."""
    (tmp_path / "alice").mkdir()
    lab.configure(home_path_template=f"{tmp_path}/{{username}}")
    await alice.start({"profile": "cpu"})
    assert mounted(alice.container()) == {"/home/jovyan": (f"{tmp_path}/alice", True)}
    assert not lab.engine.volumes


async def test_a_home_that_cannot_be_made_is_a_sentence(lab: Lab, alice: Person, tmp_path: Path) -> None:
    """No traceback and no container where the folder of the host cannot be made."""
    (tmp_path / "file").write_text("not a folder")
    lab.configure(home_path_template=f"{tmp_path}/file/{{username}}")
    answer = await alice.start({"profile": "gpu"})
    assert answer.status == 503
    assert answer.message == "Your home folder could not be made on this server. Please tell the admin."
    await lab.nothing_is_left(alice)


# The CIS Docker Benchmark, section 5, as docker-bench-security checks it, where a notebook container can keep it.
CIS: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "5.4 capabilities are restricted": lambda _, host: host["CapDrop"] == ["ALL"] and not host["CapAdd"],
    "5.5 not privileged": lambda _, host: host["Privileged"] is False,
    "5.6 no sensitive host folders": lambda found, _: all(mount["Type"] == "volume" for mount in found["Mounts"]),
    "5.7 no sshd": lambda found, _: "sshd" not in str(found["Config"]["Cmd"]),
    "5.8 5.14 no port is published": lambda _, host: not host["PortBindings"] and not host["PublishAllPorts"],
    "5.10 not the host's network": lambda _, host: host["NetworkMode"] != "host",
    "5.11 a memory limit": lambda _, host: host["Memory"] > 0,
    "5.12 a CPU limit": lambda _, host: host["CpuQuota"] > 0,
    "5.15 no restart": lambda _, host: host["RestartPolicy"]["Name"] in ("", "no"),
    "5.16 not the host's processes": lambda _, host: host["PidMode"] != "host",
    "5.17 not the host's IPC": lambda _, host: host["IpcMode"] == "private",
    "5.18 no host devices beyond the lease": lambda _, host: not host["Devices"],
    "5.20 no shared propagation": lambda found, _: all("shared" not in m["Propagation"] for m in found["Mounts"]),
    "5.21 not the host's UTS": lambda _, host: host["UTSMode"] != "host",
    "5.22 seccomp and 5.2 AppArmor stay on": lambda _, host: "unconfined" not in str(host["SecurityOpt"]),
    "5.25 no cgroup parent": lambda _, host: not host["CgroupParent"],
    "5.26 no new privileges": lambda _, host: "no-new-privileges:true" in host["SecurityOpt"],
    "5.29 a limit of processes": lambda _, host: 0 < host["PidsLimit"] <= 4096,
    "5.31 not the host's user namespace": lambda _, host: host["UsernsMode"] != "host",
    "5.32 not the engine's socket": lambda found, _: "docker.sock" not in str(found["Mounts"]),
}


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
async def test_the_container_keeps_the_cis_benchmark(lab: Lab, alice: Person, profile: str) -> None:
    """One inspect, one statement for each item."""
    await alice.start({"profile": profile})
    found = await inspect(lab, alice)
    broken = [item for item, holds in CIS.items() if not holds(found, found["HostConfig"])]
    assert not broken


async def test_the_best_fitting_card_gets_the_share(lab: Lab, alice: Person, bob: Person) -> None:
    """Two shares go to one card, so that the other one stays whole for somebody else."""
    lab.cards = Cards()
    lab.configure()
    await alice.start({"profile": "share"})
    await bob.start({"profile": "share"})
    assert alice.container().gpus == bob.container().gpus == ("GPU-aaaa",)
    assert (await (await lab.person("carol")).start({"profile": "gpu"})).status == 201
