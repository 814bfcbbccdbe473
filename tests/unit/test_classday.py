"""The benchmark of class days stays runnable, and what it plays is fair to all three ways."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gpuspawner.placement import budget

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def classday() -> Iterator[ModuleType]:
    """The program, which finds its neighbours in its own folder as every script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import classday

        yield classday


def test_the_same_seed_gives_the_same_figures(classday: ModuleType) -> None:
    """On every machine and in every run; another seed draws other days."""
    first, again, other = (classday.report(seed, [2], 1, 0)["days"] for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_all_ways_meet_the_same_people(classday: ModuleType) -> None:
    """Who comes, when, for what and with how much patience does not depend on who serves them."""
    for mix in classday.MIXES:
        ways = classday.play(5, 4, 1, mix)
        visits = [[spell.visit for spell in day] for [day] in ways.values()]
        assert len(visits) == 3
        assert all(other == visits[0] for other in visits)


@pytest.mark.parametrize("cards", [2, 4])
def test_no_card_is_over_promised_at_any_moment(classday: ModuleType, cards: int) -> None:
    """Law 2, in all three ways, read off what was held from when to when."""
    budgets = {gpu.uuid: budget(gpu, classday.POLICY) for gpu in classday.inventory_of(cards).gpus}
    for mix in classday.MIXES:
        for days in classday.play(5, cards, 2, mix).values():
            for day in days:
                served = [spell for spell in day if spell.began is not None]
                assert served
                for moment in {spell.began for spell in served}:
                    held = [card for each in served if each.began <= moment < each.left for card in each.cards]
                    for uuid, most in budgets.items():
                        of_it = [card.memory_bytes for card in held if card.uuid == uuid]
                        assert of_it == [None] or sum(of_it) <= most


def test_everybody_is_served_or_gives_up_when_the_patience_ends(classday: ModuleType) -> None:
    """Nobody gets lost on the way, and what is asked is what is given."""
    for mix in classday.MIXES:
        for days in classday.play(5, 2, 2, mix).values():
            for spell in (spell for day in days for spell in day):
                asked = spell.visit.offer.request
                if spell.began is None:
                    assert spell.waited == spell.visit.patience
                else:
                    assert 0 <= spell.waited <= spell.visit.patience
                    assert len(spell.cards) == (asked.count or 1)
                    assert {card.memory_bytes for card in spell.cards} == {asked.memory_bytes}


def test_the_line_serves_at_least_as_many_as_no_line_where_all_ask_alike(classday: ModuleType) -> None:
    """Without a line a card lies idle until somebody presses reload. Over ten days: on a single one luck decides."""
    ways = classday.report(5, [8], 10, 0)["days"]["one card each"]["8"]
    assert ways["the line"]["served"] >= ways["no line"]["served"]
    assert ways["the line"]["in_use"] > ways["no line"]["in_use"]


def test_the_line_does_not_starve_the_big_requests(classday: ModuleType) -> None:
    """Whoever wants two cards is passed three times at most, and served oftener than without a line."""
    ways = classday.report(5, [8], 10, 0)["days"]["all kinds"]["8"]
    line, without = ways["the line"], ways["no line"]
    assert line["served_by_kind"]["2 cards"] > without["served_by_kind"]["2 cards"]
    assert line["in_use"] > without["in_use"]
    assert line["most_passed"] <= 3 < without["most_passed"]


def test_the_program_runs_and_prints_json() -> None:
    """As somebody starts it, with one timing of each decision."""
    command = [sys.executable, BENCHMARKS / "classday.py", "--cards", "2", "--rounds", "1", "--timings", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=BENCHMARKS.parent)
    found = json.loads(done.stdout)
    assert set(found["days"]) == {"all kinds", "one card each"}
    assert found["decisions"]["targets"]
    assert all(
        row["median"] > 0 for row in found["decisions"]["figures"]["every card full"]["decide"]["milliseconds"].values()
    )
