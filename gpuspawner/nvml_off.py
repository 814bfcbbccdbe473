"""Words: why NVML tells nothing, for the student who meets it and for the admin who mends it. No I/O."""

from __future__ import annotations

import sys
from enum import Enum

from gpuspawner.texts import Text


class NvmlOff(str, Enum):
    """Why NVML tells nothing about any card."""

    LIBRARY_MISSING = "library-missing"
    DRIVER_NOT_LOADED = "driver-not-loaded"
    VERSION_MISMATCH = "version-mismatch"
    NO_PERMISSION = "no-permission"
    TOO_SLOW = "too-slow"
    WRONG_PACKAGE = "wrong-package"
    OTHER = "other"

    @property
    def text(self) -> Text:
        """The sentence for a student."""
        return _TEXTS[self]

    @property
    def advice(self) -> str:
        """What an admin does about it, for the log and for the doctor."""
        return _ADVICE[self]


def _ask_the_admin(en: str, ko: str) -> Text:
    return Text(
        f"The GPUs of this server cannot be used now: {en}. Choose a profile without a GPU, or ask the admin.",
        f"지금은 이 서버의 GPU를 사용할 수 없습니다. {ko}. GPU가 없는 프로필을 선택하거나 관리자에게 문의하세요.",
    )


_TEXTS = {
    NvmlOff.LIBRARY_MISSING: _ask_the_admin(
        "NVIDIA's driver is not installed", "NVIDIA 드라이버가 설치되어 있지 않습니다"
    ),
    NvmlOff.DRIVER_NOT_LOADED: _ask_the_admin("NVIDIA's driver is not running", "NVIDIA 드라이버가 실행 중이 아닙니다"),
    NvmlOff.VERSION_MISMATCH: _ask_the_admin(
        "NVIDIA's driver was updated and the server has to be restarted",
        "NVIDIA 드라이버가 업데이트되어 서버를 다시 시작해야 합니다",
    ),
    NvmlOff.NO_PERMISSION: _ask_the_admin(
        "the Hub may not speak to NVIDIA's driver", "허브에 NVIDIA 드라이버 접근 권한이 없습니다"
    ),
    NvmlOff.TOO_SLOW: _ask_the_admin("the driver does not answer", "드라이버가 응답하지 않습니다"),
    NvmlOff.WRONG_PACKAGE: _ask_the_admin(
        "the Hub's software is not installed correctly", "허브 소프트웨어가 올바르게 설치되지 않았습니다"
    ),
    NvmlOff.OTHER: _ask_the_admin("the driver reports an error", "드라이버에 오류가 있습니다"),
}

_ADVICE = {
    NvmlOff.LIBRARY_MISSING: (
        "libnvidia-ml.so.1 is not found: install NVIDIA's driver (Debian: nvidia-driver, Ubuntu: ubuntu-drivers "
        "install). A Hub in a container needs NVIDIA's runtime with NVIDIA_DRIVER_CAPABILITIES=utility. "
        "The Hub need not be restarted"
    ),
    NvmlOff.DRIVER_NOT_LOADED: (
        "the kernel module is not loaded: try `modprobe nvidia`; after a kernel update look at `dkms status`, with "
        "secure boot at `dmesg | grep -i nvidia`"
    ),
    NvmlOff.VERSION_MISMATCH: (
        "kernel module and libnvidia-ml are of different versions: the driver was upgraded without a reboot. Reboot, "
        "or reload the nvidia modules while no container uses them and restart the Hub"
    ),
    NvmlOff.NO_PERMISSION: (
        "the Hub's user may not open the driver's devices: look at `ls -l /dev/nvidia*`, and give a Hub in a "
        "container the devices"
    ),
    NvmlOff.TOO_SLOW: (
        "a call to NVML is overdue. A card may have fallen off the bus: look at `dmesg | grep -i xid`; nvidia-smi "
        "hangs as well then, and a reboot helps. Where the first call after a pause is slow: `nvidia-smi -pm 1`"
    ),
    NvmlOff.WRONG_PACKAGE: (
        "the module pynvml must be the one of nvidia-ml-py: run "
        f"`{sys.executable} -m pip uninstall -y pynvml nvidia-ml-py3` and then "
        f"`{sys.executable} -m pip install --force-reinstall 'nvidia-ml-py>=12.535,<14'`, and restart the Hub"
    ),
    NvmlOff.OTHER: "run `nvidia-smi` on the server: it should say the same",
}
