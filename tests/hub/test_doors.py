"""The doors through which a start comes in: REST with a profile or with nothing, form, query, admin, named servers."""

from __future__ import annotations

import pytest

from gpuspawner.container import home_volume_name, object_name
from gpuspawner.leases import Owner
from tests.hub.lab import Lab
from tests.hub.people import NO_BODY, Person, until
from tests.standins.engine import SlowBoot


@pytest.mark.parametrize(
    ("body", "profile"),
    [
        pytest.param({"profile": "gpu"}, "gpu", id="profile"),
        pytest.param({"user_options": {"profile": "gpu"}}, "gpu", id="the Hub's long form"),
        pytest.param({"user_options": {}}, "cpu", id="empty options"),
        pytest.param({}, "cpu", id="empty body"),
        pytest.param(NO_BODY, "cpu", id="no body"),
    ],
)
async def test_rest_starts_what_the_body_names_or_the_default(alice: Person, body: object, profile: str) -> None:
    """A start by REST runs the named profile, and the default one where none is named."""
    answer = await alice.start(body)
    assert (answer.status, answer.text) == (201, "")
    assert alice.container().labels["gpuspawner.profile"] == profile
    assert (await alice.model())["ready"] is True


@pytest.mark.parametrize("body", [pytest.param(NO_BODY, id="no body"), pytest.param({}, id="empty body")])
async def test_a_start_without_options_takes_the_last_choice(alice: Person, body: object) -> None:
    """What was chosen last time is started again when nothing is said, and the Hub shows it as the profile."""
    await alice.start({"profile": "share"})
    await alice.stop()
    assert (await alice.start(body)).status == 201
    assert alice.container().labels["gpuspawner.profile"] == "share"
    assert (await alice.model())["user_options"] == {"profile": "share"}


async def test_the_admin_starts_and_stops_a_users_server(lab: Lab, alice: Person, admin: Person) -> None:
    """Started by the admin it is the user's own, with the user's last choice; stopped by the admin the card is free."""
    await alice.start({"profile": "gpu"})
    await alice.stop()
    assert (await admin.start({}, of="alice")).status == 201
    assert alice.container().labels["gpuspawner.profile"] == "gpu"
    assert await lab.leased() == {"GPU-aaaa": None}
    model = (await admin.api("GET", "users/alice")).json["servers"][""]
    assert model["user_options"]["profile"] == "gpu"
    assert (await admin.stop(of="alice")).status == 204
    assert not await lab.leased()


async def test_the_admin_starts_the_default_for_who_never_chose(alice: Person, admin: Person) -> None:
    """A user without a last choice gets the default profile."""
    assert (await admin.start({}, of="alice")).status == 201
    assert alice.container().labels["gpuspawner.profile"] == "cpu"


async def test_the_form_starts_what_is_checked(alice: Person) -> None:
    """Form, pending page, notebook: the browser ends at the server, and the choice is saved as it was made."""
    form = await alice.form()
    assert form.checked == "cpu"
    answer = await alice.submit("gpu")
    assert "stand-in notebook" in answer.text
    assert alice.container().labels["gpuspawner.profile"] == "gpu"
    assert alice.saved_options == {"profile": "gpu"}


async def test_the_form_checks_the_last_choice(alice: Person) -> None:
    """Next time the last choice is preselected, and marked as such."""
    await alice.start({"profile": "share"})
    await alice.stop()
    form = await alice.form()
    assert form.checked == "share"
    assert "last time" in form.card("share")


async def test_a_query_starts_the_profile_it_names(alice: Person) -> None:
    """A link with opt-profile starts that profile without a form."""
    answer = await alice.browse("spawn/alice?opt-profile=share")
    assert "stand-in notebook" in answer.text
    assert alice.container().labels["gpuspawner.profile"] == "share"


