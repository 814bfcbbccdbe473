"""What becomes of a choice and a lease in Docker's words, and what is said of a container that is wrong or dead."""

from __future__ import annotations

import re
import string
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jupyterhub.slugs import safe_slug

from gpuspawner.container import (
    FORBIDDEN_HOST_CONFIG,
    Attachment,
    ContainerSpec,
    Defaults,
    Evidence,
    ImageFacts,
    attachment_for,
    build,
    check_arrival,
    check_create_kwargs,
    check_host_config,
    home_volume_name,
    is_whole_answer,
    last_words,
    literal,
    object_name,
)
from gpuspawner.errors import ConfigError, ImageUnfit, Reason, ServerDied
from gpuspawner.gpus import Gpu, GpuUuid
from gpuspawner.leases import CardShare, Lease, Limits, Owner, decode
from gpuspawner.profiles import Choice, Profile
from gpuspawner.units import GIB, MIB
from tests import strategies

A, B = GpuUuid("GPU-aaaaaaaa-0000-4000-8000-000000000001"), GpuUuid("GPU-bbbbbbbb-0000-4000-8000-000000000002")
IMAGE = ImageFacts("gpuspawner/pytorch:latest", "sha256:" + "1" * 64, "/home/jovyan")
ANN = Owner("ann")
ATTACHMENTS: tuple[Attachment, ...] = ("nvidia", "cdi", "simulated")


def profile(**more: Any) -> Profile:
    """A profile without a GPU unless more is said."""
    return Profile.model_validate({"display_name": "One", "image": "pytorch", **more})


def lease(*cards: CardShare, owner: Owner = ANN, limits: Limits | None = None) -> Lease:
    """A lease of these cards."""
    limits = limits or Limits()
    return Lease("f" * 32, owner, "one", cards, datetime(2026, 3, 2, 9, 0, tzinfo=timezone.utc), limits)


def spec(
    *cards: CardShare,
    attachment: Attachment = "nvidia",
    owner: Owner = ANN,
    mem_limit: int | None = None,
    defaults: Defaults | None = None,
    image: ImageFacts = IMAGE,
    **more: Any,
) -> ContainerSpec:
    """The container of such a lease."""
    held = lease(*cards, owner=owner, limits=Limits(mem_limit_bytes=mem_limit))
    return build(Choice(profile(**more)), held, image, attachment, defaults or Defaults())


WHOLE_A, WHOLE_B, SHARE_A = CardShare(A), CardShare(B), CardShare(A, 8 * GIB)


# Which cards get in


@pytest.mark.fault(11)
@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_without_a_lease_no_card_gets_in(attachment: Attachment) -> None:
    """Law 3: `void` and the plain runtime, each of which alone keeps the cards out, and no device request."""
    made = spec(attachment=attachment)
    assert made.environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert made.host_config["runtime"] == "runc"
    assert "device_requests" not in made.host_config
    assert not made.attached


@pytest.mark.parametrize(
    ("cards", "uuids"),
    [
        pytest.param((WHOLE_A,), [A], id="one card"),
        pytest.param((WHOLE_B, WHOLE_A), [B, A], id="two cards"),
        pytest.param((SHARE_A,), [A], id="a share"),
    ],
)
def test_leased_cards_are_one_request_by_uuid(cards: tuple[CardShare, ...], uuids: list[str]) -> None:
    """Law 2: by UUID, never by count; one request, because of two the engine lets the last one win."""
    made = spec(*cards)
    assert made.host_config["device_requests"] == [
        {"Driver": "nvidia", "DeviceIDs": uuids, "Capabilities": [["gpu", "compute", "utility"]]}
    ]
    assert made.environment["NVIDIA_VISIBLE_DEVICES"] == ",".join(uuids)
    assert made.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "runtime" not in made.host_config
    assert made.attached


