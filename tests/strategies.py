"""Hypothesis strategies for the nouns: cards, what is held of them, requests, profiles and leases.

Everything here is legal input, with sizes that collide and names that hurt. What is illegal is in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.leases import CardShare, Lease, Limits, Owner
from gpuspawner.placement import Occupancy, Policy
from gpuspawner.profiles import GpuRequest
from gpuspawner.texts import Text
from gpuspawner.units import GIB, MIB

# A shared two-core machine may pause a test for longer than Hypothesis' deadline of 200 ms.
settings.register_profile("gpuspawner", deadline=None)
settings.load_profile("gpuspawner")

NASTY_NAMES = (
    "a",
    "a_b",
    "a-b",
    "A.B@x.kr",
    "학생1",
    "a=b,{prefix}",
    "{username}--{servername}",
    "q\"'`$(reboot)\\",
    "<script>alert(1)</script>",
    " lead and trail ",
    "two\nlines",
    "n" * 200,
    "학" * 200,
)
MODELS = ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060", "NVIDIA A100-SXM4-80GB")
CARD_SIZES = (12 * GIB, 24 * GIB, 24564 * MIB, 80 * GIB, 512 * MIB)
FAULT = Text("out of order", "점검 중")


def names() -> st.SearchStrategy[str]:
    """Names of users and servers, as JupyterHub or an authenticator may let them through."""
    return st.sampled_from(NASTY_NAMES) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


def uuids() -> st.SearchStrategy[GpuUuid]:
    """Well-formed UUIDs of cards; few enough of them that two draws meet."""
    return st.integers(0, 7).map(lambda n: GpuUuid(f"GPU-11111111-1111-4111-8111-{n:012x}"))


@st.composite
def inventories(draw: st.DrawFn, *, min_cards: int = 0, max_cards: int = 5, faults: bool = True) -> Inventory:
    """Cards of mixed models and sizes, some of them out of order where `faults`."""
    found = draw(st.lists(uuids(), unique=True, min_size=min_cards, max_size=max_cards))
    cards = tuple(
        Gpu(
            uuid=uuid,
            index=index,
            name=draw(st.sampled_from(MODELS)),
            memory_bytes=draw(st.sampled_from(CARD_SIZES)),
            minor=draw(st.none() | st.just(index)),
            fault=draw(st.sampled_from((None, None, None, FAULT))) if faults else None,
        )
        for index, uuid in enumerate(found)
    )
    return Inventory(cards, simulated=draw(st.booleans()))


def policies() -> st.SearchStrategy[Policy]:
    """Reserves from nothing to more than the smallest card."""
    return st.sampled_from((0, 256 * MIB, GIB, 2 * GIB)).map(Policy)


def share_sizes() -> st.SearchStrategy[int]:
    """Bytes of VRAM that somebody asks for: round numbers, odd ones, and more than any card has."""
    usual = st.sampled_from((256 * MIB, 2 * GIB, 4 * GIB, 8 * GIB, 23 * GIB, 24 * GIB, 200 * GIB))
    return usual | st.integers(1, 24 * GIB) | st.integers(1, 90 * GIB)


def models() -> st.SearchStrategy[str | None]:
    """What a profile says about the model: nothing, words that match, words that match nothing."""
    return st.sampled_from((None, None, None, "NVIDIA", "NVIDIA", "RTX 4090", "rtx3060", "Voodoo 2"))


@st.composite
def requests(draw: st.DrawFn) -> GpuRequest:
    """Whole cards, or a share of one."""
    count: st.SearchStrategy[object] = st.just(1) | st.integers(1, 6)
    whole = st.fixed_dictionaries({"count": count})
    share = st.fixed_dictionaries({"memory": share_sizes()})
    wanted = draw(st.one_of(whole, share))
    return GpuRequest.model_validate({**wanted, "model": draw(models())})


@st.composite
def occupancies(draw: st.DrawFn, inventory: Inventory, policy: Policy) -> Occupancy:
    """Holdings that never exceed a card: each is free, held whole, or cut into shares within its budget.

    Cards that are out of order or gone may be held as well: their holders were there first.
    """
    held: list[CardShare] = []
    for gpu in inventory.gpus:
        state = draw(st.sampled_from(("free", "whole", "shared")))
        if state == "whole":
            held.append(CardShare(gpu.uuid))
        left = gpu.memory_bytes - policy.reserve_bytes
        more = state == "shared"
        while more and left > 0:
            size = draw(st.integers(1, left) | st.integers(1, max(1, left // 4)))
            held.append(CardShare(gpu.uuid, size))
            left -= size
            more = draw(st.booleans())
    held += [CardShare(GpuUuid("GPU-of-a-card-that-was-pulled"), size) for size in draw(_gone_holdings())]
    return Occupancy(tuple(draw(st.permutations(held))))


def _gone_holdings() -> st.SearchStrategy[list[int | None]]:
    return st.lists(st.none() | st.just(GIB), max_size=1)


@st.composite
def leases(draw: st.DrawFn) -> Lease:
    """Leases of no card, of whole cards, or of one share."""
    whole = st.lists(uuids(), unique=True, max_size=4).map(lambda found: tuple(CardShare(uuid) for uuid in found))
    share = st.builds(CardShare, uuids(), st.integers(1, 90 * GIB)).map(lambda card: (card,))
    seconds = draw(st.integers(0, 4_000_000_000))
    return Lease(
        id=draw(st.uuids().map(lambda uuid: uuid.hex)),
        owner=Owner(draw(names()), draw(st.just("") | names()), draw(names())),
        profile=draw(slugs()),
        cards=draw(whole | share),
        started=datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds),
        limits=draw(limits()),
        image=draw(st.sampled_from(("", "gpuspawner/pytorch:latest", "localhost:5000/x@sha256:abc"))),
        image_id=draw(st.sampled_from(("", "sha256:" + "0" * 64))),
    )


def limits() -> st.SearchStrategy[Limits]:
    """All, some or none of the limits."""
    some = st.none() | st.integers(1, 2**60)
    cpus = st.none() | st.floats(0.01, 512, allow_nan=False)
    return st.builds(Limits, some, cpus, some, some)


def slugs() -> st.SearchStrategy[str]:
    """Slugs as a profile may have them."""
    return st.from_regex(r"[a-z0-9]{1,12}(-[a-z0-9]{1,12}){0,3}", fullmatch=True)


def texts() -> st.SearchStrategy[object]:
    """A text as a configuration gives it: plain, or by language."""
    words = st.sampled_from(("One whole GPU", "GPU 1장 전체", "<b>&amp;", "x" * 300))
    by_language = st.fixed_dictionaries({"en": words}, optional={"ko": words}) | st.fixed_dictionaries({"ko": words})
    return words | by_language


def raw_profiles(slug: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """One entry of `profile_list` as an admin writes it: the required keys, and any of the others."""
    sizes = st.sampled_from((8 * GIB, "8G", "8GiB", "512M", "1.5g"))
    times = st.sampled_from((3600, "2h", "90m", "1d12h", "1w"))
    whole = st.fixed_dictionaries({"count": st.integers(1, 8)}, optional={"model": st.just("RTX 4090")})
    share = st.fixed_dictionaries({"memory": sizes}, optional={"model": st.just("RTX 4090")})

    def mount(place: str) -> st.SearchStrategy[Any]:
        return st.just(place) | st.fixed_dictionaries({"bind": st.just(place)}, optional={"mode": _modes()})

    return st.fixed_dictionaries(
        {
            "display_name": texts(),
            "slug": slugs() if slug is None else slug,
            "image": st.sampled_from(("base", "pytorch", "quay.io/jupyter/base-notebook:latest")),
        },
        optional={
            "description": texts(),
            "gpu": whole | share,
            "mem_limit": st.sampled_from((16 * GIB, "16G")),
            "cpu_limit": st.sampled_from((1, 0.5, 8.0)),
            "shm_size": sizes,
            "pids_limit": st.integers(64, 2**20),
            "time_limit": times,
            "idle_timeout": times,
            "groups": st.lists(names(), min_size=1, max_size=3),
            "volumes": st.fixed_dictionaries({}, optional={"/srv/data": mount("/data"), "corpus": mount("/corpus")}),
        },
    )


@st.composite
def raw_profile_lists(draw: st.DrawFn, *, max_size: int = 5) -> list[dict[str, Any]]:
    """A legal `profile_list`: slugs are unique and at most one profile is the default."""
    chosen = draw(st.lists(slugs(), min_size=1, max_size=max_size, unique=True))
    entries = [draw(raw_profiles(st.just(slug))) for slug in chosen]
    marked = draw(st.none() | st.integers(0, len(entries) - 1))
    return [{**entry, "default": True} if index == marked else entry for index, entry in enumerate(entries)]


def json_values() -> st.SearchStrategy[Any]:
    """Anything that a request's body can hold, lone surrogates and huge numbers included."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(10**4400, 10**4401)
        | st.floats()
        | st.text(st.characters())
        | st.sampled_from(("profile", "image", "gpu"))
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | keys(), inner, max_size=4),
        max_leaves=20,
    )