@pytest.mark.parametrize("query", ["opt-profile=", "_xsrf=2%7Cabc", "opt-_xsrf=2%7Cabc"])
async def test_a_query_that_names_no_profile_starts_nothing(lab: Lab, alice: Person, query: str) -> None:
    """The address of a form that came back holds the Hub's own parameters: Enter there shows the form again."""
    answer = await alice.browse(f"spawn/alice?{query}")
    assert (answer.status, answer.form_error, answer.checked) == (400, "Choose a profile.", "cpu")
    assert not lab.engine.containers


async def test_named_servers_share_the_home_and_never_the_lease(lab: Lab, alice: Person) -> None:
    """Two servers of one person hold two cards, in two containers with one home."""
    assert (await alice.start({"profile": "gpu"})).status == 201
    assert (await alice.start({"profile": "gpu"}, server="exp")).status == 201
    one, two = alice.container(), alice.container("exp")
    assert {one.gpus, two.gpus} == {("GPU-aaaa",), ("GPU-bbbb",)}
    assert (one.name, two.name) == (object_name(Owner("alice")), object_name(Owner("alice", "exp")))
    home = home_volume_name(Owner("alice"))
    assert {mount["Name"] for each in (one, two) for mount in each.mounts} == {home}
    assert list(lab.engine.volumes) == [home]


async def test_the_progress_stream_tells_the_steps_and_ends_ready(lab: Lab, alice: Person) -> None:
    """Whoever watches a start reads each step in order, in the language of who started it."""
    lab.answer_at_once()
    with lab.engine.faults.during(SlowBoot(0.5)):
        assert (await alice.start({"profile": "gpu"}, language="ko")).status == 202
        events = await alice.events()
    assert events[-1]["ready"] is True
    steps = [event["progress"] for event in events]
    assert steps == sorted(steps)
    assert any(event["message"] == "JupyterLab을 시작하고 있습니다" for event in events)


async def test_whoever_waits_for_others_to_boot_reads_so(lab: Lab, alice: Person, bob: Person) -> None:
    """A class boots by turns; the second has a card already, and starts without a click when the first answers."""
    lab.configure(concurrent_boots=1)
    lab.answer_at_once()
    with lab.engine.faults.during(SlowBoot(1.0)):
        await alice.start({"profile": "gpu"})
        await until(lambda: alice.containers, "alice's boots")
        await bob.start({"profile": "gpu"})
        follow = await bob.follow()

        async def both() -> bool:
            return len(await lab.leased()) == 2

        await until(both, "bob has a card")
        assert not bob.containers
    said = await follow()
    assert "Other servers are starting; yours follows shortly" in [event.get("message") for event in said]
    assert said[-1]["ready"]


async def test_only_a_member_of_the_group_sees_and_starts_a_course(lab: Lab) -> None:
    """A profile of a group is on the form of its members, and starts for them."""
    member, stranger = await lab.person("mia", "vision"), await lab.person("sam")
    assert "Vision course" in (await member.form()).text
    assert "Vision course" not in (await stranger.form()).text
    assert (await member.start({"profile": "vision"})).status == 201


@pytest.mark.fault(18)
async def test_a_server_starts_again_at_once_after_a_stop(lab: Lab, alice: Person) -> None:
    """Stop, another profile, start: a new container of today's profile, never the old one."""
    await alice.start({"profile": "gpu"})
    first = alice.container().id
    await alice.stop()
    assert (await alice.start({"profile": "share"})).status == 201
    second = alice.container()
    assert second.id != first
    assert second.labels["gpuspawner.profile"] == "share"
    assert await lab.leased() == {second.gpus[0]: 8 * 1024**3}


async def test_the_default_home_of_the_hub_is_told_when_ready(alice: Person) -> None:
    """The server's address in the model is where the browser reaches it through the proxy."""
    await alice.start({"profile": "cpu"})
    await until(lambda: alice.user.spawners[""].ready, "the server is ready")
    answer = await alice.browse("../user/alice/api")
    assert answer.status == 200
