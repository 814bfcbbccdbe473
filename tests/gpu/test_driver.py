"""On a machine with a real NVIDIA driver: what NVML tells us is what `nvidia-smi` shows."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from gpuspawner.nvml import Nvml

pytestmark = pytest.mark.gpu


@pytest.fixture
def listed() -> dict[str, str]:
    """UUID → name, as `nvidia-smi -L` prints them."""
    program = shutil.which("nvidia-smi")
    shown = subprocess.run([program, "-L"], capture_output=True, text=True, check=False) if program else None
    if shown is None or shown.returncode != 0:
        pytest.skip("there is no NVIDIA driver on this machine")
    return {
        uuid: name for name, uuid in re.findall(r"^GPU \d+: (.*) \(UUID: (GPU-[^)]+)\)", shown.stdout, re.MULTILINE)
    }


async def test_the_inventory_is_what_nvidia_smi_lists(listed: dict[str, str]) -> None:
    """Every card by its UUID and name, with its memory and the number of its device node."""
    inventory = await Nvml().inventory()
    assert inventory.trouble is None
    assert {gpu.uuid: gpu.name for gpu in inventory.gpus} == listed
    assert all(gpu.memory_bytes > 1024**3 for gpu in inventory.gpus)
    assert all(gpu.minor is not None for gpu in inventory.gpus)


async def test_every_card_tells_its_memory_and_its_processes(listed: dict[str, str]) -> None:
    """What quarantine judges by is known on a real driver, and a look leaves no error of a card behind."""
    source = Nvml()
    inventory = await source.look_anew()
    assert set(inventory.samples) == set(listed)
    assert all(sample.used_bytes is not None for sample in inventory.samples.values())
    assert all(sample.pids is not None for sample in inventory.samples.values())
    assert source.take_xids() == ()
