"""What the state machine of the waiting line runs on, and what it judges by in other words than the code.

Time stands still until a rule moves it; the driver tells what a rule has made of the cards; the ledger is the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gpuspawner.errors import Refused
from gpuspawner.gpus import GpuUuid, Inventory, Sample, Xid
from gpuspawner.leases import CardShare, Held
from gpuspawner.ledger import Ledger, Place
from gpuspawner.placement import Occupancy, able_cards, place
from gpuspawner.queueing import Scene, Waiter
from gpuspawner.reservations import Window
from gpuspawner.terms import Claim
from tests.unit.ledgerworld import CARDS, LOST, UNKNOWN, World

GROUPS = {
    "ann": frozenset({"students"}),
    "bob": frozenset({"students"}),
    "cho": frozenset({"class"}),
    "dan": frozenset({"class", "students"}),
    "eva": frozenset[str](),
}
_NOBODY_OF_OURS, _LEFT_BEHIND = 7, 8


class StillLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves when a rule says so."""

    seconds = 1000.0

    def time(self) -> float:
        """The monotonic clock of everything here."""
        return self.seconds


class AtOnce(ThreadPoolExecutor):
    """What is sent to a thread is done before the next step."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


@dataclass
class Driver:
    """The cards as their driver sees them: what is lost or gone, and what computes on them."""

    world: World
    now: Callable[[], float]
    lost: set[GpuUuid] = field(default_factory=set)
    gone: set[GpuUuid] = field(default_factory=set)
    foreign: set[GpuUuid] = field(default_factory=set)
    left_behind: set[GpuUuid] = field(default_factory=set)
    xids: list[Xid] = field(default_factory=list)
    unknown: bool = False

    async def inventory(self) -> Inventory:
        """The cards and their processes, now."""
        if self.unknown:
            return UNKNOWN
        cards = tuple(replace(gpu, fault=LOST if gpu.uuid in self.lost else None) for gpu in CARDS)
        there = tuple(gpu for gpu in cards if gpu.uuid not in self.gone)
        well = [gpu.uuid for gpu in there if gpu.fault is None]
        return Inventory(there, samples={uuid: Sample(self.now(), None, self._pids(uuid), False) for uuid in well})

    look_anew = inventory

    def take_xids(self) -> tuple[Xid, ...]:
        """Told once."""
        taken, self.xids = tuple(self.xids), []
        return taken

    def _pids(self, uuid: GpuUuid) -> tuple[int, ...]:
        running = [box for box in self.world.boxes.values() if box.state == "running"]
        ours = [100 + n for n, box in enumerate(running) if any(card.uuid == uuid for card in box.held.cards)]
        return (*[_LEFT_BEHIND] * (uuid in self.left_behind), *[_NOBODY_OF_OURS] * (uuid in self.foreign), *ours)


@dataclass(frozen=True)
class Given:
    """One grant, with what it was decided on and those that were ahead in the line and may have something now."""

    waiter: Waiter
    claim: Claim
    cards: tuple[CardShare, ...]
    scene: Scene = field(repr=False)
    ahead: tuple[Waiter, ...]


class WatchedLedger(Ledger):
    """The real one; it writes down what it grants."""

    given: list[Given]

    def _serve(self, served: Place, cards: tuple[CardShare, ...], scene: Scene) -> Held:
        ahead = []
        for each in self._line.values():
            if each is served:
                break
            if each.terms.refusal is None:
                ahead.append(each.waiter)
        # A decision can make several grants.
        known = {held.owner for held in scene.held}
        more = [held for held in self._in_flight.values() if held.owner not in known]
        whole = replace(scene, held=(*scene.held, *more))
        self.given.append(Given(served.waiter, served.claim, cards, whole, tuple(ahead)))
        return super()._serve(served, cards, scene)


def able(waiter: Waiter, scene: Scene) -> set[GpuUuid]:
    """The cards that could serve it one day."""
    found = set(able_cards(waiter.request, scene.inventory, scene.policy)) - waiter.barred
    return found if len(found) >= (waiter.request.count or 1) else set()


def fits(waiter: Waiter, scene: Scene, held: Iterable[Held]) -> bool:
    """Whether there are cards for it beside these leases."""
    taken = Occupancy.of(*(each.cards for each in held), (CardShare(uuid) for uuid in waiter.barred))
    try:
        place(waiter.request, scene.inventory, taken, scene.policy)
    except Refused:
        return False
    return True


def promise_of(waiter: Waiter, scene: Scene, held: Sequence[Held]) -> datetime | None:
    """The first moment at which it fits, every lease ending on time."""
    if fits(waiter, scene, held):
        return scene.now
    for end in sorted(each.ends for each in held if each.ends is not None):
        if fits(waiter, scene, [each for each in held if each.ends is None or each.ends > end]):
            return max(end, scene.now)
    return None


def left_to(window: Window, scene: Scene, held: Iterable[Held]) -> int:
    """How many cards the class finds when it begins, by what is held: none of others' on them."""

    def blocks(each: Held) -> bool:
        ours = each.owner is not None and window.group in GROUPS[each.owner.user]
        return not ours and (window.start <= scene.now or each.ends is None or each.ends > window.start)

    others = {card.uuid for each in held if blocks(each) for card in each.cards}
    return sum(window.takes(gpu) and gpu.uuid not in others for gpu in scene.inventory.gpus)
