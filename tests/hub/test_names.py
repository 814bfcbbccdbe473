"""Names of users and servers, as they come: labels say them literally, names of things never collide."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.container import home_volume_name, object_name
from gpuspawner.leases import Owner
from tests.hub.lab import Lab
from tests.strategies import NASTY_NAMES, names

LONG = "n" * 200
REAL = (
    "a_b",
    "a-b",
    "a--b",
    "A.B@x.kr",
    "a.b@x.kr",
    "학생1",
    "학생2",
    LONG,
    LONG + "n",
    "{prefix}",
    "a{b}",
    "{",
    "%7B",
)


async def test_servers_of_users_with_any_name_run_side_by_side(lab: Lab) -> None:
    """Each starts, in a container and with a home of its own, and its label says the name letter by letter."""
    people = [await lab.person(name) for name in REAL]
    answers = await asyncio.gather(*(person.start({"profile": "cpu"}) for person in people))
    assert [answer.status for answer in answers] == [201] * len(REAL)
    containers = [person.container() for person in people]
    assert [container.labels["gpuspawner.user"] for container in containers] == list(REAL)
    assert len({container.name for container in containers}) == len(REAL)
    homes = [mount["Name"] for container in containers for mount in container.mounts]
    assert len(set(homes)) == len(REAL)
    assert sorted((volume.labels or {})["gpuspawner.home"] for volume in lab.engine.volumes.values()) == sorted(REAL)
    stops = await asyncio.gather(*(person.stop() for person in people))
    assert {answer.status for answer in stops} == {204}


@pytest.mark.parametrize("name", ["{prefix}", "a{b}", "{username}--{servername}"])
async def test_braces_in_a_name_come_out_as_they_are(lab: Lab, name: str) -> None:
    """DockerSpawner renders templates in almost everything; a name is not a template."""
    person = await lab.person(name)
    assert (await person.start({"profile": "gpu"})).status == 201
    container = person.container()
    assert container.name == object_name(Owner(name))
    (volume,) = lab.engine.volumes.values()
    assert (volume.labels or {})["gpuspawner.home"] == name
    assert container.env["JUPYTERHUB_USER"] == name


async def test_named_servers_and_users_with_hyphens_do_not_meet(lab: Lab) -> None:
    """`a` with a server `b` and a user called `a--b` have two containers."""
    one, two = await lab.person("a"), await lab.person("a--b")
    await one.start({"profile": "cpu"}, server="b")
    await two.start({"profile": "cpu"})
    assert len(lab.engine.containers) == 2
    assert one.container("b").name != two.container().name


def test_different_owners_have_different_names() -> None:
    """A table of hurtful names, with and without servers: no two containers and no two homes are called the same."""
    users = (*REAL, *NASTY_NAMES)
    # The last is what is appended to `a` to name the container of the user `a-b`.
    servers = ("", "a", "a-b", "b", "x" * 30, object_name(Owner("a-b")).removeprefix("jupyter-a-"))
    owners = {Owner(user, server) for user, server in product(users, servers)}
    assert len({object_name(owner) for owner in owners}) == len(owners)
    assert len({home_volume_name(owner) for owner in owners}) == len({owner.user for owner in owners})


@given(st.lists(names(), unique=True, min_size=2, max_size=2))
def test_any_two_users_have_different_names(two: list[str]) -> None:
    """The same for whatever Hypothesis comes up with."""
    one, other = Owner(two[0]), Owner(two[1])
    assert object_name(one) != object_name(other)
    assert home_volume_name(one) != home_volume_name(other)
