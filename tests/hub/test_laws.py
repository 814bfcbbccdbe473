"""Laws of the design that only show on a whole Hub: nobody waits for another, nothing of one profile leaks."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from jupyterhub.objects import Server

from gpuspawner.container import Defaults, ImageFacts, attachment_for, build
from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import CardShare, Lease, Limits, Owner
from gpuspawner.profiles import Choice, Profile
from gpuspawner.spawner import APPLIED
from gpuspawner.units import GIB
from tests.hub.lab import Lab
from tests.hub.people import Person, until
from tests.standins.engine import EngineSlow
from tests.strategies import raw_profiles

# --- law 9: one user's slow call never delays another user's ----------------------------------------------------------


async def test_a_slow_call_of_one_user_delays_nobody_else(lab: Lab, alice: Person, bob: Person) -> None:
    """While a call for alice hangs, bob's server is polled, stopped and started as if nothing were."""
    await bob.start({"profile": "cpu"})
    lab.answer_at_once()
    slow = EngineSlow(60, on="create", container="jupyter-alice")
    with lab.engine.faults.during(slow):
        await alice.start({"profile": "gpu"})
        await until(lambda: slow.struck, "alice's call hangs")
        lab.answer_when_done()
        began = time.monotonic()
        assert await bob.spawner.poll() is None
        assert time.monotonic() - began < 1.0
        assert (await bob.stop()).status == 204
        assert (await bob.start({"profile": "gpu"})).status == 201
        assert (await alice.model())["pending"] == "spawn"
    await until(lambda: alice.user.spawners[""].ready, "alice's server is ready too")
    assert {alice.container().gpus, bob.container().gpus} == {("GPU-aaaa",), ("GPU-bbbb",)}


@pytest.mark.fault(1)
async def test_many_starts_at_once_never_share_a_card(lab: Lab) -> None:
    """Eight people ask for two cards at the same moment: two get one each, six read why not."""
    people = [await lab.person(f"u{number}") for number in range(8)]
    answers = await asyncio.gather(*(person.start({"profile": "gpu"}) for person in people))
    assert sorted(answer.status for answer in answers) == [201] * 2 + [409] * 6
    running = [container.gpus for person in people for container in person.containers]
    assert sorted(running) == [("GPU-aaaa",), ("GPU-bbbb",)]


# --- law 5: apply(A); apply(B) equals apply(B) on a fresh spawner -----------------------------------------------------


def spec_of(raw: dict[str, Any]) -> Any:
    """The container that a profile means for alice, with a card where it asks for one."""
    profile = Profile.model_validate(raw)
    shares = {None: (), 1: (CardShare(GpuUuid("GPU-aaaa")),)}
    cards = (
        (CardShare(GpuUuid("GPU-aaaa"), profile.gpu.memory_bytes),)
        if profile.gpu and profile.gpu.memory_bytes
        else shares[1 if profile.gpu else None]
    )
    lease = Lease(
        id="0" * 32,
        owner=Owner("alice"),
        profile=profile.slug,
        cards=cards,
        started=datetime(2026, 1, 1, tzinfo=timezone.utc),
        limits=Limits(profile.mem_limit_bytes, profile.cpu_limit),
    )
    uuids = [card.uuid for card in cards]
    attachment = attachment_for("nvidia", uuids, (), simulated=False)
    return build(Choice(profile), lease, ImageFacts(profile.image_reference, "sha256:1"), attachment, Defaults())


async def request_of(lab: Lab, spawner: Any) -> tuple[dict[str, Any], ...]:
    """The traits that the spawner has now, and what the engine is asked for because of them."""
    made = await spawner.create_object()
    container = lab.engine.container(made["Id"])
    # What the Hub says in the environment is new for each start.
    environment = {key: value for key, value in container.env.items() if "TOKEN" not in key}
    seen = (
        {name: getattr(spawner, name) for name in APPLIED if not name.startswith("extra_")},
        {**container.config, "Env": environment, "Hostname": None},
        container.host_config,
    )
    lab.engine.remove(made["Id"])
    return seen


