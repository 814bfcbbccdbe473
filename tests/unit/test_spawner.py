"""`GPUSpawner` without a Hub around it: what it asks of the Hub's database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jupyterhub import orm
from jupyterhub.user import User
from sqlalchemy import event

from gpuspawner import GPUSpawner


@pytest.fixture
def spawner() -> Iterator[GPUSpawner]:
    """That of "ann", in a database with groups and with people who are in two of them, in one and in none."""
    db = orm.new_session_factory("sqlite:///:memory:")()
    vision, staff = orm.Group(name="vision"), orm.Group(name="staff")
    people = [
        orm.User(name="ann", groups=[vision, staff]),
        orm.User(name="bob", groups=[vision]),
        orm.User(name="cho"),
        orm.User(name="dan", groups=[staff]),
    ]
    db.add_all([vision, staff, *people])
    db.commit()
    yield User(people[0], {"spawner_class": GPUSpawner, "config": None, "subdomain_host": ""}, db).spawner
    db.close()
    db.get_bind().dispose()


def test_the_groups_of_those_who_are_asked_about(spawner: GPUSpawner) -> None:
    """Several, one and none; nobody else's, and nothing of people whom the Hub does not know any more."""
    assert spawner._groups_of({"ann", "bob", "cho", "gone"}) == {
        "ann": frozenset({"vision", "staff"}),
        "bob": frozenset({"vision"}),
        "cho": frozenset(),
    }
    assert spawner._groups_of(set()) == {}


def test_a_group_that_somebody_has_just_joined_counts(spawner: GPUSpawner) -> None:
    """Also before the Hub has committed it."""
    db = spawner.user.db
    orm.User.find(db, "cho").groups = [orm.Group.find(db, "staff")]
    assert spawner._groups_of({"cho"}) == {"cho": frozenset({"staff"})}


def test_however_many_they_are_the_database_is_asked_once(spawner: GPUSpawner) -> None:
    """Each form and each decision asks about everybody who holds a card."""
    asked: list[str] = []
    event.listen(spawner.user.db.get_bind(), "before_cursor_execute", lambda *words: asked.append(words[2]))
    spawner._groups_of({"ann", "bob", "cho", "dan"})
    assert len([each for each in asked if "users" in each]) == 1