def test_by_cdi_the_engine_attaches_and_the_runtime_keeps_out() -> None:
    """Names of the cards in one request; `void` keeps a default nvidia runtime from attaching on its own."""
    made = spec(WHOLE_A, WHOLE_B, attachment="cdi")
    assert made.host_config["device_requests"] == [
        {"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={A}", f"nvidia.com/gpu={B}"]}
    ]
    assert made.environment["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_simulated_cards_are_leased_and_never_attached() -> None:
    """The labels hold the cards; the container holds nothing."""
    made = spec(WHOLE_A, attachment="simulated")
    assert decoded(made).cards == (WHOLE_A,)
    assert made.environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert made.host_config["runtime"] == "runc"
    assert not made.attached


def test_a_share_tells_the_frameworks_their_budget() -> None:
    """In MiB, as the toolkit reads it; the frameworks are asked not to take the whole card at once."""
    environment = spec(CardShare(A, 8 * GIB)).environment
    assert environment["NVIDIA_GPU_MEMORY_LIMIT"] == "8192"
    assert environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert "NVIDIA_GPU_MEMORY_LIMIT" not in spec(WHOLE_A).environment


@pytest.mark.fault(10, 11)
@given(strategies.leases(), st.sampled_from(ATTACHMENTS))
def test_whatever_is_leased_the_variable_is_set_and_never_all(held: Lease, attachment: Attachment) -> None:
    """Law 3 for every lease: exactly the leased UUIDs or `void`, and a request exactly when cards are attached."""
    made = build(Choice(profile()), held, IMAGE, attachment, Defaults())
    uuids = [card.uuid for card in held.cards]
    visible = made.environment["NVIDIA_VISIBLE_DEVICES"]
    requests = made.host_config.get("device_requests", [])
    if not uuids or attachment == "simulated":
        assert (visible, requests, made.host_config["runtime"]) == ("void", [], "runc")
    else:
        assert visible == ("void" if attachment == "cdi" else ",".join(uuids))
        assert [name.removeprefix("nvidia.com/gpu=") for each in requests for name in each["DeviceIDs"]] == uuids
        assert len(requests) == 1
        assert "Count" not in requests[0]


@pytest.mark.parametrize(
    ("mode", "leased", "listed", "simulated", "expected"),
    [
        pytest.param("auto", [A], [], False, "nvidia", id="the engine lists nothing"),
        pytest.param("auto", [A], [f"nvidia.com/gpu={A}"], False, "cdi", id="the engine lists the card"),
        pytest.param("auto", [A, B], [f"nvidia.com/gpu={A}"], False, "nvidia", id="one of two is listed: stale spec"),
        pytest.param("auto", [A], ["nvidia.com/gpu=0", "nvidia.com/gpu=all"], False, "nvidia", id="indices only"),
        pytest.param("auto", [A], [f"amd.com/gpu={A}"], False, "nvidia", id="another vendor's name"),
        pytest.param("auto", [], [f"nvidia.com/gpu={A}"], False, "nvidia", id="nothing leased"),
        pytest.param("nvidia", [A], [f"nvidia.com/gpu={A}"], False, "nvidia", id="the admin says nvidia"),
        pytest.param("cdi", [A], [], False, "cdi", id="the admin says cdi"),
        pytest.param("cdi", [A], [f"nvidia.com/gpu={A}"], True, "simulated", id="simulated wins"),
    ],
)
def test_how_the_cards_get_in(mode: str, leased: list[str], listed: list[str], simulated: bool, expected: str) -> None:
    """CDI only where it is asked for, or where the engine lists every leased card by UUID."""
    assert attachment_for(mode, leased, listed, simulated=simulated) == expected


# Limits, folders, labels


@pytest.mark.parametrize(
    ("mem_limit", "settings", "shm"),
    [
        pytest.param(16 * GIB, {}, 4 * GIB, id="a quarter of the limit"),
        pytest.param(16 * GIB, {"shm_size": "1G"}, GIB, id="the profile says"),
        pytest.param(None, {}, GIB, id="no limit: one GiB"),
        pytest.param(None, {"shm_size": "3G"}, 3 * GIB, id="no limit, the profile says"),
    ],
)
def test_shared_memory(mem_limit: int | None, settings: dict[str, Any], shm: int) -> None:
    """Docker's own 64 MiB breaks PyTorch's DataLoader."""
    assert spec(mem_limit=mem_limit, **settings).host_config["shm_size"] == shm


def test_a_memory_limit_switches_swap_off() -> None:
    """Docker adds as much swap again unless the two limits are equal."""
    made = spec(mem_limit=16 * GIB)
    assert made.mem_limit_bytes == made.host_config["memswap_limit"] == 16 * GIB
    assert "memswap_limit" not in spec().host_config


def test_every_container_is_confined() -> None:
    """No capability, no new privileges, an init, a limit of processes, a log that cannot fill the disk."""
    made = spec(WHOLE_A).host_config
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert made["init"] is True
    assert made["ipc_mode"] == "private"
    assert made["pids_limit"] == 4096
    assert made["log_config"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert spec(pids_limit=512).host_config["pids_limit"] == 512


def test_a_dead_container_stays_to_be_read() -> None:
    """With auto_remove the exit code and the log would vanish with it."""
    assert spec().host_config["auto_remove"] is False


def test_what_an_admin_may_not_set_is_all_that_hands_out_cards() -> None:
    """The spec itself sets nothing that is privileged."""
    assert set(FORBIDDEN_HOST_CONFIG) & set(spec(WHOLE_A).host_config) <= {"device_requests", "auto_remove"}
    assert set(FORBIDDEN_HOST_CONFIG) & set(spec().host_config) <= {"runtime", "auto_remove"}


@pytest.mark.parametrize(
    ("check", "theirs", "words"),
    [
        pytest.param(check_host_config, {"runtime": "nvidia", "dns": []}, "must not set runtime", id="runtime"),
        pytest.param(check_host_config, {"privileged": True, "devices": []}, "devices, privileged", id="all cards"),
        pytest.param(check_host_config, {"auto_remove": True}, "auto_remove", id="no evidence"),
        pytest.param(check_create_kwargs, {"runtime": "nvidia"}, "must not set runtime", id="runtime at create"),
        pytest.param(check_create_kwargs, {"image": "x", "name": "y"}, "image, name", id="another container"),
        pytest.param(check_create_kwargs, {"host_config": {}}, "host_config", id="around the host config"),
    ],
)
def test_what_goes_around_the_lease_is_refused(check: Any, theirs: dict[str, Any], words: str) -> None:
    """An admin's own Docker options may be anything but that; the message names them."""
    with pytest.raises(ConfigError, match=words):
        check(theirs)
    check({"dns": ["10.0.0.1"], "user": "1000"})


def test_the_home_is_a_volume_at_the_home_of_the_image() -> None:
    """One for all servers of a user, wherever the image has its home."""
    image = ImageFacts("x", "sha256:1", "/root")
    made = spec(owner=Owner("ann", "second"), image=image)
    assert made.home_volume == "jupyter-home-ann"
    assert made.binds == {"jupyter-home-ann": {"bind": "/root", "mode": "rw"}}
    assert made.home_path is None


@pytest.mark.parametrize(
    ("template", "user", "path"),
    [
        pytest.param("/srv/homes/{username}", "ann", "/srv/homes/ann", id="plain"),
        pytest.param("/srv/{username}/{username}", "ann", "/srv/ann/ann", id="twice"),
        pytest.param("/srv/homes/{username}", "../../etc", "/srv/homes/etc-[0-9a-f]{8}", id="climbing out"),
        pytest.param("/srv/homes/{username}", "A.B@x.kr", "/srv/homes/a-b-x-kr-[0-9a-f]{8}", id="changed"),
    ],
)
def test_the_home_is_a_folder_where_the_admin_wants_one(template: str, user: str, path: str) -> None:
    """The slug of the name stands in the path, so that no name leads out of it."""
    made = spec(owner=Owner(user), defaults=Defaults(home_path_template=template))
    assert re.fullmatch(path, str(made.home_path))
    assert made.binds == {made.home_path: {"bind": "/home/jovyan", "mode": "rw"}}
    assert made.home_volume is None


def test_extra_volumes_are_mounted_for_the_user() -> None:
    """Data sets read-only unless said otherwise; `{username}` becomes the slug."""
    volumes = {"/data": "/data", "scratch-{username}": {"bind": "/scratch", "mode": "rw"}}
    made = spec(owner=Owner("A"), volumes=volumes)
    assert made.binds == {
        home_volume_name(Owner("A")): {"bind": "/home/jovyan", "mode": "rw"},
        "/data": {"bind": "/data", "mode": "ro"},
        f"scratch-{safe_slug('A')}": {"bind": "/scratch", "mode": "rw"},
    }


@given(strategies.leases())
def test_the_labels_are_the_lease(held: Lease) -> None:
    """Law 1: what the container says of itself is the lease, whole, with raw names."""
    made = build(Choice(profile()), held, IMAGE, "nvidia", Defaults())
    assert decode(made.labels) == held


def decoded(made: ContainerSpec) -> Lease:
    """The lease on the labels, which has to be there."""
    found = decode(made.labels)
    assert found is not None
    return found


# Names

DOCKER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
HASHED = "a-b-" + "0" * 8
LOOK_ALIKES = (
    "a", "A", "a_b", "a-b", "a.b", "a--b", "A-B", "ab", "-a-b", "a-b-", "학생1", "학생2", "학생", "1", "x-1", "x", "-",
    HASHED, safe_slug("a-b"), safe_slug("A"), safe_slug("학생1"), f"{safe_slug('A')}--b", "a--b--c", "home-a",
    "n" * 30, "n" * 31, "n" * 200, "n" * 199 + "m", "é", "e\u0301", "ａ",
)  # fmt: skip


@st.composite
def owners(draw: st.DrawFn) -> Owner:
    """Owners in one Hub whose names look alike, or are anything at all."""
    names = st.sampled_from(LOOK_ALIKES) | strategies.names()
    return Owner(draw(names), draw(st.just("") | names))


@given(st.lists(owners(), min_size=2, max_size=6, unique=True))
def test_different_servers_have_different_containers(several: list[Owner]) -> None:
    """Whatever users and servers are called; and of the homes each user has one."""
    assert len({object_name(owner) for owner in several}) == len(several)
    homes = {home_volume_name(owner) for owner in several}
    assert len(homes) == len({owner.user for owner in several})


def test_names_that_look_alike_stay_apart() -> None:
    """All of the list against all of it, as users and as servers."""
    everyone = [Owner(user, server) for user in LOOK_ALIKES for server in ("", *LOOK_ALIKES)]
    assert len({object_name(owner) for owner in everyone}) == len(everyone)
    assert len({home_volume_name(Owner(user)) for user in LOOK_ALIKES}) == len(LOOK_ALIKES)


@given(owners())
@example(Owner("학생1", "서버"))
@example(Owner("n" * 200, "n" * 200))
def test_names_are_names_to_docker(owner: Owner) -> None:
    """Docker refuses all but these characters; names stay short enough for a host name behind the prefix."""
    for name in (object_name(owner), home_volume_name(owner)):
        assert DOCKER_NAME.fullmatch(name)
    assert len(object_name(owner).removeprefix("jupyter-")) <= 63


def test_plain_names_stay_readable() -> None:
    """An admin who lists the containers recognises them."""
    assert object_name(Owner("ann")) == "jupyter-ann"
    assert object_name(Owner("ann", "second")) == "jupyter-ann--second"
    assert home_volume_name(Owner("ann", "second", hub="lab")) == "lab-home-ann"


TEXTS = st.text(st.sampled_from(string.ascii_letters[:4] + "{}!:.[]0%") | st.characters(exclude_categories=["Cs"]))
NESTED = st.recursive(
    TEXTS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


def rendered(value: Any) -> Any:
    """What DockerSpawner makes of a value: each text is formatted."""
    if isinstance(value, str):
        return value.format(username="evil", servername="evil", prefix="evil", raw_username="evil")
    if isinstance(value, dict):
        return {rendered(key): rendered(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(rendered(item) for item in value)
    return value


@given(NESTED)
@example({"gpuspawner.user": "{username}", "x": ["{", "}", "{{}}", ("{0}", "{username!r}")]})
def test_literal_comes_through_a_template_unchanged(value: Any) -> None:
    """A user named `{prefix}` is on the label as `{prefix}`."""
    assert rendered(literal(value)) == value


# Did the cards arrive?


def gpu(uuid: str, minor: int | None) -> Gpu:
    """A card as NVML says."""
    return Gpu(GpuUuid(uuid), 0, "NVIDIA GeForce RTX 4090", 24 * GIB, minor)


def smi(*uuids: str) -> str:
    """What `nvidia-smi -L` prints."""
    return "".join(f"GPU {n}: NVIDIA GeForce RTX 4090 (UUID: {uuid})\n" for n, uuid in enumerate(uuids))


def told(*minors: int, smi_says: str = "") -> str:
    """What the probe prints when all of it comes through."""
    nodes = "".join(f"nvidia{minor}\n" for minor in minors)
    return f"--- nodes ---\n{nodes}--- nvidia-smi ---\n{smi_says}--- end ---\n"


NVML_ERROR = "Failed to initialize NVML: Unknown Error\n"
NO_SHELL = 'OCI runtime exec failed: exec failed: exec: "sh": executable file not found in $PATH: unknown\r\n'


@pytest.mark.parametrize(
    ("leased", "output"),
    [
        pytest.param([gpu(A, 3)], told(3), id="the node; no nvidia-smi in the image"),
        pytest.param([gpu(A, 3)], told(3, smi_says=smi(A)), id="both witnesses"),
        pytest.param([gpu(A, 0), gpu(B, 10)], told(0, 10, smi_says=smi(A, B)), id="two cards"),
        pytest.param([gpu(A, 0), gpu(B, 1)], told(1, 0, smi_says=smi(B, A)), id="in another order"),
        pytest.param([gpu(A, None)], told(smi_says=smi(A)), id="WSL2: no nodes, no minors"),
        pytest.param([gpu(A, None)], told(0, smi_says=smi(A)), id="a minor is not told: nvidia-smi decides"),
        pytest.param([gpu(A, 3)], "sh: a warning\n" + told(3), id="a shell that says something first"),
    ],
)
def test_cards_that_arrived(leased: list[Gpu], output: str) -> None:
    """Nothing to say where every witness there is agrees."""
    assert is_whole_answer(output)
    assert check_arrival(leased, output) is None


@pytest.mark.parametrize(
    ("leased", "output", "words"),
    [
        pytest.param([gpu(A, 3)], told(), "/dev/nvidia3 is missing", id="no node"),
        pytest.param([gpu(A, 3)], "", "did not answer", id="nothing printed"),
        pytest.param([gpu(A, 3)], NO_SHELL, "did not answer", id="no shell in the image"),
        pytest.param([gpu(A, 3)], told(1), "/dev/nvidia3 is missing", id="another card's node"),
        pytest.param([gpu(A, 1)], told(10), "/dev/nvidia1 is missing", id="nvidia10 is not nvidia1"),
        pytest.param([gpu(A, 0), gpu(B, 1)], told(0), "/dev/nvidia1 is missing", id="one of two"),
        pytest.param([gpu(A, 3)], told(3, 4), "/dev/nvidia4, which is not leased", id="one too many"),
        pytest.param([gpu(A, 3)], told(3, smi_says=smi(B)), "does not list exactly", id="another UUID"),
        pytest.param([gpu(A, 3)], told(3, smi_says=smi(A, B)), "does not list exactly", id="a UUID too many"),
        pytest.param([gpu(A, 3)], told(3, smi_says=NVML_ERROR), "Unknown Error", id="NVML does not work inside"),
        pytest.param([gpu(A, 3)], told(3, smi_says="No devices were found\n"), "No devices", id="none for NVML"),
        pytest.param([gpu(A, None)], told(), "nvidia-smi is missing", id="no witness at all"),
        pytest.param([gpu(A, None)], told(smi_says=NVML_ERROR), "Unknown Error", id="the only witness fails"),
        pytest.param([gpu(A, None)], told(smi_says=smi(B)), "does not list exactly", id="the only witness: another"),
        pytest.param([gpu(A, 0), gpu(B, None)], told(0), "nvidia-smi is missing", id="one minor unknown"),
    ],
)
def test_cards_that_did_not_arrive(leased: list[Gpu], output: str, words: str) -> None:
    """The student reads which part failed, the log has what the container printed."""
    problem = check_arrival(leased, output)
    assert problem is not None
    assert problem.reason is Reason.GPU_FAULT
    assert words in problem.text.en
    assert problem.text.ko
    assert repr(output.strip()) in problem.detail


@pytest.mark.parametrize("output", [told(3), told(0, 3, smi_says=smi(A, B))])
def test_an_answer_that_lost_something_is_not_whole(output: str) -> None:
    """docker-py may lose the beginning; whatever is cut off at either end, nothing is concluded from the rest."""
    for cut in range(1, len(output.strip()) + 1):
        for part in (output.strip()[cut:], output.strip()[:-cut]):
            assert not is_whole_answer(part)
            problem = check_arrival([gpu(A, 3)], part)
            assert problem is not None
            assert "did not answer the check" in problem.text.en


def test_a_long_complaint_of_nvidia_smi_is_cut() -> None:
    """A sentence stays a sentence; the log has it all."""
    problem = check_arrival([gpu(A, 0)], told(0, smi_says="x" * 5000 + "\n"))
    assert problem is not None
    assert len(problem.text.en) < 400
    assert "x" * 5000 in problem.detail


@pytest.mark.fault(10)
@given(st.lists(st.integers(0, 3), unique=True), st.sets(st.integers(0, 3), min_size=1), st.booleans())
def test_all_is_well_only_when_exactly_the_leased_cards_are_there(
    present: list[int], leased: set[int], with_smi: bool
) -> None:
    """Neither more nor fewer cards ever pass."""
    uuids = [f"GPU-0000000{n}-0000-4000-8000-000000000000" for n in range(4)]
    output = told(*present, smi_says=smi(*(uuids[n] for n in present)) * with_smi)
    assert (check_arrival([gpu(uuids[n], n) for n in leased], output) is None) == (set(present) == leased)


# Why did it die?


def died(exit_code: int = 1, *lines: str, oom: bool = False, error: str = "") -> Evidence:
    """What a dead container leaves behind."""
    return Evidence(exit_code, oom, error, lines)


@pytest.mark.parametrize(
    ("evidence", "limit", "reason", "en", "ko"),
    [
        pytest.param(
            died(137, "loading", oom=True), 16 * GIB, Reason.OUT_OF_MEMORY, "ran out of memory (16 GiB)",
            "메모리 (16 GiB)가 부족", id="out of memory",
        ),
        pytest.param(
            died(1, oom=True), None, Reason.OUT_OF_MEMORY, "ran out of memory and was stopped", "메모리가 부족",
            id="out of memory of the whole machine",
        ),
        pytest.param(
            died(127), GIB, Reason.IMAGE_UNFIT, "jupyterhub-singleuser is missing", "jupyterhub-singleuser",
            id="no such command",
        ),
        pytest.param(
            died(126), GIB, Reason.IMAGE_UNFIT, "cannot run a notebook server", "노트북 서버", id="not executable",
        ),
        pytest.param(
            died(137), GIB, Reason.DIED, "with exit code 137", "종료 코드 137", id="killed, but not for memory",
        ),
        pytest.param(
            died(1, "Traceback", "ImportError: no module named jupyterhub", "", "  "), GIB, Reason.DIED,
            "with exit code 1. Its last words were: “ImportError: no module named jupyterhub”. Start it again",
            "마지막 출력: “ImportError: no module named jupyterhub”. 다시", id="the last line that says something",
        ),
        pytest.param(died(3), GIB, Reason.DIED, "exit code 3. Start it again", "종료 코드 3", id="no word at all"),
        pytest.param(
            died(1, "100% of {all} <b>"), GIB, Reason.DIED, "words were: “100% of {all} <b>”.", "“100% of {all} <b>”",
            id="percent and braces stay",
        ),
    ],
)  # fmt: skip
def test_last_words(evidence: Evidence, limit: int | None, reason: Reason, en: str, ko: str) -> None:
    """One sentence for the student in each language, with the reason word for the metrics."""
    words = last_words(evidence, limit)
    assert words.reason is reason
    assert en in words.text.en
    assert ko in words.text.ko
    assert words.detail == evidence.record


def test_the_kind_of_error_follows_the_cause() -> None:
    """An image that cannot serve is the engine's matter (503), a server that died is its own (500)."""
    assert isinstance(last_words(died(127), None), ImageUnfit)
    assert isinstance(last_words(died(1), None), ServerDied)


def test_a_very_long_line_is_cut_for_the_student_and_kept_for_the_log() -> None:
    """Some programs print their whole state as one line."""
    line = "y" * 10_000
    words = last_words(died(1, line), None)
    assert len(words.text.en) < 400
    assert len(words.text.ko) < 400
    assert line in words.detail


def test_colours_and_control_characters_are_left_out_of_the_sentence() -> None:
    """A log line that was made for a terminal is read on a page."""
    words = last_words(died(1, "\x1b[31;1mE: boom\x1b[0m\x07"), None)
    assert "words were: “E: boom”. Start" in words.text.en


def test_the_record_holds_everything() -> None:
    """Exit code, memory, the engine's own error, and the log in order."""
    record = died(1, "first", "second", oom=True, error="the engine says").record
    for part in ("exit code 1", "True", "the engine says", "first\n    second"):
        assert part in record
    assert "(no output)" in died(1).record


@given(st.integers(-1, 255), st.lists(st.text(), max_size=4), st.booleans(), st.none() | st.integers(1, 64 * GIB))
def test_there_is_always_a_sentence(code: int, lines: list[str], oom: bool, limit: int | None) -> None:
    """Whatever a container leaves behind: short, in both languages, on one line."""
    words = last_words(Evidence(code, oom, "", tuple(lines)), limit)
    for text in (words.text.en, words.text.ko):
        assert 0 < len(text) < 500
        assert len(text.splitlines()) == 1


def test_a_share_of_mebibytes_is_told_in_mebibytes() -> None:
    """The toolkit reads whole MiB."""
    assert spec(CardShare(A, 1536 * MIB)).environment["NVIDIA_GPU_MEMORY_LIMIT"] == "1536"
