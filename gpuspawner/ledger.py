"""Reservations in flight: cards that are promised to a start whose container cannot be seen yet.

The truth about leases is on the containers' labels (law 1). Between the decision and the moment when the container is
listed there is a gap, and this module covers it: `reserve` looks at the labels, adds what is in flight, places and
writes the reservation down in one step under one lock. Nothing here outlives the process, and nothing has to.

A look at the labels takes time, and a start may finish meanwhile. So a reservation that has become a container stays
counted for every look that began before that: no moment exists in which neither of the two shows it.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gpuspawner.gpus import Inventory
from gpuspawner.leases import CardShare, Holdings
from gpuspawner.placement import Occupancy, Policy, place
from gpuspawner.profiles import GpuRequest


@dataclass(frozen=True)
class Standing:
    """The cards and who holds how much of them, at one moment."""

    inventory: Inventory
    occupancy: Occupancy


class Ledger:
    """One for each Hub process.

    Args:
        look_at_labels: a fresh list of every container that holds a lease. It may raise: then nothing is leased.
        look_at_gpus: the cards of this machine now. It never raises.
        policy: how shares are counted.
    """

    def __init__(
        self,
        look_at_labels: Callable[[], Awaitable[Holdings]],
        look_at_gpus: Callable[[], Awaitable[Inventory]],
        policy: Policy,
    ) -> None:
        self._look_at_labels = look_at_labels
        self._look_at_gpus = look_at_gpus
        self.policy = policy
        self._lock = threading.Lock()
        self._now = 0
        self._looks: set[int] = set()
        self._in_flight: dict[str, tuple[CardShare, ...]] = {}
        self._settled: dict[str, tuple[int, tuple[CardShare, ...]]] = {}

    async def standing(self) -> Standing:
        """What is free right now, for the form. Raises what `look_at_labels` raises."""
        inventory = await self._look_at_gpus()
        began = self._begin_look()
        try:
            seen = await self._look_at_labels()
            with self._lock:
                return Standing(inventory, self._occupancy(began, seen))
        finally:
            self._end_look(began)

    async def reserve(self, lease_id: str, request: GpuRequest | None) -> tuple[CardShare, ...]:
        """Find cards for `request` and hold them until `settle` or `release`.

        Raises:
            NoRoom, GpusUnknown: nothing fits, or nothing can be known; nothing is held.
            EngineError: the labels could not be read; nothing is held.
        """
        if request is None:
            with self._lock:
                self._in_flight[lease_id] = ()
            return ()
        inventory = await self._look_at_gpus()
        began = self._begin_look()
        try:
            seen = await self._look_at_labels()
            with self._lock:
                cards = place(request, inventory, self._occupancy(began, seen), self.policy)
                self._in_flight[lease_id] = cards
                return cards
        finally:
            self._end_look(began)

    def settle(self, lease_id: str) -> None:
        """The container of this lease exists and carries its labels: from now on they speak for it."""
        with self._lock:
            cards = self._in_flight.pop(lease_id, None)
            if cards:
                self._now += 1
                self._settled[lease_id] = (self._now, cards)
                self._forget()

    def release(self, lease_id: str) -> None:
        """There is no container of this lease (any more). Calling it twice, or without a reservation, is harmless."""
        with self._lock:
            self._in_flight.pop(lease_id, None)
            self._settled.pop(lease_id, None)

    def in_flight(self) -> frozenset[str]:
        """The leases, those without a card too, whose containers may still be made at this moment."""
        with self._lock:
            return frozenset(self._in_flight)

    def _begin_look(self) -> int:
        with self._lock:
            self._now += 1
            self._looks.add(self._now)
            return self._now

    def _end_look(self, began: int) -> None:
        with self._lock:
            self._looks.discard(began)
            self._forget()

    def _forget(self) -> None:
        """Drop settled reservations that every look under way is young enough to see on the labels."""
        oldest = min(self._looks, default=self._now + 1)
        self._settled = {key: entry for key, entry in self._settled.items() if entry[0] > oldest}

    def _occupancy(self, began: int, seen: Holdings) -> Occupancy:
        hidden = {key: cards for key, (settled, cards) in self._settled.items() if settled > began}
        return Occupancy.of(*{**hidden, **self._in_flight, **_cards(seen)}.values())


def _cards(holdings: Holdings) -> dict[str, tuple[CardShare, ...]]:
    return {key: held.cards for key, held in holdings.items()}