# The engine takes two volumes at one place for a mistake.
profiles = raw_profiles().filter(lambda raw: len(raw.get("volumes", ())) < 2)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=profiles, second=profiles)
async def test_nothing_of_one_profile_is_left_in_the_next(
    lab: Lab, alice: Person, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Traits and engine call for a second profile are those of a spawner that never saw the first one."""
    for reference in ("gpuspawner/base", "quay.io/jupyter/base-notebook"):
        lab.engine.add_image(reference)
    used, fresh = alice.user._new_spawner(""), alice.user._new_spawner("")
    address = Server(proto="http", ip="127.0.0.1", port=1, base_url="/user/alice/", cookie_name="alice")
    used._server = fresh._server = address
    used._apply(spec_of(first))
    await request_of(lab, used)
    used._apply(spec_of(second))
    fresh._apply(spec_of(second))
    assert await request_of(lab, used) == await request_of(lab, fresh)


async def test_an_admins_own_hook_for_options_leaves_the_choice_alone(lab: Lab, alice: Person) -> None:
    """`apply_user_options` belongs to the admin as well; each start still takes what was chosen for it."""
    lab.configure(apply_user_options=lambda spawner, options: None)
    await alice.start({"profile": "gpu"})
    await alice.stop()
    await alice.start({"profile": "cpu"})
    assert alice.container().labels["gpuspawner.profile"] == "cpu"


async def test_a_group_override_is_gone_with_the_group(lab: Lab) -> None:
    """What the Hub sets for a group holds for one start, on the same spawner too."""
    overrides = {"big": {"groups": ["big"], "spawner_override": {"mem_limit": "2G", "volumes": {"/srv/big": "/big"}}}}
    profile = {"display_name": "Plain", "image": "scipy"}
    lab.configure(profile_list=[profile], group_overrides=overrides)
    mia = await lab.person("mia", "big")
    spawner = mia.spawner
    await mia.start({})
    assert mia.container().host_config["Memory"] == 2 * GIB
    assert "/big" in [mount["Destination"] for mount in mia.container().mounts]
    await mia.stop()
    mia.user.groups.clear()
    lab.app.db.commit()
    mia.user.spawners[""] = spawner
    await mia.start({})
    assert mia.spawner is spawner
    assert mia.container().host_config["Memory"] == 0
    assert [mount["Destination"] for mount in mia.container().mounts] == ["/home/jovyan"]


# --- what the admin set stays, what would break a law is refused ------------------------------------------------------


async def _theirs(spawner: Any) -> dict[str, Any]:
    return {"dns": ["192.0.2.53"], "cap_add": ["NET_RAW"], "extra_hosts": {spawner.user.name: "192.0.2.1"}}


@pytest.mark.parametrize(
    "theirs",
    [
        pytest.param(
            {"dns": ["192.0.2.53"], "cap_add": ["NET_RAW"], "extra_hosts": {"{username}": "192.0.2.1"}}, id="dict"
        ),
        pytest.param(_theirs, id="async callable"),
    ],
)
async def test_the_admins_host_config_survives(lab: Lab, alice: Person, theirs: Any) -> None:
    """`extra_host_config`, as a dictionary with templates or as a callable, joins ours."""
    lab.configure(extra_host_config=theirs)
    await alice.start({"profile": "gpu"})
    host = alice.container().host_config
    assert (host["Dns"], host["CapAdd"], host["ExtraHosts"]) == (["192.0.2.53"], ["NET_RAW"], ["alice:192.0.2.1"])
    assert (host["CapDrop"], host["PidsLimit"]) == (["ALL"], 4096)
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-aaaa"]


@pytest.mark.parametrize(
    "theirs",
    [
        {"device_requests": [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]},
        {"runtime": "nvidia"},
        {"privileged": True},
        {"devices": ["/dev/nvidia0"]},
        {"auto_remove": True},
    ],
    ids=lambda theirs: next(iter(theirs)),
)
async def test_a_host_config_that_hands_out_cards_is_refused(
    lab: Lab, alice: Person, caplog: pytest.LogCaptureFixture, theirs: dict[str, Any]
) -> None:
    """A callable is only seen at a start: then the start is refused, and the log names the key."""
    lab.configure(extra_host_config=lambda spawner: theirs)
    answer = await alice.start({"profile": "cpu"})
    assert answer.status == 503
    assert f"extra_host_config must not set {next(iter(theirs))}" in caplog.text
    await lab.nothing_is_left(alice)


async def test_the_admins_create_kwargs_survive_and_ours_win(lab: Lab, alice: Person) -> None:
    """Labels and environment of `extra_create_kwargs` stay, except where they would lie about the lease."""
    lab.configure(
        extra_create_kwargs={
            "labels": {"school.room": "{username}", "gpuspawner.user": "mallory"},
            "environment": {"COURSE": "ai", "NVIDIA_VISIBLE_DEVICES": "all"},
        },
        environment={"FROM_HUB": "1", "NVIDIA_VISIBLE_DEVICES": "all"},
    )
    await alice.start({"profile": "cpu"})
    container = alice.container()
    assert container.labels["school.room"] == "alice"
    assert container.labels["gpuspawner.user"] == "alice"
    environment = container.env
    assert (environment["COURSE"], environment["FROM_HUB"]) == ("ai", "1")
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"


@pytest.mark.parametrize(
    "smuggled",
    [{"runtime": "nvidia"}, {"host_config": {"Privileged": True}}, {"name": "mine"}, {"image": "evil"}],
    ids=lambda smuggled: next(iter(smuggled)),
)
async def test_create_kwargs_cannot_go_around_the_lease(
    lab: Lab, alice: Person, caplog: pytest.LogCaptureFixture, smuggled: dict[str, Any]
) -> None:
    """What `extra_host_config` must not set cannot be set by `extra_create_kwargs` either."""
    lab.configure(extra_create_kwargs=smuggled)
    answer = await alice.start({"profile": "cpu"})
    assert answer.status == 503
    assert f"extra_create_kwargs must not set {next(iter(smuggled))}" in caplog.text
    await lab.nothing_is_left(alice)


@pytest.mark.fault(20)
async def test_a_profile_never_resumes_a_container(lab: Lab, alice: Person) -> None:
    """A container of alice's that an earlier Hub left is removed and not started again, and its cards are free."""
    await alice.start({"profile": "two"})
    labels = alice.container().labels
    await alice.stop()
    await lab.nothing_is_left(alice)
    client = lab.house.engine.client
    left = client.create_container("gpuspawner/pytorch", name="jupyter-alice", labels=labels)["Id"]
    client.start(left)
    assert (await alice.start({"profile": "two"})).status == 201
    assert [container.id for container in lab.engine.containers] == [alice.container().id]
    assert alice.container().id != left
