"""Errors of docker-py as those of our own tree: a sentence for the student, or for the admin who builds images."""

from __future__ import annotations

import logging
import re

import requests
from docker.errors import APIError, DockerException, ImageNotFound

from gpuspawner.container import image_unfit
from gpuspawner.errors import (
    BuildError,
    DeviceFault,
    DiskFull,
    EngineDown,
    EngineError,
    EngineTimeout,
    ImageMissing,
    Refused,
)
from gpuspawner.texts import Text

LOG = logging.getLogger(__name__)

TELL_ADMIN = "Try again in a minute; if it stays so, tell the admin."
TELL_ADMIN_KO = "잠시 후 다시 시도하고, 계속되면 관리자에게 알려 주세요."

MAKE_ROOM = "Make room (images/build_images.py --prune, docker builder prune, docker system df), then try again."


def timeout(detail: str) -> EngineTimeout:
    """The sentence for a call that was given up."""
    return EngineTimeout(
        Text(
            f"The Docker engine is too slow to answer at the moment. {TELL_ADMIN}",
            f"Docker 엔진의 응답이 너무 느립니다. {TELL_ADMIN_KO}",
        ),
        detail=detail,
    )


def is_name_conflict(error: Exception) -> bool:
    """Whether a container could not be created because another one has its name."""
    return isinstance(error, APIError) and error.status_code == 409 and "already in use" in str(error.explanation)


# Not a bare "nvidia": names of users and images are in these texts too.
_DEVICE_SIGNS = ("device driver", "nvidia-container", "nvidia-cdi", "nvidia.com/", "cdi device", "nvml error")
_CANNOT_RUN = re.compile(r'exec: "[^"]*": .*(not found|no such file|permission denied)|no command specified')


def translate(error: Exception, *, image: str = "") -> Refused:
    """One of docker-py's errors as one of ours, with a sentence for the student and the original for the log."""
    if isinstance(error, Refused):
        return error
    detail = str(getattr(error, "explanation", None) or error)
    lower = detail.lower()
    if isinstance(error, requests.exceptions.ReadTimeout):
        return timeout(detail)
    # An APIError is an answer, although docker-py derives it from requests' errors as well.
    if isinstance(error, (DockerException, requests.RequestException)) and not isinstance(error, APIError):
        return EngineDown(
            Text(
                f"The Docker engine of this server does not answer. {TELL_ADMIN}",
                f"서버의 Docker 엔진이 응답하지 않습니다. {TELL_ADMIN_KO}",
            ),
            detail=detail,
        )
    if "no space left on device" in lower or "disk quota exceeded" in lower:
        return DiskFull(
            Text(
                "The disk of this server is full, so no server can start. Please tell the admin.",
                "서버의 디스크가 가득 차서 시작할 수 없습니다. 관리자에게 알려 주세요.",
            ),
            detail=detail,
        )
    if isinstance(error, ImageNotFound) or "no such image" in lower or "pull access denied" in lower:
        return image_missing(image, detail)
    if any(sign in lower for sign in _DEVICE_SIGNS):
        return DeviceFault(
            Text(
                "The GPU that was leased for you could not be attached to your server: it may have failed a moment "
                "ago. Nothing is running and no GPU is counted for you. Try again, and tell the admin if it recurs.",
                "할당된 GPU를 서버에 연결하지 못했습니다. 방금 카드에 문제가 생겼을 수 있습니다. "
                "서버는 실행되지 않았고 GPU도 반납되었습니다. 다시 시도하고, 반복되면 관리자에게 알려 주세요.",
            ),
            detail=detail,
        )
    if _CANNOT_RUN.search(lower):
        return image_unfit(detail)
    if not isinstance(error, DockerException):
        LOG.error("Not an error of the engine", exc_info=error)
    return EngineError(
        Text(
            f"The Docker engine could not start your server. {TELL_ADMIN}",
            f"Docker 엔진이 서버를 시작하지 못했습니다. {TELL_ADMIN_KO}",
        ),
        detail=detail,
    )


def build_command(name: str) -> str:
    """What an admin types to build an image of the shelf."""
    return f"images/build_images.py {name}"


def image_missing(reference: str, detail: str = "") -> ImageMissing:
    """The sentence for an image that is not there, with the command where it is one of the shelf's."""
    name = reference.removeprefix("gpuspawner/").partition(":")[0]
    fix = build_command(name) if reference.startswith("gpuspawner/") else f"docker pull {reference}"
    return ImageMissing(
        Text(
            f"The image {name!r} of this profile is not on this server yet. "
            f"Choose another profile, or ask the admin to run: {fix}",
            f"이 프로필의 이미지 {name!r}가 아직 서버에 없습니다. "
            f"다른 프로필을 선택하거나 관리자에게 다음 명령 실행을 요청하세요: {fix}",
        ),
        detail=detail or f"no such image: {reference}",
    )


def for_the_admin(error: Exception, *, where: str = "", waited_seconds: float | None = None) -> BuildError:
    """One of docker-py's errors for somebody who builds images: what is wrong with the engine, and what to do now.

    `where` is the engine's address as far as it is known, `waited_seconds` how long the call was given.
    """
    if "permission denied" in str(error).lower() and not isinstance(error, APIError):
        return BuildError(f"You may not use the Docker engine at {where}: use sudo, or join the group docker.")
    problem = translate(error)
    if isinstance(problem, EngineDown):
        how = f"at {where}" if where else f"any more: {problem.detail}"
        return BuildError(f"The Docker engine does not answer {how}. Start it: 'sudo systemctl start docker'.")
    if isinstance(problem, EngineTimeout):
        how = f"did not answer within {waited_seconds:g} seconds" if waited_seconds else "does not answer in time"
        return BuildError(f"The Docker engine {how} ({problem.detail}). Run this again when it does.")
    if isinstance(problem, DiskFull):
        return BuildError(f"The disk of the Docker engine is full. {MAKE_ROOM} Docker said: {problem.detail.strip()}")
    return BuildError(f"Docker said: {problem.detail.strip()}")
