"""The engine's records as the JSON that its API gives: inspect, list, image, network, volume, info, version.

Pure: records in, dictionaries out. The shapes and defaults were read off a real 20.10.24.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from .devices import Host
from .state import Container, ExecRun, Image, Network, Store, Volume

_NEVER = "0001-01-01T00:00:00Z"
_ROOT = "/var/lib/docker"
_HOST_CONFIG: dict[str, Any] = {
    "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "json-file", "Config": {}},
    "NetworkMode": "default", "PortBindings": None, "RestartPolicy": {"Name": "", "MaximumRetryCount": 0},
    "AutoRemove": False, "VolumeDriver": "", "VolumesFrom": None, "CapAdd": None, "CapDrop": None,
    "CgroupnsMode": "host", "Dns": None, "DnsOptions": None, "DnsSearch": None, "ExtraHosts": None,
    "GroupAdd": None, "IpcMode": "private", "Cgroup": "", "Links": None, "OomScoreAdj": 0, "PidMode": "",
    "Privileged": False, "PublishAllPorts": False, "ReadonlyRootfs": False, "SecurityOpt": None,
    "UTSMode": "", "UsernsMode": "", "ShmSize": 67108864, "Runtime": "", "CpuShares": 0, "Memory": 0,
    "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0, "CpuPeriod": 0, "CpuQuota": 0, "CpusetCpus": "",
    "CpusetMems": "", "Devices": None, "DeviceCgroupRules": None, "DeviceRequests": None,
    "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": None, "OomKillDisable": False,
    "PidsLimit": None, "Ulimits": None,
}  # fmt: skip
_CONFIG: dict[str, Any] = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": True,
    "AttachStderr": True, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None,
    "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": {},
}  # fmt: skip


def stamp(seconds: float | None) -> str:
    """Seconds since 1970 as the engine's time stamp; None is the engine's "never"."""
    if seconds is None:
        return _NEVER
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def host_config(given: Mapping[str, Any], default_runtime: str) -> dict[str, Any]:
    """The host config that a container keeps: what was given over the engine's defaults."""
    kept = copy.deepcopy(_HOST_CONFIG) | {key: value for key, value in given.items() if value is not None}
    kept["Runtime"] = kept["Runtime"] or default_runtime
    if kept["Memory"] and not kept["MemorySwap"]:
        # A memory limit alone lets the engine add as much swap.
        kept["MemorySwap"] = 2 * kept["Memory"]
    return kept


def config(given: Mapping[str, Any], image: Image, container_id: str) -> dict[str, Any]:
    """The config that a container keeps: what was given over what the image says."""
    kept = copy.deepcopy(_CONFIG)
    kept |= {key: given[key] for key in kept if given.get(key) is not None}
    if given.get("ExposedPorts"):
        kept["ExposedPorts"] = {port: {} for port in given["ExposedPorts"]}
    own = {each.partition("=")[0] for each in kept["Env"] or ()}
    kept["Env"] = [*(kept["Env"] or ()), *(each for each in image.env if each.partition("=")[0] not in own)]
    if not kept["Entrypoint"]:
        # An entrypoint of one's own drops the image's command as well.
        kept["Cmd"] = kept["Cmd"] or list(image.cmd) or None
        kept["Entrypoint"] = list(image.entrypoint) or None
    kept["Hostname"] = kept["Hostname"] or container_id[:12]
    kept["Labels"] = {**image.labels, **(kept["Labels"] or {})}
    kept["WorkingDir"] = kept["WorkingDir"] or image.workdir
    kept["User"] = kept["User"] or image.user
    return kept


def state(container: Container) -> dict[str, Any]:
    """The State part of inspect."""
    return {
        "Status": container.status,
        "Running": container.running,
        "Paused": container.status == "paused",
        "Restarting": False,
        "OOMKilled": container.oom_killed,
        "Dead": False,
        "Pid": container.body.pid if container.body is not None else 0,
        "ExitCode": container.exit_code,
        "Error": container.error,
        "StartedAt": stamp(container.started),
        "FinishedAt": stamp(container.finished),
    }


