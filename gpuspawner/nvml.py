"""Adapter: the cards of this machine as NVIDIA's driver tells of them, and the only import of `pynvml`.

`Nvml` answers with an `Inventory` and never raises: what cannot be known becomes a sentence. It knows nothing of
leases and decides nothing: it reports faults, samples and XIDs, and `placement` leaves out what has a fault.

NVML calls block, and hang where a card has fallen off the bus. They run on one daemon thread of the process, so that
neither the event loop nor the end of the process waits for them, and a hanging call never gets a second one on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

from gpuspawner.gpus import Gpu, GpuUuid, Inventory, Sample, Xid
from gpuspawner.nvml_off import NvmlOff
from gpuspawner.texts import Text

# NVML's own numbers rather than pynvml's names: they are the ABI, and old modules lack some of the names.
_NOT_SUPPORTED, _FUNCTION_NOT_FOUND, _LOST_CARD, _RESET_REQUIRED = 3, 13, 15, 16
_XID_EVENT = 0x8
_MOST_EVENTS = 256
"""In one look; the driver keeps the others for the next."""
_OFF_BY_CODE = {
    4: NvmlOff.NO_PERMISSION,
    9: NvmlOff.DRIVER_NOT_LOADED,
    10: NvmlOff.TOO_SLOW,
    12: NvmlOff.LIBRARY_MISSING,
    18: NvmlOff.VERSION_MISMATCH,
}
_CALLS = (
    "nvmlInitWithFlags",
    "nvmlInit",
    "nvmlShutdown",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetMigMode",
)

_LOST = Text(
    "This GPU does not answer any more; it is left out until the admin has looked after it.",
    "이 GPU가 응답하지 않아 관리자가 점검할 때까지 제외됩니다.",
)
_NEEDS_RESET = Text(
    "This GPU has to be reset by the admin; it is left out until then.",
    "이 GPU는 관리자가 초기화해야 하며 그때까지 제외됩니다.",
)
_GONE = Text(
    "This GPU is not there any more; it is left out until it comes back.",
    "이 GPU가 더 이상 보이지 않아 다시 나타날 때까지 제외됩니다.",
)
_MIG = Text(
    "This GPU is cut into MIG instances, which are not leased here; the admin can turn MIG off.",
    "이 GPU는 MIG로 분할되어 있어 여기서는 사용할 수 없습니다. 관리자가 MIG를 끌 수 있습니다.",
)
_NO_MEMORY = Text(
    "This GPU does not say how much memory it has; it is left out.",
    "이 GPU의 메모리 크기를 알 수 없어 제외됩니다.",
)


class Nvml:
    """The real cards, by `gpus.GpuSource`.

    A look that takes longer than `deadline_seconds` counts as no answer until it comes back. An answer is used again
    for `cache_seconds`, and callers at one moment share one look.
    """

    def __init__(self, deadline_seconds: float = 5.0, cache_seconds: float = 1.0) -> None:
        self._deadline_seconds = deadline_seconds
        self._cache_seconds = cache_seconds
        self._look: _Look | None = None
        self._known: dict[GpuUuid, Gpu] = {}
        self._off: NvmlOff | None = None
        self._xids: deque[Xid] = deque()

    def __deepcopy__(self, memo: object) -> Nvml:
        # traitlets copies what is configured into each spawner, and all spawners must see the same cards.
        return self

    @property
    def off(self) -> NvmlOff | None:
        """Why the last answer was trouble; None where it was not, or before the first one."""
        return self._off

    async def inventory(self) -> Inventory:
        """All cards: those that answer, and with a fault those that this process has seen and that do not any more."""
        answer = await self._answer()
        self._off = answer.off
        return answer.inventory

    async def look_anew(self) -> Inventory:
        """As `inventory`, without an answer from before this call, unless the driver is still busy with that one."""
        if self._look is not None and self._look.future.done():
            self._look = None
        return await self.inventory()

    def take_xids(self) -> tuple[Xid, ...]:
        """The XIDs that looks have met since the last call.

        Between looks of one session the driver keeps them. While a card is lost each look is a session of its own, and
        what happens to the others in between is not heard.
        """
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._xids.popleft())
        return tuple(taken)

    async def _answer(self) -> _Answer:
        look = self._current_look()
        if look.future.done():
            return look.future.result()
        # Overdue looks are not waited for at all: each waiter would leave a callback behind on a call that hangs.
        left = look.started + self._deadline_seconds - time.monotonic()
        if left > 0:
            # Not wait_for, which may swallow a cancellation before Python 3.12.
            done, _ = await asyncio.wait([asyncio.wrap_future(look.future)], timeout=left)
            if done:
                return look.future.result()
        return _trouble(NvmlOff.TOO_SLOW, f"no answer for {time.monotonic() - look.started:.1f} s")

    def _current_look(self) -> _Look:
        look = self._look
        if look is None or look.pid != os.getpid() or look.older_than(self._cache_seconds):
            look = self._look = _Look()
            # Marked as running at once, so that a caller who gives up cannot cancel it for the others.
            look.future.set_running_or_notify_cancel()
            try:
                worker = _worker_of_this_process()
            except RuntimeError as error:  # "can't start new thread"
                look.future.set_result(_trouble(NvmlOff.OTHER, repr(error)))
                return look
            future = look.future
            worker.submit(lambda: future.set_result(self._read(worker)))
        return look

    def _read(self, worker: _Worker) -> _Answer:
        """One look, on the worker's thread. Never raises."""
        try:
            readings = worker.readings()
            self._xids.extend(worker.xids())
        except _WrongPackage as error:
            return _trouble(NvmlOff.WRONG_PACKAGE, str(error))
        except Exception as error:
            return _trouble(_OFF_BY_CODE.get(_code(error) or 0, NvmlOff.OTHER), _said(error))
        inventory = _inventory(readings, self._known)
        self._known |= {r.gpu.uuid: replace(r.gpu, fault=None) for r in readings if r.gpu is not None}
        if inventory.detail:
            # A card is lost: only a new session sees it come back, and an open one keeps the admin from resetting it.
            worker.close()
        return _Answer(inventory)


