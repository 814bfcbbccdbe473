"""Each image passes its own smoke test and those of everything that it stands on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.images.conftest import IMAGES, Box

pytestmark = pytest.mark.images


def test_an_image_keeps_what_it_stands_on_working(open_box: Callable[..., Box], smoke: str) -> None:
    """smoke_test.py of an image runs in it and in every image built on it."""
    box = open_box(mem_limit="4g")
    path = box.put("smoke_test.py", (IMAGES / smoke / "smoke_test.py").read_bytes())
    assert "ok: " in box.run("python", path).output
