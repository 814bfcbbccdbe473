"""A private Docker engine for tests: a real dockerd with fake GPUs, in a network namespace of its own.

It never touches the machine's own Docker: own namespace, own containerd, own data and run folders, own socket.
On its PATH the stand-in hook is found under the real hook's name, so that it accepts GPU requests on a machine
without a GPU; the flavour `default_runtime_nvidia` also has the stub OCI runtime as its default. Images stay in
the data folder between runs; containers, volumes and networks of an earlier run are swept at the start.

    with PrivateEngine() as engine:
        subprocess.run(engine.command(["pytest", "tests/engine"]), env={**os.environ, **engine.environment()})

or `python -m tests.standins.netns_engine up | down | restart | status | exec -- COMMAND`. Needs root.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.standins import netns, processes
from tests.standins.gpustate import STATE_VARIABLE, GpuState

NAME_VARIABLE = "GPUSPAWNER_TEST_ENGINE"
"""Names the engine that is up already, for tests that were started by `exec`."""
DATA_VARIABLE = "GPUSPAWNER_TEST_DATA"
"""Folder that holds one data folder per engine; /var/lib/gpuspawner-test by default."""

_HERE = Path(__file__).parent
_HOOK, _RUNTIME = "nvidia-container-runtime-hook", "nvidia-stub-runtime"
_PROGRAMS = {
    "dockerd": "docker.io",
    "containerd": "containerd",
    "runc": "runc",
    "docker": "docker.io (docker-cli from Debian 13 on)",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
}
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_START_SECONDS, _STOP_SECONDS = 60.0, 30.0
_OUTLIVING: list[subprocess.Popen[bytes]] = []
"""Daemons that this process has restarted and that stay when it ends: a forgotten Popen would warn of them."""


class EngineError(RuntimeError):
    """The engine did not start; the text ends with the tail of its log."""


def available() -> str | None:
    """Why no private engine can run here, as a sentence with what to do; None if it can."""
    if os.geteuid() != 0:
        return "A private Docker engine needs root: run this as root or with sudo."
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=_search_path()) is None:
            return f"A private Docker engine needs {program}: install the package {package}."
    effective = int(processes.status(os.getpid())["CapEff"], 16)
    for name, bit in _CAPABILITIES.items():
        if not effective >> bit & 1:
            return f"A private Docker engine needs the capability {name}, which this container does not have."
    return None


class PrivateEngine:
    """One engine, up between `up()` and `down()` or inside a `with` block.

    `up` attaches to a healthy engine of the same name and settings; leaving the `with` block stops only an
    engine that it started. Two engines of different names can be up at the same time.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        default_runtime_nvidia: bool = False,
        extra_path: Sequence[Path] = (),
        data_root: Path | None = None,
    ) -> None:
        self.name = name or ("nvidia" if default_runtime_nvidia else "main")
        self.default_runtime_nvidia = default_runtime_nvidia
        self.extra_path = tuple(extra_path)
        self.netns = f"gpuspawner-test-{self.name}"
        self.run_dir = Path("/run") / self.netns
        base = Path(os.environ.get(DATA_VARIABLE, "/var/lib/gpuspawner-test"))
        self.data_root = data_root or base / self.name
        self.socket = self.run_dir / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.state_file = self.run_dir / "gpus"
        self.hook_log = self.run_dir / "gpus.log"
        self.log = self.data_root / "engine.log"
        self._started = False
        self._children: list[subprocess.Popen[bytes]] = []

    @classmethod
    def from_environment(cls) -> PrivateEngine:
        """The engine whose `exec` runs this process, else one of the default name."""
        return cls(os.environ.get(NAME_VARIABLE))

    # -- use ----------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Variables for programs that use this engine (and tests that want its name and its GPU file)."""
        return {"DOCKER_HOST": self.host, STATE_VARIABLE: str(self.state_file), NAME_VARIABLE: self.name}

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, run where the containers' addresses can be reached."""
        return netns.enter(self.netns, list(command))

    def docker(self, *arguments: str, check: bool = True, stdin: bytes | None = None) -> str:
        """Run the docker client on this engine; its output, standard error included.

        Raises EngineError with that output if it fails and `check` is set.
        """
        command = ["docker", "--host", self.host, *arguments]
        done = subprocess.run(
            command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment(), check=False
        )
        text = done.stdout.decode(errors="replace").strip()
        if check and done.returncode != 0:
            raise EngineError(f"`docker {' '.join(arguments)}` failed on the engine {self.name}: {text}")
        return text

    @property
    def mtu(self) -> int:
        """What a network made in this engine should have as `com.docker.network.driver.mtu`."""
        file = self.run_dir / "mtu"
        return int(file.read_text()) if file.exists() else netns.uplink_mtu()

    def share_image(self, tag: str, other: PrivateEngine) -> None:
        """Copy an image from this engine into `other`, unless it is there with the same id."""
        inspect = ("image", "inspect", "--format", "{{.Id}}", tag)
        if other.docker(*inspect, check=False) == self.docker(*inspect):
            return
        save = ["docker", "--host", self.host, "save", tag]
        with subprocess.Popen(save, stdout=subprocess.PIPE, env=_environment()) as saved:
            load = ["docker", "--host", other.host, "load", "--quiet"]
            subprocess.run(load, stdin=saved.stdout, stdout=subprocess.DEVNULL, env=_environment(), check=True)
        if saved.returncode != 0:
            raise EngineError(f"The image {tag} could not be read from the engine {self.name}.")

    def tail(self, lines: int = 30) -> str:
        """The end of the engine's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # -- start and stop -------------------------------------------------------------------------------------

    def is_up(self) -> bool:
        """Whether it answers."""
        return processes.answers(self.socket)

    def up(self) -> bool:
        """Start it, or attach to the one that is up; True if it was started. Raises EngineError."""
        reason = available()
        if reason:
            raise EngineError(reason)
        if os.environ.get(NAME_VARIABLE) == self.name and self.is_up():
            return False  # this process runs in its network: whatever its settings, a restart would cut both off
        with _locked():
            mark = self.run_dir / "settings"
            if self.is_up() and netns.exists(self.netns) and mark.exists() and mark.read_text() == self._settings():
                return False
            self._stop()
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
            mark.write_text(self._settings())
            self._started = True
        self._sweep()
        return True

    def down(self) -> None:
        """Stop it with all its containers and take its network away; the images stay."""
        with _locked():
            self._stop()
        self._started = False

    def __enter__(self) -> PrivateEngine:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            self.down()

    def _start(self) -> None:
        network = netns.create(self.netns)
        self.data_root.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        programs = self._install_programs()
        (self.run_dir / "mtu").write_text(str(network.mtu))
        if not self.state_file.exists():
            GpuState().write(self.state_file)
        path = ":".join([str(programs), *map(str, self.extra_path), _search_path()])
        containerd = self.run_dir / "containerd.sock"
        (self.run_dir / "containerd.toml").write_text(self._containerd_config(containerd))
        daemon = self._daemon_config(programs, containerd, network.mtu)
        (self.run_dir / "daemon.json").write_text(json.dumps(daemon, indent=2))
        (self.run_dir / "path").write_text(path)
        self._children.append(self._launch("containerd", "--log-level", "warn", "--config", "containerd.toml"))
        self._wait_for("containerd", self._children[-1], lambda: processes.connects(containerd))
        self._children.append(self._launch("dockerd", "--config-file", "daemon.json"))
        self._wait_for("dockerd", self._children[-1], self.is_up)

    def _launch(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of the two daemons; the last argument is a file of the run folder."""
        *flags, file = arguments
        environment = {
            **_environment(),
            "PATH": (self.run_dir / "path").read_text(),
            STATE_VARIABLE: str(self.state_file),
        }
        command = self.command([program, *flags, str(self.run_dir / file)])
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._pidfile(program).write_text(str(started.pid))
        return started

    def _wait_for(self, program: str, started: subprocess.Popen[bytes], answers: Callable[[], bool]) -> None:
        if not processes.wait(answers, started, _START_SECONDS):
            raise EngineError(f"The private {program} of {self.name} did not start:\n{self.tail()}")

    def stop_daemon(self, *, kill: bool = False) -> None:
        """End dockerd alone, as `systemctl stop docker` does, or with `kill` as a crash does.

        An orderly end stops the containers; after a crash they go on until the next dockerd ends them.
        """
        with _locked():
            if (pid := self._daemon_pid()) is not None:
                processes.stop(pid, 0 if kill else _STOP_SECONDS)
            for child in (*self._children, *_OUTLIVING):
                child.poll()
            # A crash leaves it, and dockerd refuses to start while some process has that number.
            (self.run_dir / "engine.pid").unlink(missing_ok=True)

    def start_daemon(self) -> None:
        """Start dockerd again after `stop_daemon`; it stays when this process ends. Raises EngineError."""
        with _locked():
            _OUTLIVING.append(self._launch("dockerd", "--config-file", "daemon.json"))
            self._wait_for("dockerd", _OUTLIVING[-1], self.is_up)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """dockerd takes connections and answers nothing."""
        pid = self._daemon_pid()
        if pid is None:
            raise EngineError(f"The private dockerd of {self.name} does not run.")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _daemon_pid(self) -> int | None:
        pid = processes.read_pid(self._pidfile("dockerd"))
        return pid if pid is not None and processes.runs(pid, "dockerd", f"{self.run_dir}/") else None

    def _stop(self) -> None:
        """Stop whatever of this engine is left: a healthy one, or the pieces of one that was killed."""
        if self.is_up():
            running = self.docker("ps", "--quiet", check=False).split()
            if running:
                self.docker("kill", *running, check=False)
        for program in ("dockerd", "containerd"):
            pid = processes.read_pid(self._pidfile(program))
            if pid is not None and processes.runs(pid, program, f"{self.run_dir}/"):
                processes.stop(pid, _STOP_SECONDS)
        while self._children:
            self._children.pop().wait()
        for pid in processes.of("containerd-shim-runc-v2", f"{self.run_dir}/"):
            for process in (*processes.children(pid), pid):
                processes.stop(process, 0)
        processes.unmount_below(self.run_dir, self.data_root)
        netns.remove(self.netns)
        if self.run_dir.exists():
            shutil.rmtree(self.run_dir)

    def _sweep(self) -> None:
        containers = self.docker("ps", "--all", "--quiet").split()
        if containers:
            self.docker("rm", "--force", "--volumes", *containers)
        volumes = self.docker("volume", "ls", "--quiet").split()
        if volumes:
            self.docker("volume", "rm", *volumes)
        self.docker("network", "prune", "--force")

    # -- settings -------------------------------------------------------------------------------------------

    def _pidfile(self, program: str) -> Path:
        return self.run_dir / f"{program}.pid"

    def _install_programs(self) -> Path:
        """Copies of hook and runtime under the names that engine and runtime look for."""
        folder = self.run_dir / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        for source, name in (("gpu_hook.py", _HOOK), ("stub_runtime.py", _RUNTIME)):
            system = Path("/usr/bin/python3")
            python = system if system.exists() else Path(sys.executable)
            _, _, body = (_HERE / source).read_text(encoding="utf-8").partition("\n")
            (folder / name).write_text(f"#!{python} -IS\n{body}", encoding="utf-8")
            (folder / name).chmod(0o755)
        return folder

    def _containerd_config(self, socket: Path) -> str:
        # The opt plugin would make a folder in /opt, and the CRI one would look for Kubernetes' networks.
        disabled = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
        return (
            f"version = 2\nroot = {json.dumps(str(self.data_root / 'containerd'))}\n"
            f"state = {json.dumps(str(self.run_dir / 'containerd'))}\n"
            f"disabled_plugins = {json.dumps(disabled)}\n[grpc]\naddress = {json.dumps(str(socket))}\n"
        )

    def _daemon_config(self, programs: Path, containerd: Path, mtu: int) -> dict[str, object]:
        config: dict[str, object] = {
            "data-root": str(self.data_root / "docker"),
            "exec-root": str(self.run_dir / "exec"),
            "pidfile": str(self.run_dir / "engine.pid"),  # dockerd refuses to start on one that is there
            "hosts": [self.host],
            "containerd": str(containerd),
            "mtu": mtu,
            "shutdown-timeout": 5,
            # Works on cgroup v1 and v2, with and without systemd.
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        }
        servers = netns.nameservers()
        if servers:
            config["dns"] = servers
        if self.default_runtime_nvidia:
            config["runtimes"] = {"nvidia": {"path": str(programs / _RUNTIME)}}
            config["default-runtime"] = "nvidia"
        return config

    def _settings(self) -> str:
        """Changes whenever an engine that is up would no longer be what was asked for."""
        parts = [repr((self.default_runtime_nvidia, self.extra_path, self.data_root))]
        sources = ("gpu_hook.py", "stub_runtime.py", "netns.py", "netns_engine.py")
        parts += [(_HERE / source).read_text(encoding="utf-8") for source in sources]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _environment() -> dict[str, str]:
    """This process's environment without what would lead a docker program to another engine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}


def _search_path() -> str:
    return ":".join([os.environ.get("PATH", "/usr/bin:/bin"), *_SBIN])


@contextmanager
def _locked() -> Iterator[None]:
    """One engine starts or stops at a time on this machine: subnets and leftovers are looked up first."""
    with Path("/run/gpuspawner-test.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status of `exec` is that of its command, `status` answers 3 if it is down."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.standins.netns_engine",
        usage="%(prog)s [--name NAME] [--nvidia] up | down | restart | status | exec -- COMMAND",
        description="A private Docker engine with fake GPUs, in a network namespace of its own.",
    )
    parser.add_argument("action", choices=("up", "down", "restart", "status", "exec"))
    parser.add_argument("--name", help="name of the engine (default: main, or nvidia)")
    parser.add_argument("--nvidia", action="store_true", help="the stub runtime is the default runtime")
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options, command = parser.parse_args(words[:end]), words[end + 1 :]
    if (options.action == "exec") != bool(command):
        parser.error("exec, and only exec, is followed by -- and a command")
    engine = PrivateEngine(options.name, default_runtime_nvidia=options.nvidia)
    try:
        if options.action == "down":
            engine.down()
        elif options.action == "up":
            print(f"{'started' if engine.up() else 'was up'}: {engine.host}")
        elif not engine.is_up():
            print(f"The engine {engine.name} is down.", file=sys.stderr)
            return 3
        elif options.action == "restart":
            engine.stop_daemon()
            engine.start_daemon()
    except (EngineError, netns.NetworkError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.action == "exec":
        entered = engine.command(command)
        os.execvpe(entered[0], entered, {**os.environ, **engine.environment()})
    if options.action == "status":
        print("\n".join(f"{name}={value}" for name, value in engine.environment().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