@dataclass(frozen=True)
class _Answer:
    inventory: Inventory
    off: NvmlOff | None = None
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Look:
    """One round of NVML calls, under way or done."""

    future: Future[_Answer] = field(default_factory=Future)
    started: float = field(default_factory=time.monotonic)
    pid: int = field(default_factory=os.getpid)

    def older_than(self, seconds: float) -> bool:
        return self.future.done() and time.monotonic() - self.future.result().at > seconds


@dataclass(frozen=True)
class _Reading:
    """What one index gave: a card, or an error and the UUID if that was known by then."""

    index: int
    gpu: Gpu | None = None
    uuid: GpuUuid | None = None
    error: Exception | None = None
    sample: Sample | None = None


class _WrongPackage(Exception):
    """The module `pynvml` is not the one of nvidia-ml-py."""


class _Worker:
    """The one thread of this process that calls NVML, and the NVML session that it holds."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._nvml: Any = None
        self._events: Any = None
        self._heard: dict[int | None, GpuUuid] = {}
        # A daemon, unlike an executor's threads: a call that hangs must not keep the process from ending.
        Thread(target=self._run, name="nvml", daemon=True).start()

    def submit(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def readings(self) -> list[_Reading]:
        """All indices, read in an open session; raises what NVML raised where not even their number is known."""
        while True:
            fresh = self._open()
            try:
                indices = range(self._nvml.nvmlDeviceGetCount())
                return [self._listen(_read_card(self._nvml, index)) for index in indices]
            except Exception:
                self.close()
                # A session may have died with its driver, which can be back by now: only a new one's word counts.
                if fresh:
                    raise

    def xids(self) -> list[Xid]:
        """The XIDs since the last call in this session, without waiting; none where the driver does not tell any.

        A thread that waits for them would hold a session of its own, and so keep a lost card from being reset.
        """
        found: list[Xid] = []
        # It ends by NVML's TIMEOUT. Not every card or driver allows events, and the look counts all the same.
        with contextlib.suppress(Exception):
            while self._events is not None and len(found) < _MOST_EVENTS:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                # A card that has just fallen off the bus does not tell its UUID any more.
                uuid = self._heard.get(_address(event.device))
                if event.eventType == _XID_EVENT and uuid is not None:
                    found.append(Xid(uuid, int(event.eventData)))
        return found

    def _listen(self, reading: _Reading) -> _Reading:
        """From now on the driver keeps the XIDs of this card for `xids`."""
        if reading.gpu is not None and reading.gpu.uuid not in self._heard.values():
            with contextlib.suppress(Exception):
                if self._events is None:
                    self._events = self._nvml.nvmlEventSetCreate()
                handle = self._nvml.nvmlDeviceGetHandleByIndex(reading.index)
                self._heard[_address(handle)] = reading.gpu.uuid
                self._nvml.nvmlDeviceRegisterEvents(handle, _XID_EVENT, self._events)
        return reading

    def close(self) -> None:
        """End the session, so that the next look initialises NVML anew."""
        nvml, self._nvml = self._nvml, None
        events, self._events = self._events, None
        self._heard.clear()
        if nvml is not None:
            with contextlib.suppress(Exception):
                if events is not None:
                    nvml.nvmlEventSetFree(events)
            with contextlib.suppress(Exception):
                nvml.nvmlShutdown()

    def _open(self) -> bool:
        if self._nvml is not None:
            return False
        nvml = _module()
        nvml.nvmlInit()
        self._nvml = nvml
        return True

    def _run(self) -> None:
        while True:
            self._jobs.get()()


_worker: _Worker | None = None


def _worker_of_this_process() -> _Worker:
    """The worker; a new one after a fork, where neither the thread nor NVML's session came along."""
    global _worker
    if _worker is None or _worker.pid != os.getpid():
        _worker = _Worker()
    return _worker


