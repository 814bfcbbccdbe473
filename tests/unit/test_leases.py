"""The label codec: a lease survives its labels, and broken labels never give a card away."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.errors import LabelError
from gpuspawner.gpus import GpuUuid
from gpuspawner.leases import LEASE, PREFIX, CardShare, Lease, Limits, Owner, decode, encode, held_cards
from gpuspawner.units import GIB
from tests import strategies

LEASED = Lease(
    id="0123abcd",
    owner=Owner("학생1", "a=b,{prefix}", "lab"),
    profile="gpu-share",
    cards=(CardShare(GpuUuid("GPU-a"), 8 * GIB),),
    started=datetime(2026, 3, 2, 9, 0, 0, tzinfo=timezone.utc),
    limits=Limits(16 * GIB, 2.5, 7200, 1800),
    image="gpuspawner/pytorch:latest",
    image_id="sha256:1",
)


@given(strategies.leases())
def test_every_lease_survives_its_labels(lease: Lease) -> None:
    """After a crash the Hub knows exactly what it knew before, whatever people are called."""
    labels = encode(lease)
    assert decode(labels) == lease
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in labels.items())
    assert all(key.startswith(PREFIX) for key in labels)


@given(strategies.leases(), st.dictionaries(st.text(), st.text(), max_size=4))
def test_labels_of_others_do_not_disturb(lease: Lease, others: dict[str, str]) -> None:
    """Images and operators put labels of their own on a container."""
    assert decode({**others, **encode(lease)}) == lease


@given(st.dictionaries(st.text(), st.text(), max_size=4))
def test_labels_without_the_lease_label_are_no_lease(labels: dict[str, str]) -> None:
    """A container that is not ours is neither a lease nor an error."""
    labels.pop(LEASE, None)
    assert decode(labels) is None


def test_the_start_is_written_in_utc() -> None:
    """A Hub in Seoul and one in UTC read the same moment."""
    seoul = timezone(timedelta(hours=9))
    local = datetime(2026, 3, 2, 18, 0, 0, tzinfo=seoul)
    labels = encode(Lease("1", Owner("u"), "cpu", (), local))
    assert labels[PREFIX + "started"] == "2026-03-02T09:00:00+00:00"


def test_a_lease_without_cards_has_no_vram() -> None:
    """A CPU profile holds nothing of any card."""
    labels = encode(Lease("1", Owner("u"), "cpu", (), LEASED.started))
    assert (labels[PREFIX + "gpus"], labels[PREFIX + "vram"]) == ("", "")


@given(strategies.leases(), st.data())
def test_damaged_labels_are_a_label_error_or_a_lease(lease: Lease, data: st.DataObject) -> None:
    """Whatever has happened to the labels, reading them ends in one of the two ways that the Hub handles."""
    labels = encode(lease)
    for key in data.draw(st.lists(st.sampled_from(sorted(labels)), max_size=3, unique=True)):
        values = st.text() | st.sampled_from(("-1", "0", "nan", "1e999", "9" * 5000, "２", "2026-02-30", "0001-01-01"))
        broken = data.draw(st.none() | values)
        if broken is None:
            del labels[key]
        else:
            labels[key] = broken
    with contextlib.suppress(LabelError):
        found = decode(labels)
        assert found is None or isinstance(found, Lease)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("lease", "2", id="format-of-another-version"),
        pytest.param("lease", "", id="format-empty"),
        pytest.param("id", None, id="no-id"),
        pytest.param("user", None, id="no-user"),
        pytest.param("server", None, id="no-server"),
        pytest.param("hub", None, id="no-hub"),
        pytest.param("profile", None, id="no-profile"),
        pytest.param("gpus", None, id="no-cards-said"),
        pytest.param("vram", "8G", id="vram-no-number"),
        pytest.param("vram", "-1", id="vram-negative"),
        pytest.param("vram", "0", id="vram-zero"),
        pytest.param("started", "yesterday", id="start-no-time"),
        pytest.param("started", None, id="no-start"),
        pytest.param("cpu-limit", "two", id="cpu-no-number"),
        pytest.param("mem-limit", "8G", id="memory-no-number"),
    ],
)
def test_a_label_that_cannot_be_read_is_named(key: str, value: str | None) -> None:
    """One bad label makes the whole lease unreadable: half a lease would free a card that is in use."""
    labels = encode(LEASED)
    if value is None:
        del labels[PREFIX + key]
    else:
        labels[PREFIX + key] = value
    with pytest.raises(LabelError):
        decode(labels)


def test_unreadable_labels_still_keep_their_cards() -> None:
    """In doubt the cards count as held whole, so that nobody else gets them."""
    labels = {**encode(LEASED), PREFIX + "vram": "lots"}
    assert held_cards(labels) == (CardShare(GpuUuid("GPU-a")),)
    assert held_cards({}) == ()


def test_a_missing_vram_label_counts_as_the_whole_card() -> None:
    """The safe reading of a share without its size is the whole card."""
    labels = encode(LEASED)
    del labels[PREFIX + "vram"]
    found = decode(labels)
    assert found is not None
    assert found.cards == (CardShare(GpuUuid("GPU-a")),)


def test_a_lease_knows_its_end() -> None:
    """By its own time limit, and by nothing else."""
    started = datetime(2026, 3, 2, 9, tzinfo=timezone.utc)
    lease = Lease("1", Owner("ann"), "one", (), started, Limits(time_limit_seconds=5400))
    assert lease.ends == datetime(2026, 3, 2, 10, 30, tzinfo=timezone.utc)
    assert replace(lease, limits=Limits()).ends is None
