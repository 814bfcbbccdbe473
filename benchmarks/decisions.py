"""What one decision of `queueing` costs, and one forecast: the second half of `classday.py`.

The crowds are drawn from a seed. Nothing is cached between two calls: each begins with the plain values that `ledger`
hands over, as it does after every change.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from simulation import EIGHT, HOUR, MAX_OVERTAKES, MINUTE, OFFERS, POLICY, inventory_of

from gpuspawner.gpus import Inventory
from gpuspawner.leases import CardShare, Held
from gpuspawner.placement import budget
from gpuspawner.queueing import Scene, Waiter, decide, forecast

CARDS, SIZES, TARGET_SIZE = 64, (250, 500, 1000, 2000, 4000), 1000
MOST_SECONDS = 0.005
# As many leases as requests. Of a kind are two that want the same for the same time.
FULL, ROOM, EACH = CROWDS = ("every card full", "a tenth has ended", "a tenth has ended, no two of a kind")


@dataclass(frozen=True)
class Crowd:
    """So many leases, and so many who wait."""

    name: str
    size: int
    line: tuple[Waiter, ...]
    scene: Scene


@dataclass(frozen=True)
class Took:
    """One call: by the clock on the wall, and without what other programs took of the machine meanwhile."""

    seconds: float
    cpu_seconds: float


def draw_crowd(name: str, size: int, seed: str) -> Crowd:
    """Leases of every length in shares that fill the cards, and a line that asks for what `simulation` offers."""
    rng = random.Random(f"{seed}/{size}")  # noqa: S311 - a crowd that can be drawn again is what is wanted
    inventory = inventory_of(CARDS)
    held = _leases(rng, inventory, size)
    if name != FULL:
        held = held[size // 10 :]
    line = []
    for number, offer in enumerate(rng.choices(OFFERS, [each.percent for each in OFFERS], k=size)):
        # A second more for each keeps all of them apart.
        limit = offer.limit_seconds + (number if name == EACH else 0)
        line.append(Waiter(str(number), offer.request, limit, overtaken=rng.choice((0, 0, 0, 1, 2))))
    return Crowd(name, size, tuple(line), Scene(inventory, held, POLICY, EIGHT))


def _leases(rng: random.Random, inventory: Inventory, size: int) -> tuple[Held, ...]:
    """In an order in which nothing is sorted."""
    cards = inventory.gpus
    share = budget(cards[0], POLICY) // -(-size // len(cards))
    ends = [EIGHT + timedelta(seconds=rng.randrange(MINUTE, 4 * HOUR)) for _ in range(size)]
    held = [Held((CardShare(cards[n % len(cards)].uuid, share),), ends=end) for n, end in enumerate(ends)]
    rng.shuffle(held)
    return tuple(held)


def time_all(seed: str, rounds: int, sizes: Sequence[int] = SIZES) -> dict[str, dict[str, dict[int, list[Took]]]]:
    """Crowd → "decide" or "forecast" → size → seconds of each round; all take turns in every round."""
    crowds = [draw_crowd(name, size, seed) for name in CROWDS for size in sizes]
    found: dict[str, dict[str, dict[int, list[Took]]]] = {
        name: {call: {size: [] for size in sizes} for call in ("decide", "forecast")} for name in CROWDS
    }
    for number in range(rounds):
        first = number % len(crowds)
        for crowd in (*crowds[first:], *crowds[:first]):
            taken = found[crowd.name]
            taken["decide"][crowd.size].append(
                _took(lambda c=crowd: decide(c.line, c.scene, max_overtakes=MAX_OVERTAKES))  # type: ignore[misc]  # a default makes the type unknown
            )
            taken["forecast"][crowd.size].append(_took(lambda c=crowd: forecast(c.line, c.scene)))  # type: ignore[misc]  # a default makes the type unknown
    return found


def _took(call: Callable[[], object]) -> Took:
    began, cpu = time.perf_counter(), time.thread_time()
    call()
    return Took(time.perf_counter() - began, time.thread_time() - cpu)


def summary(runs: Sequence[Took]) -> dict[str, float]:
    """Milliseconds."""
    return {
        "median": round(1000 * statistics.median(took.seconds for took in runs), 3),
        "min": round(1000 * min(took.seconds for took in runs), 3),
        "max": round(1000 * max(took.seconds for took in runs), 3),
        "cpu_median": round(1000 * statistics.median(took.cpu_seconds for took in runs), 3),
    }


def growth(medians: dict[int, float]) -> dict[str, float]:
    """How many times dearer the largest size is than the smallest, beside what n log n would be."""
    small, large = min(medians), max(medians)
    return {
        "times": round(medians[large] / medians[small], 2),
        "n_log_n": round(large * math.log(large) / (small * math.log(small)), 2),
    }


def report(seed: str, rounds: int, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Figures in milliseconds, growth, and the targets."""
    figures: dict[str, Any] = {}
    targets = []
    for name, calls in time_all(seed, rounds, sizes).items():
        for call, by_size in calls.items():
            rows = {str(size): summary(runs) for size, runs in by_size.items()}
            grows = growth({size: rows[str(size)]["median"] for size in by_size})
            figures.setdefault(name, {})[call] = {"milliseconds": rows, "growth": grows}
            targets += _targets(f"{call}, {name}", rows, grows)
    return {"cards": CARDS, "rounds": rounds, "figures": figures, "targets": targets}


def _targets(what: str, rows: dict[str, dict[str, float]], grows: dict[str, float]) -> list[dict[str, Any]]:
    found = []
    if row := rows.get(str(TARGET_SIZE)):
        aim = f"{what}: {TARGET_SIZE} in less than {1000 * MOST_SECONDS:g} ms"
        found.append({"target": aim, "got": f"{row['median']:.2f} ms", "holds": row["median"] < 1000 * MOST_SECONDS})
    if len(rows) > 1:
        aim = f"{what}: no faster than n log n ({grows['n_log_n']:.1f})"
        found.append({"target": aim, "got": f"{grows['times']:.1f}", "holds": grows["times"] <= grows["n_log_n"]})
    return found
