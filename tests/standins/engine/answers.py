"""The sentences a real Docker Engine 20.10 refuses with, in one place, so that the contract tests can pin them.

No state and no I/O. ``ApiError`` is an HTTP answer; ``StartError`` is one that also leaves its text and an exit
code in the container's state, as the engine does when a container cannot be started.
"""

from __future__ import annotations

from collections.abc import Sequence

_SHIM = "failed to create shim task: OCI runtime create failed: runc create failed: "
_START = _SHIM + "unable to start container process: "
_EXEC = "OCI runtime exec failed: exec failed: unable to start container process: "
_NOT_FOUND = 'exec: "{}": executable file not found in $PATH: unknown'


class ApiError(Exception):
    """An answer with an error status and the JSON body ``{"message": ...}``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class StartError(ApiError):
    """A start that failed: the container stays ``created`` with this exit code and text in its state."""

    def __init__(self, message: str, *, status: int = 500, exit_code: int = 128) -> None:
        super().__init__(status, message)
        self.exit_code = exit_code


class DropConnection(Exception):
    """Close the client's connection without an answer, as an engine that dies in mid-call does."""


def no_such_container(key: str) -> ApiError:
    """The answer for an id or name that is not there."""
    return ApiError(404, f"No such container: {key}")


def no_such_image(ref: str) -> ApiError:
    """The answer of create for an image that is not there."""
    return ApiError(404, f"No such image: {with_tag(ref)}")


def no_such_image_to_inspect(ref: str) -> ApiError:
    """The answer of inspect for an image that is not there: the engine says it twice."""
    return ApiError(404, f"no such image: {ref}: No such image: {with_tag(ref)}")


def image_in_use(image_id: str, why: str, *, forcible: bool) -> ApiError:
    """The answer of a removal that would take an image away from what needs it."""
    word = "must be forced" if forcible else "cannot be forced"
    return ApiError(409, f"conflict: unable to delete {short(image_id)} ({word}) - image {why}")


def name_needed(ref: str, container_id: str, image_id: str) -> ApiError:
    """The answer of a removal of the last name of an image that a container was made from."""
    return ApiError(
        409,
        f'conflict: unable to remove repository reference "{ref}" (must force) - container {short(container_id)}'
        f" is using its referenced image {short(image_id)}",
    )


def manifest_unknown(prefix: str = "") -> ApiError:
    """The answer of a registry that does not have what was asked for."""
    return ApiError(404, f"{prefix}manifest unknown: manifest unknown")


def no_registry(host: str) -> ApiError:
    """The answer for a registry that nobody runs."""
    return ApiError(500, f'Get "http://{host}/v2/": dial tcp {host}: connect: connection refused')


def no_such_exec(key: str) -> ApiError:
    """The answer for an exec instance that is not there."""
    return ApiError(404, f"No such exec instance: {key}")


def no_such_network(name: str) -> ApiError:
    """The answer for a network that is not there."""
    return ApiError(404, f"network {name} not found")


def no_such_volume(name: str) -> ApiError:
    """The answer for a volume that is not there."""
    return ApiError(404, f"get {name}: no such volume")


def name_in_use(name: str, holder: str) -> ApiError:
    """The answer of create for a name that another container holds."""
    return ApiError(
        409,
        f'Conflict. The container name "/{name}" is already in use by container "{holder}".'
        " You have to remove (or rename) that container to be able to reuse that name.",
    )


def not_running(container_id: str) -> ApiError:
    """The answer of exec for a container that does not run."""
    return ApiError(409, f"Container {container_id} is not running")


def cannot_remove(container_id: str, status: str) -> ApiError:
    """The answer of a remove without force for a container that still runs."""
    cure = "Unpause and then stop" if status == "paused" else "Stop"
    return ApiError(
        409,
        f"You cannot remove a {status} container {container_id}."
        f" {cure} the container before attempting removal or force remove",
    )


def removal_in_progress(container_id: str) -> ApiError:
    """The answer of a second remove while the first is still at work."""
    return ApiError(409, f"removal of container {container_id} is already in progress")


def pull_denied(ref: str) -> ApiError:
    """The answer of a registry that does not know the repository."""
    repository = ref.rsplit(":", 1)[0] if ":" in ref.rsplit("/", 1)[-1] else ref
    return ApiError(
        404,
        f"pull access denied for {repository}, repository does not exist or may require 'docker login':"
        " denied: requested access to the resource is denied",
    )


def executable_missing(executable: str) -> StartError:
    """The start of a command that is not in the image."""
    return StartError(_START + _NOT_FOUND.format(executable), status=400, exit_code=127)


def exec_missing(executable: str) -> str:
    """What an exec of a command that is not in the image prints."""
    return _EXEC + _NOT_FOUND.format(executable) + "\r\n"


def hook_failed(stderr: str) -> StartError:
    """The start of a container whose NVIDIA hook exits with 1, after its own first line and this text."""
    return StartError(
        f"{_START}error during container init: error running hook #0: error running hook: exit status 1,"
        f" stdout: , stderr: Auto-detected mode as 'legacy'\n{stderr}: unknown"
    )


def no_device_driver(driver: str, capabilities: Sequence[Sequence[str]]) -> StartError:
    """The start of a container whose device request no driver of the engine takes."""
    inner = " ".join("[" + " ".join(words) + "]" for words in capabilities)
    return StartError(f'could not select device driver "{driver}" with capabilities: [{inner}]')


def short(key: str) -> str:
    """The twelve digits by which the engine names things in its sentences."""
    return key.removeprefix("sha256:")[:12]


def with_tag(ref: str) -> str:
    """The reference with the tag that Docker assumes when none is given."""
    if "@" in ref or ref.startswith("sha256:") or ":" in ref.rsplit("/", 1)[-1]:
        return ref
    return f"{ref}:latest"
