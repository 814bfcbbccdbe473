"""How an engine turns device requests into GPUs: pure rules, read in moby and tried on 20.10.24 and 28.5.2.

No state and no I/O. Every refusal here comes at start, never at create, as in the real engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import StartError, hook_failed, no_device_driver

VARIABLE = "NVIDIA_VISIBLE_DEVICES"
_CAPABILITIES = frozenset({"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"})
_CDI_KIND = "nvidia.com/gpu="


@dataclass(frozen=True)
class Host:
    """What the engine has: cards by UUID with their minor numbers, drivers, runtimes and its version."""

    gpus: Mapping[str, int] = field(default_factory=dict)
    nvidia_driver: bool = True
    cdi: bool = False
    default_runtime: str = "runc"
    version: str = "20.10.24"

    @property
    def major(self) -> int:
        """The first number of the engine's version."""
        return int(self.version.split(".", 1)[0])


@dataclass(frozen=True)
class Grant:
    """The cards that a started container sees, and the variables that the engine added behind its config."""

    gpus: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()


def grant(
    requests: Sequence[Mapping[str, Any]] | None,
    environment: Sequence[str],
    runtime: str,
    host: Host,
) -> Grant:
    """Which cards a container gets, from its device requests, its merged environment and its runtime.

    Several requests are not added up: each appends its variable and runc keeps the last one. Raises StartError.
    """
    added: list[str] = []
    cdi: list[str] = []
    hooked = False
    for request in requests or ():
        driver = _driver(request, host)
        if driver == "cdi":
            cdi += _cdi_cards(request, host)
            added.append(f"{VARIABLE}=void")
        else:
            hooked = True
            added += _hook_variables(request, host)
    if hooked or (not requests and (runtime or host.default_runtime) == "nvidia"):
        return Grant(_visible([*environment, *added], host), tuple(added))
    return Grant(tuple(cdi), tuple(added))


def _driver(request: Mapping[str, Any], host: Host) -> str:
    name = str(request.get("Driver") or "")
    capabilities: Sequence[Sequence[str]] = request.get("Capabilities") or ()
    if name == "cdi" and host.cdi:
        return name
    # Up to 28.x a named driver still has to match the capabilities (48038347d7 changed it for 29.0).
    matches = any(set(words) <= _CAPABILITIES for words in capabilities) or (host.major >= 29 and name == "nvidia")
    if name in ("", "nvidia") and host.nvidia_driver and matches:
        return "nvidia"
    raise no_device_driver(name, capabilities)


def _hook_variables(request: Mapping[str, Any], host: Host) -> list[str]:
    count = int(request.get("Count") or 0)
    ids = [str(each) for each in request.get("DeviceIDs") or ()]
    if count and ids:
        raise StartError("cannot set both Count and DeviceIDs on device request")
    if ids:
        return [f"{VARIABLE}={','.join(ids)}"]
    if count > 0:
        # Count is "the first n cards", never "n free ones": the mistake behind dockerspawner#331.
        return [f"{VARIABLE}={','.join(map(str, range(count)))}"]
    if count < 0:
        return [f"{VARIABLE}=all"]
    return [f"{VARIABLE}=void"] if host.major >= 28 else []


def _cdi_cards(request: Mapping[str, Any], host: Host) -> list[str]:
    names = [str(each) for each in request.get("DeviceIDs") or ()]
    if request.get("Count"):
        raise StartError("invalid parameter: cannot set Count on a CDI device request", status=400)
    by_name = _names(host)
    unknown = [name for name in names if name.removeprefix(_CDI_KIND) not in by_name or "=" not in name]
    if unknown:
        raise StartError(f"CDI device injection failed: unresolvable CDI devices {', '.join(unknown)}")
    return [uuid for name in names for uuid in by_name[name.removeprefix(_CDI_KIND)]]


def _visible(environment: Sequence[str], host: Host) -> tuple[str, ...]:
    values = dict(each.partition("=")[::2] for each in environment)
    wanted = values.get(VARIABLE)
    if wanted is None:
        # The toolkit takes an old CUDA image that says nothing to want everything.
        legacy = "CUDA_VERSION" in values and "NVIDIA_REQUIRE_CUDA" not in values
        wanted = "all" if legacy else "void"
    by_name = _names(host)
    cards: list[str] = []
    for name in wanted.split(","):
        if name in ("", "void", "none"):
            continue
        if name not in by_name:
            raise hook_failed(f"nvidia-container-cli: device error: {name}: unknown device")
        cards += [uuid for uuid in by_name[name] if uuid not in cards]
    return tuple(cards)


def _names(host: Host) -> dict[str, tuple[str, ...]]:
    """Every name that a card can be asked for by: ``all``, its UUID, its index in the order of minors."""
    ordered = sorted(host.gpus, key=lambda uuid: host.gpus[uuid])
    names = {"all": tuple(ordered)}
    names |= {uuid: (uuid,) for uuid in ordered}
    return names | {str(index): (uuid,) for index, uuid in enumerate(ordered)}