def networks(container: Container) -> dict[str, Any]:
    """The networks of a container; the address is empty while it does not run."""
    ip = container.ip if container.running else ""
    endpoint = {
        "IPAMConfig": None, "Links": None, "Aliases": None, "NetworkID": "", "EndpointID": "",
        "Gateway": "127.1.0.1" if ip else "", "IPAddress": ip, "IPPrefixLen": 16 if ip else 0,
        "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "",
        "DriverOpts": None,
    }  # fmt: skip
    return {name: dict(endpoint) for name in container.endpoints}


def inspect(container: Container) -> dict[str, Any]:
    """The answer of ``GET /containers/{id}/json``."""
    command = container.command
    nets = networks(container)
    return {
        "Id": container.id,
        "Created": stamp(container.created),
        "Path": command[0],
        "Args": command[1:],
        "State": state(container),
        "Image": container.image.id,
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "Driver": "overlay2",
        "Platform": "linux",
        "LogPath": f"{_ROOT}/containers/{container.id}/{container.id}-json.log" if container.started else "",
        "ExecIDs": None,
        "HostConfig": container.host_config,
        "Mounts": container.mounts,
        "Config": container.config,
        "NetworkSettings": {
            "Ports": container.ports if container.running else {},
            "IPAddress": nets.get("bridge", {}).get("IPAddress", ""),
            "Networks": nets,
        },
    }


def summary(container: Container) -> dict[str, Any]:
    """One element of the answer of ``GET /containers/json``."""
    ports: list[dict[str, Any]] = []
    for key, bindings in (container.ports if container.running else {}).items():
        private, _, kind = key.partition("/")
        plain = {"PrivatePort": int(private), "Type": kind}
        published = [{"IP": b["HostIp"], "PublicPort": int(b["HostPort"])} for b in bindings or ()]
        ports += [{**each, **plain} for each in published] or [plain]
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.config["Image"],
        "ImageID": container.image.id,
        "Command": " ".join(container.command),
        "Created": int(container.created),
        "Ports": ports,
        "Labels": container.labels,
        "State": container.status,
        "Status": _words(container),
        "HostConfig": {"NetworkMode": container.host_config["NetworkMode"]},
        "NetworkSettings": {"Networks": networks(container)},
        "Mounts": container.mounts,
    }


def _words(container: Container) -> str:
    if container.running:
        suffix = " (Paused)" if container.status == "paused" else ""
        return f"Up {_ago(container.started)}{suffix}"
    if container.status == "exited":
        return f"Exited ({container.exit_code}) {_ago(container.finished)} ago"
    return container.status.capitalize()


def _ago(since: float | None) -> str:
    seconds = int(time.time() - (since or 0))
    return f"{seconds} seconds" if seconds else "Less than a second"


def image(record: Image, names: Sequence[str], digests: Sequence[str], tagged: float | None) -> dict[str, Any]:
    """The answer of ``GET /images/{name}/json``; ``tagged`` None: never."""
    return {
        "Id": record.id,
        "RepoTags": list(names),
        "RepoDigests": list(digests),
        "Parent": record.parent,
        "Created": stamp(record.created),
        "Config": _CONFIG
        | {
            "AttachStdout": False,
            "AttachStderr": False,
            "Env": list(record.env) or None,
            "Cmd": list(record.cmd) or None,
            "Entrypoint": list(record.entrypoint) or None,
            "Labels": dict(record.labels) or None,
            "WorkingDir": record.workdir,
            "User": record.user,
        },
        "Architecture": "amd64",
        "Os": "linux",
        "Size": record.size,
        "VirtualSize": record.size,
        "RootFS": {"Type": "layers", "Layers": [layer.id for layer in record.layers if layer.size]},
        "Metadata": {"LastTagTime": stamp(tagged)},
    }


def image_summary(record: Image, names: Sequence[str], digests: Sequence[str]) -> dict[str, Any]:
    """One element of the answer of ``GET /images/json``."""
    nameless = not names and not digests
    return {
        "Id": record.id,
        "RepoTags": ["<none>:<none>"] if nameless else list(names) or None,
        "RepoDigests": ["<none>@<none>"] if nameless else list(digests) or None,
        "Created": int(record.created),
        "Labels": dict(record.labels) or None,
        "Size": record.size,
        "VirtualSize": record.size,
        "SharedSize": -1,
        "Containers": -1,
        "ParentId": record.parent,
    }


