"""Rules: a choice and a lease become a `ContainerSpec`; a dead or wrong container becomes a sentence.

Pure: plain values in, plain values out; no await, no clock, no environment, no I/O. This is the only module below the
adapters that speaks Docker's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from jupyterhub.slugs import safe_slug

from gpuspawner.errors import ConfigError, GpuNotArrived, ImageUnfit, Reason, Refused, ServerDied
from gpuspawner.gpus import Gpu
from gpuspawner.leases import Lease, Owner, encode
from gpuspawner.profiles import Choice
from gpuspawner.texts import Text
from gpuspawner.units import GIB, MIB, format_bytes

Attachment = Literal["nvidia", "cdi", "simulated"]

# Keys of `extra_host_config` that would hand out cards behind the lease's back (laws 2 and 3 of the design).
FORBIDDEN_HOST_CONFIG = ("device_requests", "runtime", "privileged", "devices", "auto_remove")
FORBIDDEN_CREATE_KWARGS = ("host_config", "image", "name", "runtime")

_CDI_KIND = "nvidia.com/gpu"
# Docker's word for "what the notebook needs of the driver": CUDA and nvidia-smi, not graphics or video.
_CAPABILITIES = ["gpu", "compute", "utility"]


@dataclass(frozen=True)
class Defaults:
    """What holds for every notebook container unless its profile says otherwise. None: no limit.

    `shm_fraction` is the part of the memory limit that may be shared memory. `home_path_template` is a folder of the
    host with `{username}` in it; "" means a named volume for each user.
    """

    mem_limit_bytes: int | None = None
    cpu_limit: float | None = None
    shm_fraction: float = 0.25
    pids_limit: int = 4096
    log_max_size: str = "10m"
    log_max_files: int = 3
    home_path_template: str = ""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image: Docker's id of it and the home folder of its user."""

    reference: str
    id: str
    home: str = "/home/jovyan"


@dataclass(frozen=True)
class ContainerSpec:
    """A whole container as plain values. `host_config` holds docker-py's keyword arguments of the same name."""

    name: str
    image: str
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    mem_limit_bytes: int | None
    cpu_limit: float | None
    binds: Mapping[str, Mapping[str, str]]
    host_config: Mapping[str, Any]
    home_volume: str | None = None
    home_path: str | None = None

    @property
    def attached(self) -> bool:
        """Whether real cards are asked of the engine."""
        return "device_requests" in self.host_config


def object_name(owner: Owner) -> str:
    """The name of a server's container: `<hub>-<user>` or `<hub>-<user>--<server>`.

    Different owners have different names: `safe_slug` appends a hash to everything that it had to change and never
    leaves two hyphens in a row, so `--` cannot come from a name. Up to 63 characters behind the hub's prefix.
    """
    user = f"{owner.hub}-{safe_slug(owner.user)}"
    return f"{user}--{safe_slug(owner.server)}" if owner.server else user


def home_volume_name(owner: Owner) -> str:
    """The name of a user's home volume: one for all servers of the user."""
    return f"{owner.hub}-home-{safe_slug(owner.user)}"


def build(
    choice: Choice,
    lease: Lease,
    image: ImageFacts,
    attachment: Attachment,
    defaults: Defaults,
) -> ContainerSpec:
    """Everything that Docker needs to know about a new container."""
    profile, owner = choice.profile, lease.owner
    mem_limit = lease.limits.mem_limit_bytes
    host_config: dict[str, Any] = {
        "auto_remove": False,
        "init": True,
        "ipc_mode": "private",
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        "pids_limit": profile.pids_limit or defaults.pids_limit,
        "shm_size": profile.shm_size_bytes or _default_shm(mem_limit, defaults),
        "log_config": {
            "Type": "json-file",
            "Config": {"max-size": defaults.log_max_size, "max-file": str(defaults.log_max_files)},
        },
    }
    if mem_limit is not None:
        # Equal to the memory limit: no swap. Without it Docker grants as much swap again.
        host_config["memswap_limit"] = mem_limit
    host_config.update(_devices(lease, attachment))
    home_volume, home_path = _home(owner, defaults)
    binds = {str(home_path or home_volume): {"bind": image.home, "mode": "rw"}}
    for source, volume in profile.volumes.items():
        binds[source.replace("{username}", safe_slug(owner.user))] = {"bind": volume.bind, "mode": volume.mode}
    return ContainerSpec(
        name=object_name(owner),
        image=image.reference,
        labels=encode(lease),
        environment=_environment(lease, attachment),
        mem_limit_bytes=mem_limit,
        cpu_limit=lease.limits.cpu_limit,
        binds=binds,
        host_config=host_config,
        home_volume=home_volume,
        home_path=home_path,
    )


def attachment_for(mode: str, lease_uuids: Sequence[str], cdi_devices: Sequence[str], *, simulated: bool) -> Attachment:
    """How the leased cards get in: by CDI where the engine lists all their names, else by NVIDIA's hook.

    `mode` is "auto", "nvidia" or "cdi". `cdi_devices` is what `docker info` calls DiscoveredDevices (engine ≥ 28.2).
    """
    if simulated:
        return "simulated"
    if mode == "cdi":
        return "cdi"
    listed = {name for name in cdi_devices if name.startswith(_CDI_KIND)}
    if mode == "auto" and lease_uuids and all(f"{_CDI_KIND}={uuid}" in listed for uuid in lease_uuids):
        return "cdi"
    return "nvidia"


