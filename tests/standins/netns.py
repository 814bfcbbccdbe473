"""A network namespace of its own for a test engine, with a way out to the machine's uplink.

dockerd rewrites the firewall and deletes the bridge docker0 of the namespace it runs in, so a second engine must
never share the machine's. What this module leaves in the root namespace is one veth interface and three iptables
rules that carry the namespace's name as their comment; `remove` takes all of it away again, also what a killed
run left behind. It knows nothing of Docker. "Root" is the namespace of the process that calls `create`: called from
inside a test namespace it makes one behind that, and has to be removed from there.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Private ranges that are rarely anybody's own network; a /30 is cut out of the first one that is free here.
_POOLS = ("10.99.0.0/24", "192.168.199.0/24", "172.30.250.0/24", "198.18.0.0/24")
_INSIDE = "uplink0"


class NetworkError(RuntimeError):
    """A command that sets up the network failed; the text holds the command and what it said."""


@dataclass(frozen=True)
class Network:
    """A namespace that is up: how to enter it, its two ends, and the MTU that fits the way out."""

    name: str
    host_address: str
    inside_address: str
    mtu: int

    @property
    def path(self) -> Path:
        """The file that nsenter --net wants."""
        return namespace_path(self.name)


def namespace_path(name: str) -> Path:
    """Where iproute2 keeps the namespace `name`."""
    return Path("/run/netns") / name


def enter(name: str, command: list[str]) -> list[str]:
    """`command`, run inside the namespace.

    nsenter and not `ip netns exec`: the latter mounts a new /sys, which hides the cgroups from dockerd.
    """
    return ["nsenter", f"--net={namespace_path(name)}", *command]


def create(name: str) -> Network:
    """Make the namespace and its way out; an existing one of that name is removed first."""
    remove(name)
    subnet = _free_subnet(name)
    host, inside = (str(address) for address in subnet.hosts())
    mtu = uplink_mtu()
    outside = _interface(name)
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", outside, "mtu", str(mtu), "type", "veth", "peer", "name", _INSIDE, "netns", name)
        _run("ip", "-n", name, "link", "set", _INSIDE, "mtu", str(mtu))
        _run("ip", "addr", "add", f"{host}/{subnet.prefixlen}", "dev", outside)
        _run("ip", "-n", name, "addr", "add", f"{inside}/{subnet.prefixlen}", "dev", _INSIDE)
        for prefix, interface in (((), outside), (("-n", name), _INSIDE), (("-n", name), "lo")):
            _run("ip", *prefix, "link", "set", interface, "up")
        _run("ip", "-n", name, "route", "add", "default", "via", host)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
        for rule in _rules(name, subnet, outside):
            _run("iptables", "-w", *rule)
    except BaseException:
        remove(name)
        raise
    return Network(name, host, inside, mtu)


def remove(name: str) -> None:
    """Take the namespace, its interface and its rules away; nothing happens if they are not there."""
    for table in ("nat", "filter"):
        for line in _run("iptables", "-w", "-t", table, "-S").splitlines():
            words = shlex.split(line)
            if name in words and words[0] == "-A":
                _run("iptables", "-w", "-t", table, "-D", *words[1:])
    if _link(_interface(name)):
        _run("ip", "link", "delete", _interface(name))
    if exists(name):
        _run("ip", "netns", "delete", name)


def exists(name: str) -> bool:
    """Whether there is a namespace of that name."""
    return namespace_path(name).exists()


def uplink_mtu() -> int:
    """The MTU of the interface that the default route uses; 1500 on a machine without one."""
    for route in json.loads(_run("ip", "-j", "-4", "route", "show", "default") or "[]"):
        return int(_link(route["dev"])["mtu"])
    return 1500


def nameservers() -> list[str]:
    """Resolvers to name to the engine, or none where it can use the machine's own file as it is.

    A resolver on a loopback address (systemd-resolved) can't be reached from another namespace; the ones behind
    it can.
    """
    own = _resolvers(Path("/etc/resolv.conf"))
    if any(not ipaddress.ip_address(address).is_loopback for address in own):
        return []
    return _resolvers(Path("/run/systemd/resolve/resolv.conf"))


def _resolvers(file: Path) -> list[str]:
    text = file.read_text() if file.exists() else ""
    return re.findall(r"^nameserver\s+(\d[\d.]+)", text, re.MULTILINE)


def _interface(name: str) -> str:
    """The outer veth's name: at most 15 characters, one per namespace name."""
    return "gst" + hashlib.sha256(name.encode()).hexdigest()[:10]


def _rules(name: str, subnet: ipaddress.IPv4Network, outside: str) -> Iterator[list[str]]:
    comment = ["-m", "comment", "--comment", name]
    out = ["-s", str(subnet), "!", "-o", outside, *comment]
    yield ["-t", "nat", "-A", "POSTROUTING", *out, "-j", "MASQUERADE"]
    # A Docker engine in the root namespace sets the policy of FORWARD to DROP: these come before its rules.
    yield ["-I", "FORWARD", "-i", outside, *comment, "-j", "ACCEPT"]
    yield ["-I", "FORWARD", "-o", outside, *comment, "-j", "ACCEPT"]


def _free_subnet(name: str) -> ipaddress.IPv4Network:
    taken = list(_networks_in_use())
    for pool in _POOLS:
        subnets = list(ipaddress.IPv4Network(pool).subnets(new_prefix=30))
        # Two engines that start at the same moment should not want the same one.
        first = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(subnets)
        for subnet in subnets[first:] + subnets[:first]:
            if not any(subnet.overlaps(other) for other in taken):
                return subnet
    raise NetworkError(f"No free subnet for the test network {name}: all of {', '.join(_POOLS)} are in use here.")


def _networks_in_use() -> Iterator[ipaddress.IPv4Network]:
    for route in json.loads(_run("ip", "-j", "-4", "route", "show", "table", "all") or "[]"):
        if route["dst"] != "default":
            yield ipaddress.IPv4Network(route["dst"], strict=False)
    for address in _resolvers(Path("/etc/resolv.conf")):
        yield ipaddress.IPv4Network(address)


def _link(name: str) -> dict[str, Any]:
    """What iproute2 tells of an interface; empty if there is none of that name.

    Not from /sys, which goes on showing the interfaces of the namespace that mounted it.
    """
    links: list[dict[str, Any]] = json.loads(_run("ip", "-j", "addr", "show"))
    return next((link for link in links if link.get("ifname") == name), {})


def _run(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise NetworkError(f"`{shlex.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