def _module() -> Any:
    # Imported late: a wrong package can fail or warn on import, and a Hub without GPUs needs none.
    try:
        import pynvml
    except Exception as error:
        raise _WrongPackage(f"`import pynvml` failed: {error!r}") from error
    if lacking := [name for name in _CALLS if not hasattr(pynvml, name)]:
        raise _WrongPackage(f"{getattr(pynvml, '__file__', 'pynvml')} has no {', '.join(lacking)}")
    return pynvml


def _read_card(nvml: Any, index: int) -> _Reading:
    uuid, at = None, time.monotonic()
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = GpuUuid(_str(nvml.nvmlDeviceGetUUID(handle)))
        # The first version of the call: from driver 615 on the second one reports the caller's cgroup limit as total.
        memory = _optional(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        mig = _optional(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
        gpu = Gpu(
            uuid=uuid,
            index=index,
            name=_str(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=memory.total if memory else 0,
            minor=_optional(lambda: nvml.nvmlDeviceGetMinorNumber(handle)),
            fault=_MIG if mig else None if memory and memory.total else _NO_MEMORY,
        )
        sample = Sample(at, memory.used if memory else None, _pids(nvml, handle), _draws(nvml, handle))
    except Exception as error:
        return _Reading(index, uuid=uuid, error=error)
    return _Reading(index, gpu, uuid, sample=sample)


def _pids(nvml: Any, handle: Any) -> tuple[int, ...] | None:
    """The compute processes of a card, clients of MPS included; None where the driver does not tell."""
    compute = _processes(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
    if compute is None:
        return None
    mps = _processes(nvml, "nvmlDeviceGetMPSComputeRunningProcesses", handle) or []
    return tuple(sorted({process.pid for process in compute + mps}))


def _draws(nvml: Any, handle: Any) -> bool | None:
    drawing = _processes(nvml, "nvmlDeviceGetGraphicsRunningProcesses", handle)
    return None if drawing is None else bool(drawing)


def _processes(nvml: Any, call: str, handle: Any) -> list[Any] | None:
    """None where they cannot be known. Raises only what says that the card itself is lost."""
    try:
        return list(getattr(nvml, call)(handle))
    except Exception as error:
        if _code(error) in (_LOST_CARD, _RESET_REQUIRED):
            raise
        return None


def _address(handle: Any) -> int | None:
    """What tells the handles of two cards apart; the driver gives one card the same each time."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def _optional(call: Callable[[], Any]) -> Any:
    """What the call gives, or None where this card or this driver does not have it."""
    try:
        return call()
    except Exception as error:
        if _code(error) in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
            return None
        raise


def _inventory(readings: Iterable[_Reading], known: Mapping[GpuUuid, Gpu]) -> Inventory:
    """The cards that were read, then those of `known` that were not; a card that gave an error keeps its name."""
    readings = list(readings)
    read = {reading.uuid for reading in readings}
    missing = [gpu for uuid, gpu in known.items() if uuid not in read]
    gpus: list[Gpu] = []
    notes: list[str] = []
    for reading in readings:
        if reading.gpu is not None:
            gpus.append(reading.gpu)
            continue
        before = known.get(reading.uuid) if reading.uuid else _take(missing, reading.index)
        # Without a name of its own a card cannot be leased; it is listed so that people see that one is out of order.
        card = before or Gpu(reading.uuid or GpuUuid(f"unreadable-{reading.index}"), reading.index, "NVIDIA GPU", 0)
        fault = _NEEDS_RESET if _code(reading.error) == _RESET_REQUIRED else _LOST
        gpus.append(replace(card, index=reading.index, fault=fault))
        notes.append(f"card {reading.index} ({card.uuid}): {_said(reading.error)}; look at `dmesg | grep -i xid`")
    for gpu in missing:
        gpus.append(replace(gpu, fault=_GONE))
        notes.append(f"card {gpu.uuid} was there before and is not listed any more; look at `dmesg | grep -i xid`")
    samples = {each.gpu.uuid: each.sample for each in readings if each.gpu and each.sample}
    return Inventory(tuple(gpus), detail="\n".join(notes), samples=samples)


def _take(missing: list[Gpu], index: int) -> Gpu | None:
    """Take the card that had this index out of `missing`, else the first: an index moves, a count does not."""
    found = next((gpu for gpu in missing if gpu.index == index), missing[0] if missing else None)
    if found is not None:
        missing.remove(found)
    return found


def _trouble(off: NvmlOff, said: str) -> _Answer:
    return _Answer(Inventory(trouble=off.text, detail=f"NVML is off ({off.value}): {said}. To do: {off.advice}."), off)


def _code(error: Exception | None) -> int | None:
    value = getattr(error, "value", None)
    return value if isinstance(value, int) else None


def _said(error: Exception | None) -> str:
    code = _code(error)
    return f"{error!r}" if code is None else f"{error} (NVML error {code})"


def _str(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