def _devices(lease: Lease, attachment: Attachment) -> dict[str, Any]:
    uuids = [card.uuid for card in lease.cards]
    if not uuids or attachment == "simulated":
        # `void` in the environment and the plain runtime: each alone keeps the cards out, whatever the image says.
        return {"runtime": "runc"}
    if attachment == "cdi":
        return {"device_requests": [{"Driver": "cdi", "DeviceIDs": [f"{_CDI_KIND}={uuid}" for uuid in uuids]}]}
    # One request with all cards: of two requests the engine lets the last one win.
    return {"device_requests": [{"Driver": "nvidia", "DeviceIDs": uuids, "Capabilities": [_CAPABILITIES]}]}


def _environment(lease: Lease, attachment: Attachment) -> dict[str, str]:
    uuids = [card.uuid for card in lease.cards]
    if not uuids or attachment == "simulated":
        return {"NVIDIA_VISIBLE_DEVICES": "void"}
    environment = {
        # Under CDI the engine attaches the cards itself; `void` keeps a default nvidia runtime from doing it again.
        "NVIDIA_VISIBLE_DEVICES": "void" if attachment == "cdi" else ",".join(uuids),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if lease.vram_bytes is not None:
        # Toolkits that can enforce a limit read this one; the others are the frameworks' own manners. None is a wall.
        environment["NVIDIA_GPU_MEMORY_LIMIT"] = str(lease.vram_bytes // MIB)
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return environment


def _default_shm(mem_limit_bytes: int | None, defaults: Defaults) -> int:
    """Docker's own 64 MiB breaks PyTorch's DataLoader; what is used of it counts against the memory limit."""
    return int(mem_limit_bytes * defaults.shm_fraction) if mem_limit_bytes else GIB


def _home(owner: Owner, defaults: Defaults) -> tuple[str | None, str | None]:
    if defaults.home_path_template:
        return None, defaults.home_path_template.replace("{username}", safe_slug(owner.user))
    return home_volume_name(owner), None


def check_host_config(host_config: Mapping[str, Any]) -> None:
    """Raises ConfigError where an admin's `extra_host_config` would decide about cards or keep a container."""
    if refused := sorted(set(FORBIDDEN_HOST_CONFIG) & set(host_config)):
        raise ConfigError(
            f"extra_host_config must not set {', '.join(refused)}: GPUSpawner decides which cards a container gets. "
            "Use the 'gpu' key of a profile."
        )


def check_create_kwargs(create_kwargs: Mapping[str, Any]) -> None:
    """Raises ConfigError where an admin's `extra_create_kwargs` would make another container than the leased one."""
    if refused := sorted(set(FORBIDDEN_CREATE_KWARGS) & set(create_kwargs)):
        raise ConfigError(
            f"extra_create_kwargs must not set {', '.join(refused)}: GPUSpawner decides which container is made. "
            "Use a profile, or extra_host_config."
        )


T = TypeVar("T")


def literal(value: T) -> T:
    """`value` with every `{` and `}` doubled, so that DockerSpawner's template rendering gives back what was meant."""
    if isinstance(value, str):
        return value.replace("{", "{{").replace("}", "}}")  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {literal(key): literal(item) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return type(value)(literal(item) for item in value)
    return value


# --- did the cards arrive? -------------------------------------------------------------------------------------------

_BEGIN, _MIDDLE, _END = "--- nodes ---", "--- nvidia-smi ---", "--- end ---"

# docker-py loses what arrives in one packet with the header of the answer: hence the pause, and the marks that tell
# whether the answer is whole.
ARRIVAL_PROBE = (
    "sh",
    "-c",
    f"sleep 0.1 2>/dev/null || sleep 1; echo '{_BEGIN}'; ls -1 /dev | grep -E '^nvidia[0-9]+$'; echo '{_MIDDLE}'; "
    f"command -v nvidia-smi >/dev/null && nvidia-smi -L 2>&1; echo '{_END}'",
)

_ANSWER = re.compile(f"^{_BEGIN}\n(.*)^{_MIDDLE}\n(.*){_END}$", re.MULTILINE | re.DOTALL)
_NODE = re.compile(r"^nvidia\d+$", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SMI_LINE = re.compile(r"^GPU \d+: .*\(UUID: (GPU-[0-9a-fA-F-]+)\)", re.MULTILINE)


def is_whole_answer(output: str) -> bool:
    """Whether nothing is lost of what `ARRIVAL_PROBE` printed. If something is, one has to ask again."""
    return _ANSWER.search(output) is not None


def check_arrival(leased: Sequence[Gpu], output: str) -> GpuNotArrived | None:
    """Compare what `ARRIVAL_PROBE` printed in a container with the cards leased for it; None when all is well.

    Two witnesses: the device nodes (where the driver told their minor numbers) and `nvidia-smi -L` (where the toolkit
    mounted it). `NVIDIA_VISIBLE_DEVICES` is no witness: under CDI it says `void`.
    """
    answer = _ANSWER.search(output)
    if answer is None:
        return _not_arrived("the container did not answer the check", "컨테이너가 확인에 응답하지 않았습니다", output)
    nodes, smi_text = set(_NODE.findall(answer[1])), answer[2]
    if all(gpu.minor is not None for gpu in leased):
        expected = {f"nvidia{gpu.minor}" for gpu in leased}
        if missing := sorted(expected - nodes):
            return _not_arrived(
                f"the device /dev/{missing[0]} is missing in the container",
                f"컨테이너에 /dev/{missing[0]} 장치가 없습니다",
                output,
            )
        if extra := sorted(nodes - expected):
            return _not_arrived(
                f"the container also sees /dev/{extra[0]}, which is not leased",
                f"할당되지 않은 /dev/{extra[0]} 장치가 함께 보입니다",
                output,
            )
    if smi_text.strip():
        seen = set(_SMI_LINE.findall(smi_text))
        if seen != {gpu.uuid for gpu in leased}:
            first = _readable(smi_text.strip().splitlines()[0])
            return _not_arrived(
                f"nvidia-smi in the container does not list exactly the leased cards (it says: {first})",
                f"컨테이너의 nvidia-smi 결과가 할당된 카드와 다릅니다 ({first})",
                output,
            )
    elif not all(gpu.minor is not None for gpu in leased):
        return _not_arrived("nvidia-smi is missing in the container", "컨테이너에 nvidia-smi가 없습니다", output)
    return None


def _not_arrived(part: str, part_ko: str, output: str) -> GpuNotArrived:
    return GpuNotArrived(
        Text(
            f"The GPU did not arrive in your server: {part}. Your server was stopped; please tell the admin.",
            f"GPU가 서버에 연결되지 않았습니다: {part_ko}. 서버를 중지했습니다. 관리자에게 알려 주세요.",
        ),
        detail=(
            f"the container printed: {output.strip()!r}. If the toolkit ignored the request, look at "
            "accept-nvidia-visible-devices-envvar-when-unprivileged in its config.toml, and at stale CDI specs"
        ),
    )


# --- why did it die? -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What a dead container leaves behind: Docker's state of it and the end of its log, or why that was not read."""

    exit_code: int
    out_of_memory: bool = False
    error: str = ""
    log_lines: tuple[str, ...] = field(default=())
    log_trouble: str = ""

    @property
    def record(self) -> str:
        """Everything, for the Hub's log."""
        nothing = f"(it could not be read: {self.log_trouble})" if self.log_trouble else "(no output)"
        tail = "\n    ".join(self.log_lines) or nothing
        return (
            f"exit code {self.exit_code}, out of memory: {self.out_of_memory}, error: {self.error!r}, log:\n    {tail}"
        )


def last_words(evidence: Evidence, mem_limit_bytes: int | None) -> Refused:
    """The one sentence that a student reads about a container that ended by itself."""
    if evidence.out_of_memory:
        limit = f" ({format_bytes(mem_limit_bytes)})" if mem_limit_bytes else ""
        return ServerDied(
            Text(
                f"Your server ran out of memory{limit} and was stopped. Load less data at once, or choose a profile "
                "with more RAM.",
                f"메모리{limit}가 부족하여 서버가 종료되었습니다. 한 번에 불러오는 데이터를 줄이거나 "
                "RAM이 더 큰 프로필을 선택하세요.",
            ),
            reason=Reason.OUT_OF_MEMORY,
            detail=evidence.record,
        )
    if evidence.exit_code in (126, 127):
        return image_unfit(evidence.record)
    said = next((words for line in reversed(evidence.log_lines) if (words := _readable(line))), "")
    last = f" Its last words were: “{said}”." if said else ""
    last_ko = f" 마지막 출력: “{said}”." if said else ""
    return ServerDied(
        Text(
            f"Your server ended by itself with exit code {evidence.exit_code}.{last} "
            "Start it again; if it ends again, tell the admin.",
            f"서버가 종료 코드 {evidence.exit_code}(으)로 스스로 종료되었습니다.{last_ko} "
            "다시 시작해 보고, 반복되면 관리자에게 알려 주세요.",
        ),
        detail=evidence.record,
    )


def image_unfit(detail: str) -> ImageUnfit:
    """The sentence for an image that is there and cannot serve."""
    return ImageUnfit(
        Text(
            "The image of this profile cannot run a notebook server (jupyterhub-singleuser is missing in it). "
            "Choose another profile and tell the admin.",
            "이 프로필의 이미지에는 노트북 서버(jupyterhub-singleuser)가 없습니다. "
            "다른 프로필을 선택하고 관리자에게 알려 주세요.",
        ),
        detail=detail,
    )


def _readable(line: str, limit: int = 160) -> str:
    """The start of a line that was made for a terminal, as a person reads it on a page."""
    return "".join(character for character in _COLOUR.sub("", line) if character.isprintable()).strip()[:limit]