def keys() -> st.SearchStrategy[str]:
    """The keys of options that matter, and those that somebody tries."""
    return st.sampled_from(("profile", "image", "gpu", "profiles", "__class__"))


def held_of(uuid: str, cards: Iterable[CardShare]) -> list[CardShare]:
    """The holdings of one card."""
    return [card for card in cards if card.uuid == uuid]


def assert_within_cards(cards: Iterable[CardShare], inventory: Inventory, policy: Policy) -> None:
    """Law 2: of each listed card there is one whole holding and nothing else, or shares within its budget."""
    held = tuple(cards)
    for gpu in inventory.gpus:
        mine = held_of(gpu.uuid, held)
        if any(card.whole for card in mine):
            assert len(mine) == 1, f"{gpu.uuid} is held whole and once more: {mine}"
        else:
            promised = sum(card.memory_bytes or 0 for card in mine)
            budget = max(0, gpu.memory_bytes - policy.reserve_bytes)
            assert promised <= budget, f"{gpu.uuid}: {promised} of {budget} bytes are promised"


def _modes() -> st.SearchStrategy[str]:
    return st.sampled_from(("ro", "rw"))


def profile_keys() -> st.SearchStrategy[str]:
    """Every key of a profile, and some that are none."""
    return st.sampled_from(
        (
            *(
                "display_name",
                "slug",
                "description",
                "image",
                "gpu",
                "mem_limit",
                "cpu_limit",
                "shm_size",
                "pids_limit",
            ),
            *("time_limit", "idle_timeout", "groups", "volumes", "default", "mem_limit_bytes", "kubespawner_override"),
        )
    )
