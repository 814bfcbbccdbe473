"""What the images for GPUs promise besides: the GPU's use is shown, and a server without one starts all the same."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.images.conftest import Box

FAMILY = ("pytorch", "tensorflow", "cuda")
pytestmark = pytest.mark.images

Open = Callable[..., Box]


def test_the_gpu_panel_is_there_and_does_without_a_driver(open_box: Open) -> None:
    """On a profile without a GPU the panel finds none, and nothing of the server is missing."""
    box = open_box()
    box.serve()
    assert "jupyterlab-nvdashboard" in box.get("/lab")
    found = json.loads(box.get("/nvdashboard/accelerators/check"))
    assert (found["has_gpu"], found["ngpus"]) == (False, 0)


def test_the_gpu_panel_asks_once_a_second_and_not_ten_times(open_box: Open) -> None:
    """The page asks the driver at this rate for each open chart."""
    box = open_box()
    box.serve()
    page = json.loads(box.get("/lab/api/settings/jupyterlab-nvdashboard:config"))
    assert page["schema"]["properties"]["updateFrequency"]["default"] == 1000


def test_the_driver_is_not_part_of_the_image(open_box: Open) -> None:
    """The machine's own driver is attached together with the GPU: another one in the image would hide it."""
    code = (
        "find / -xdev ( -name 'libcuda.so.*' -o -name 'libnvidia-ml.so.*' -o -name nvidia-smi ) -not -path '*/compat/*'"
    )
    found = open_box().run("sh", "-c", code.replace("(", r"\(").replace(")", r"\)") + " 2>/dev/null || true").output
    assert found == ""