def history(record: Image, names: Sequence[str]) -> list[dict[str, Any]]:
    """The answer of ``GET /images/{name}/history``: the newest layer first, and only that one has names."""
    return [
        {
            "Id": record.id if layer is record.layers[-1] else "<missing>",
            "Created": layer.created,
            "CreatedBy": layer.created_by,
            "Size": layer.size,
            "Comment": layer.comment,
            "Tags": list(names) if layer is record.layers[-1] and names else None,
        }
        for layer in reversed(record.layers)
    ]


def network(record: Network, containers: Sequence[Container]) -> dict[str, Any]:
    """The answer of ``GET /networks/{name}``."""
    return {
        "Name": record.name,
        "Id": record.id,
        "Scope": "local",
        "Driver": record.driver,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": [{"Subnet": "127.1.0.0/16"}]},
        "Internal": record.internal,
        "Attachable": False,
        "Containers": {
            each.id: {"Name": each.name, "IPv4Address": f"{each.ip}/16"}
            for each in containers
            if each.running and record.name in each.endpoints
        },
        "Options": dict(record.options),
        "Labels": dict(record.labels),
    }


def volume(record: Volume) -> dict[str, Any]:
    """The answer of ``GET /volumes/{name}``."""
    return {
        "CreatedAt": stamp(time.time()),
        "Driver": record.driver,
        "Labels": None if record.labels is None else dict(record.labels),
        "Mountpoint": f"{_ROOT}/volumes/{record.name}/_data",
        "Name": record.name,
        "Options": None if record.options is None else dict(record.options),
        "Scope": "local",
    }


def exec_run(record: ExecRun) -> dict[str, Any]:
    """The answer of ``GET /exec/{id}/json``."""
    return {
        "ID": record.id,
        "Running": record.running,
        "ExitCode": record.exit_code,
        "ProcessConfig": {
            "tty": record.tty,
            "entrypoint": record.command[0],
            "arguments": record.command[1:],
            "privileged": False,
        },
        "OpenStdin": False,
        "OpenStderr": True,
        "OpenStdout": True,
        "CanRemove": False,
        "ContainerID": record.container.id,
        "DetachKeys": "",
        "Pid": record.pid,
    }


def version(host: Host, api_version: str) -> dict[str, Any]:
    """The answer of ``GET /version``."""
    return {
        "Platform": {"Name": ""},
        "Components": [{"Name": "Engine", "Version": host.version, "Details": {"ApiVersion": api_version}}],
        "Version": host.version,
        "ApiVersion": api_version,
        "MinAPIVersion": "1.12",
        "Os": "linux",
        "Arch": "amd64",
    }


def info(store: Store, host: Host, runtimes: Sequence[str], cgroup_driver: str) -> dict[str, Any]:
    """The answer of ``GET /info``; CDI appears in it only where the engine has it."""
    statuses = [each.status for each in store.containers.values()]
    answer: dict[str, Any] = {
        "ID": store.engine_id,
        "Name": "stand-in",
        "Containers": len(statuses),
        "ContainersRunning": statuses.count("running"),
        "ContainersPaused": statuses.count("paused"),
        "ContainersStopped": sum(each in ("created", "exited", "dead") for each in statuses),
        "Images": len(store.images),
        "Driver": "overlay2",
        "ServerVersion": host.version,
        "Runtimes": {name: {"path": name} for name in runtimes},
        "DefaultRuntime": host.default_runtime,
        "CgroupDriver": cgroup_driver,
        "CgroupVersion": "1",
        "DockerRootDir": _ROOT,
        "NCPU": 8,
        "MemTotal": 64 * 1024**3,
        "OperatingSystem": "stand-in engine",
        "OSType": "linux",
        "Architecture": "x86_64",
        "SecurityOptions": ["name=seccomp,profile=default"],
        "Warnings": None,
    }
    if host.cdi:
        answer["CDISpecDirs"] = ["/etc/cdi", "/var/run/cdi"]
        answer["DiscoveredDevices"] = [
            {"Source": "cdi", "ID": f"nvidia.com/gpu={name}"}
            for name in [*map(str, range(len(host.gpus))), *host.gpus, "all"]
        ]
    return answer
