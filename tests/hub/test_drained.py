"""A card that an admin takes out of use while the Hub runs: the form, the door for scripts, and who has it already."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from gpuspawner.cards import CardsFile
from gpuspawner.gpus import GpuUuid
from gpuspawner.quarantine import Drained
from tests.hub.lab import Lab
from tests.hub.people import Person

A, B = GpuUuid("GPU-aaaa"), GpuUuid("GPU-bbbb")


def drain(folder: Path, uuid: GpuUuid, reason: str = "fan is loud") -> None:
    """What `gpuspawner drain` does."""
    CardsFile(folder).change(lambda record: record.drain(uuid, Drained(datetime.now(timezone.utc), "kim", reason)))


@pytest.mark.fault(8)
async def test_a_drained_card_is_not_leased_and_whoever_has_it_goes_on(
    lab: Lab, alice: Person, bob: Person, tmp_path: Path
) -> None:
    """It is given to nobody, while it is in use and when it is idle, until it is brought back."""
    lab.configure(state_path=str(tmp_path))
    assert (await alice.start({"profile": "gpu"})).status == 201
    drain(tmp_path, A)
    assert (await alice.model())["ready"] is True
    assert (await bob.start({"profile": "gpu"})).status == 201
    assert (alice.container().gpus, bob.container().gpus) == (("GPU-aaaa",), ("GPU-bbbb",))
    await alice.stop()
    refused = await alice.start({"profile": "gpu"})
    assert refused.status == 409
    CardsFile(tmp_path).change(lambda record: record.undrain(A))
    assert (await alice.start({"profile": "gpu"})).status == 201
    assert alice.container().gpus == ("GPU-aaaa",)


async def test_the_form_and_rest_say_why(lab: Lab, alice: Person, tmp_path: Path) -> None:
    """With the reason of the admin, in both languages; a new house, as after a restart, says the same."""
    for _ in range(2):
        lab.configure(state_path=str(tmp_path))
        drain(tmp_path, A)
        answer = await alice.start({"profile": "two"})
        assert (answer.status, answer.message) == (
            409,
            "You asked for 2 whole GPUs, but 1 of 2 GPUs is out of use. This GPU was taken out of use by the admin: "
            "fan is loud. Choose another profile, or tell the admin.",
        )
    form = await alice.submit("two")
    assert form.form_error == answer.message
    korean = await alice.submit("two", language="ko")
    assert "GPU 2장 중 1장이 사용에서 제외되었습니다. 관리자가 이 GPU를" in korean.form_error


async def test_a_file_that_cannot_be_read_leases_nothing(lab: Lab, alice: Person, tmp_path: Path) -> None:
    """Law 10: the form says that the cards cannot be known; a profile without a GPU starts."""
    (tmp_path / "cards.json").write_text("torn {")
    lab.configure(state_path=str(tmp_path))
    answer = await alice.start({"profile": "gpu"})
    assert answer.status == 503
    assert answer.message.startswith("Which GPUs may be used cannot be known now.")
    assert "torn" not in answer.text
    assert (await alice.start({"profile": "cpu"})).status == 201
