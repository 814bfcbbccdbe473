"""Adapter: cards that are not there, for trying the Hub without a GPU, for the docs and for users' own tests.

They are counted, leased and shown like real ones; `simulated` keeps everything else from attaching a device.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.texts import Text
from gpuspawner.units import GIB, format_bytes, parse_bytes

MOST_CARDS = 64

_GROUP = re.compile(r"(?:(\d{1,4})\s*x\s*)?(\S.*)", re.IGNORECASE | re.ASCII)
_LOST = Text("This simulated GPU has been taken away.", "시뮬레이션 GPU를 사용할 수 없는 상태로 설정했습니다.")


class FakeGPUs:
    """Simulated cards, by `gpus.GpuSource`: `FakeGPUs("2x24GiB")`, `FakeGPUs("24GiB")`, `FakeGPUs("2x24GiB,1x12GiB")`.

    A card of 24 GiB calls itself an RTX 4090, so that profiles for that model find it. UUIDs are the same each time.

    Raises:
        ValueError: the text cannot be read, or asks for more than 64 cards.
    """

    def __init__(self, spec: str = "2x24GiB") -> None:
        self.spec = spec
        sizes = _sizes(spec)
        self._gpus = {gpu.uuid: gpu for gpu in (_card(index, size) for index, size in enumerate(sizes))}

    def __repr__(self) -> str:
        return f"FakeGPUs({self.spec!r})"

    def __deepcopy__(self, memo: object) -> FakeGPUs:
        # traitlets copies what is configured into each spawner, and all spawners must see the same cards.
        return self

    async def inventory(self) -> Inventory:
        """The cards as they are now. Never raises."""
        return Inventory(tuple(self._gpus.values()), simulated=True)

    def lose(self, uuid: str) -> None:
        """Let this card be out of order, as if it had fallen off the bus.

        Raises:
            ValueError: there is no such card.
        """
        self._set_fault(uuid, _LOST)

    def restore(self, uuid: str) -> None:
        """Let this card be well again.

        Raises:
            ValueError: there is no such card.
        """
        self._set_fault(uuid, None)

    def _set_fault(self, uuid: str, fault: Text | None) -> None:
        known = GpuUuid(uuid)
        if known not in self._gpus:
            raise ValueError(f"There is no simulated card {uuid!r}; there are {', '.join(self._gpus)}.")
        self._gpus[known] = replace(self._gpus[known], fault=fault)


def _sizes(spec: object) -> list[int]:
    """One number of bytes for each card."""
    wrong = f"FakeGPUs takes a text such as '2x24GiB' or '2x24GiB,1x12GiB', got {spec!r}"
    if not isinstance(spec, str):
        raise ValueError(wrong)
    sizes: list[int] = []
    for group in spec.split(","):
        match = _GROUP.fullmatch(group.strip())
        if match is None:
            raise ValueError(wrong)
        count = int(match[1] or 1)
        try:
            size = parse_bytes(match[2])
        except ValueError as error:
            raise ValueError(f"{wrong}: the size {error}") from error
        if not 1 <= count <= MOST_CARDS - len(sizes):
            raise ValueError(f"{wrong}: it can have 1 to {MOST_CARDS} cards")
        sizes += [size] * count
    return sizes


def _card(index: int, size: int) -> Gpu:
    return Gpu(
        uuid=GpuUuid(f"GPU-00000000-0000-4000-8000-{index:012x}"),
        index=index,
        name="NVIDIA GeForce RTX 4090" if size == 24 * GIB else f"Simulated GPU {format_bytes(size)}",
        memory_bytes=size,
    )
