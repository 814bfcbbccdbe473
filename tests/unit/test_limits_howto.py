"""The guide to limits and reservations: what it shows is accepted, and what it quotes is what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpuspawner import limits, timetable
from gpuspawner.journal import ACTIVE, Journal
from gpuspawner.schemas import Frozen
from gpuspawner.units import GIB
from tests.unit.test_journal import EVER, at

GUIDE = (Path(__file__).parents[2] / "docs" / "howto" / "limits-and-reservations.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_configuration_is_accepted() -> None:
    """All blocks together, as they stand there, and with every part of the example in use."""
    spawner = SimpleNamespace()
    for block in blocks("python"):
        exec(block, {"c": SimpleNamespace(GPUSpawner=spawner)})
    spawner.limits["groups"]["thesis"].pop("gpu_hours")  # the short form shows the same once more
    read = limits.Limits.parse(spawner.limits, spawner.gpu_hours)
    assert set(read.groups) == {"students", "thesis", "staff"}
    assert len(timetable.Calendar.parse(spawner.reservations).windows(at(0), at(24 * 30))) == 4 + 6 + 1


def test_the_journal_is_read(tmp_path: Path) -> None:
    """The lines of the guide are lines of a journal."""
    (block,) = blocks("json")
    assert all(json.loads(line) for line in block.splitlines())
    (tmp_path / ACTIVE).write_text(block)
    (spell,) = Journal(tmp_path).read(EVER)
    assert (spell.user, spell.ended) == ("ada", at(2))
    assert spell.weight == pytest.approx(6 * GIB / 25757220864)


@pytest.mark.parametrize("model", [limits.Caps, timetable.Reservation], ids=lambda model: model.__name__)
def test_every_key_has_its_row(model: type[Frozen]) -> None:
    """What an admin may write is in the tables."""
    for name, field in model.model_fields.items():
        assert re.search(rf"^\| .*`{field.alias or name}`.* \|", GUIDE, re.MULTILINE), name
