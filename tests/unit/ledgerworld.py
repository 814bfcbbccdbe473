"""What the state machines over the ledger share: cards, an engine whose every answer is a step, and starts.

`World` outlives a Hub that is killed; `StartsMachine` has the rules of a start by the protocol of `launch`, and of the
engine's answers. What a machine asserts is its own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from gpuspawner.dockerd import HOLDING_STATES
from gpuspawner.errors import EngineDown, Refused
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Held
from gpuspawner.ledger import Grant, Ledger, Place
from gpuspawner.placement import Policy
from gpuspawner.profiles import GpuRequest
from gpuspawner.terms import Claim
from gpuspawner.texts import Text
from gpuspawner.units import GIB

POLICY = Policy(reserve_bytes=GIB)
CARDS = (
    Gpu(GpuUuid("GPU-a"), 0, "NVIDIA GeForce RTX 4090", 24 * GIB, 0),
    Gpu(GpuUuid("GPU-b"), 1, "NVIDIA GeForce RTX 4090", 24 * GIB, 1),
    Gpu(GpuUuid("GPU-c"), 2, "NVIDIA GeForce RTX 3060", 12 * GIB, 2),
)
ALL = Inventory(CARDS)
LOST = Text("the card is lost", "카드가 응답하지 않습니다")
UNKNOWN = Inventory(trouble=Text("the driver does not answer", "드라이버가 응답하지 않습니다"))
REQUESTS: tuple[dict[str, Any], ...] = (
    {"count": 1},
    {"count": 2},
    {"memory": "4G"},
    {"memory": "8G"},
    {"memory": "20G"},
)
MORNING = datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc)

Promises = dict[str, tuple[CardShare, ...]]


def cards_of(promises: Promises) -> list[tuple[str, int]]:
    """All promised cards, sorted; 0 is the whole card."""
    return sorted((card.uuid, card.memory_bytes or 0) for cards in promises.values() for card in cards)


def requests() -> st.SearchStrategy[GpuRequest | None]:
    """Whole cards and shares that fit together in some ways and not in others; sometimes no card."""
    return st.sampled_from([*(GpuRequest.model_validate(wanted) for wanted in REQUESTS), None])


def down() -> EngineDown:
    """What an engine raises that does not answer."""
    return EngineDown(Text("the engine does not answer"))


@dataclass(eq=False)
class Look:
    """A list of the labels that is under way: begun, perhaps read by the engine already, not yet answered."""

    answer: asyncio.Future[dict[str, Held]]
    read: dict[str, Held] | None = None


@dataclass(eq=False, repr=False)
class Start:
    """A start by the protocol of `launch`: reserve, create, run, settle; or undo, and release only then.

    `place` is where it waits, `held` what it was granted; `doomed` says that it was cancelled or will be.
    """

    claim: Claim
    reserving: asyncio.Task[Grant]
    waits: bool = False
    place: Place | None = None
    held: Held | None = None
    created: bool = False
    undoing: bool = False
    doomed: bool = False

    def __repr__(self) -> str:
        return f"<{self.lease_id} {self.held or ('waits' if self.place else '')}>"

    @property
    def lease_id(self) -> str:
        """Of its claim."""
        return self.claim.lease_id


@dataclass
class Box:
    """A container of the model, with what its labels say."""

    held: Held
    state: str = "created"


@dataclass
class World:
    """The engine and the cards: what a Hub that is killed leaves behind.

    A look at the labels is answered by a step of its own, or at once by an engine that is `quick` or `broken`.
    """

    boxes: dict[str, Box] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    inventory: Inventory = ALL
    now: datetime = MORNING
    quick: bool = False
    broken: bool = False

    def holdings(self) -> dict[str, Held]:
        """What a list of the labels shows at this moment."""
        return {key: box.held for key, box in self.boxes.items() if box.state in HOLDING_STATES}

    async def look_at_labels(self) -> dict[str, Held]:
        """A call of the engine."""
        if self.broken or self.quick:
            await asyncio.sleep(0)
            if self.broken:
                raise down()
            return self.holdings()
        look = Look(asyncio.get_running_loop().create_future())
        self.looks.append(look)
        try:
            return await look.answer
        finally:
            self.looks.remove(look)

    async def look_at_gpus(self) -> Inventory:
        """The cards of this moment."""
        return self.inventory


async def _run_what_can_run() -> None:
    for _ in range(24):
        await asyncio.sleep(0)


class StartsMachine(RuleBasedStateMachine):
    """Starts on the real ledger; every await of it is a rule of its own."""

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.loop = self._new_loop()
        self.world = World()
        self.starts: list[Start] = []
        self.made = 0
        self.ledger = self._ledger()

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def _ledger(self) -> Ledger:
        return Ledger(self.world.look_at_labels, self.world.look_at_gpus, POLICY)

    def _begin(self, claim: Claim, wait_seconds: float | None = None) -> Start:
        """It does not run yet."""

        def on_wait(place: Place | None) -> None:
            start.place = place
            self._waits(start)

        reserving = self.loop.create_task(self.ledger.reserve(claim, wait_seconds=wait_seconds, on_wait=on_wait))
        start = Start(claim, reserving, wait_seconds is not None)
        self.starts.append(start)
        return start

    def _go_on(self) -> None:
        """Let everything run that can run, then take note of what has come of it."""
        self.loop.run_until_complete(_run_what_can_run())
        for start in list(self.starts):
            if start.held is None and start.reserving.done():
                self._reserved(start)

    def _waits(self, start: Start) -> None:
        """It has come to its place in the line, or has left it with a grant."""

    def _reserved(self, start: Start) -> None:
        error = None if start.reserving.cancelled() else start.reserving.exception()
        if start.reserving.cancelled() or error is not None:
            self._refused(start, error)
            self.ledger.release(start.lease_id)
            self.starts.remove(start)
        else:
            start.held = self._lease(start)

    def _refused(self, start: Start, error: BaseException | None) -> None:
        """Whether that may be; None is a cancellation."""
        assert isinstance(error, Refused)

    def _lease(self, start: Start) -> Held:
        """What it was granted, as a lease that begins now."""
        grant = start.reserving.result()
        seconds = grant.time_limit_seconds
        ends = None if seconds is None else self.world.now + timedelta(seconds=seconds)
        return Held(grant.cards, start.claim.owner, ends)

    def held(self) -> dict[str, Held]:
        """The truth: by containers that may run, and by starts that were told "yes"."""
        started = {start.lease_id: start.held for start in self.starts if start.held is not None}
        return {**started, **self.world.holdings()}

    def promises(self) -> Promises:
        """The cards of these."""
        return {key: held.cards for key, held in self.held().items()}

    def _of(self, data: st.DataObject, items: list[Any]) -> Any:
        return data.draw(st.sampled_from(items))

    def _reserved_starts(self) -> list[Start]:
        return [start for start in self.starts if start.held is not None]

    # What a Hub does

    @precondition(lambda self: self._reserved_starts())
    @rule(data=st.data(), far=st.integers(1, 3))
    def a_start_gets_on(self, data: st.DataObject, far: int) -> None:
        """Created → running → settled; dead or gone on the way means that it is undone.

        Of a start that is being undone a container may still appear: the call was under way.
        """
        self._get_on(self._of(data, self._reserved_starts()), far)

    def _get_on(self, start: Start, far: int) -> None:
        for _ in range(far):
            box = self.world.boxes.get(start.lease_id)
            if box is None and not start.created:
                start.created = True
                self.world.boxes[start.lease_id] = Box(self._lease(start))
            elif start.undoing:
                return
            elif box is not None and box.state == "created":
                box.state = "running"
            elif box is not None and box.state == "running":
                self.ledger.settle(start.lease_id)
                self.starts.remove(start)
                return
            else:
                start.undoing = True

    def _one_begins(self, data: st.DataObject) -> Any:
        """A start that somebody has drawn; it does not run yet."""
        raise NotImplementedError  # each of the two machines draws its own

    @precondition(lambda self: self._reserved_starts())
    @rule(data=st.data(), times=st.integers(1, 3))
    def a_look_is_overtaken(self, data: st.DataObject, times: int) -> None:
        """The classic, which chance finds too rarely: a start ends between the list and its arrival."""
        quick, self.world.quick = self.world.quick, False
        self._one_begins(data)
        self._go_on()
        self.the_engine_reads_the_labels()
        for _ in range(times):
            if self._reserved_starts():
                self.a_start_gets_on(data, 3)
        if self.world.looks:
            self.the_engine_answers(data, 3)
        self.world.quick = quick

    @precondition(lambda self: self.starts)
    @rule(data=st.data())
    def a_start_fails_or_is_cancelled(self, data: st.DataObject) -> None:
        """At any await: in the middle of a look, in the line, with a container or before there is one."""
        start = self._of(data, self.starts)
        if start.held is None:
            start.reserving.cancel()
            self.loop.run_until_complete(asyncio.wait([start.reserving]))
            self.ledger.release(start.lease_id)
            self.starts.remove(start)
        start.undoing = True
        self._go_on()

    @precondition(lambda self: any(start.undoing for start in self.starts))
    @rule(data=st.data(), twice=st.booleans())
    def an_undoing_ends(self, data: st.DataObject, twice: bool) -> None:
        """Only now the cards are let go."""
        start = self._of(data, [start for start in self.starts if start.undoing])
        self.world.boxes.pop(start.lease_id, None)
        for _ in range(1 + twice):
            self.ledger.release(start.lease_id)
        self.starts.remove(start)
        self._go_on()

    def _kill_the_hub(self) -> None:
        """The next one knows nothing but the labels."""
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.starts = []
        self.ledger = self._ledger()

    # What the engine does

    @precondition(lambda self: self.world.looks)
    @rule()
    def the_engine_reads_the_labels(self) -> None:
        """From now on the answers to these looks get older."""
        for look in self.world.looks:
            look.read = self.world.holdings() if look.read is None else look.read

    @precondition(lambda self: self.world.looks)
    @rule(data=st.data(), number=st.integers(1, 3))
    def the_engine_answers(self, data: st.DataObject, number: int) -> None:
        """One look, or several in the same moment."""
        for look in data.draw(st.permutations(self.world.looks))[:number]:
            look.answer.set_result(self.world.holdings() if look.read is None else look.read)
        self._go_on()

    @precondition(lambda self: self.world.looks)
    @rule(data=st.data())
    def the_engine_fails(self, data: st.DataObject) -> None:
        """Of one look."""
        self._of(data, self.world.looks).answer.set_exception(down())
        self._go_on()

    def teardown(self) -> None:
        """Nothing of this example goes on."""
        self._kill_the_hub()
        self.loop.close()
