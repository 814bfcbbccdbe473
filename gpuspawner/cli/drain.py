"""`gpuspawner drain` and `undrain`: take a card out of use, and bring it back. The Hub reads the same file."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Annotated

import typer

from gpuspawner.cards import CardsFile
from gpuspawner.cli.options import DEFAULT_STATE, State
from gpuspawner.cli.status import cards_of
from gpuspawner.errors import RecordError
from gpuspawner.gpus import Gpu, GpuUuid, Inventory
from gpuspawner.quarantine import Drained, Record

Card = Annotated[str, typer.Argument(metavar="GPU", help="Its index, its UUID, or the beginning of its UUID.")]

_UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def drain(
    gpu: Card,
    reason: Annotated[str, typer.Option(help="Why, for the students and for other admins.")] = "",
    state: State = DEFAULT_STATE,
) -> None:
    """Take a card out of use: no new server gets it, and those that have it go on until they are stopped.

    A running Hub follows at once, and remembers it across restarts. The form gives the reason.

    Exit status: 0 done, 2 it could not be done.
    """
    file = CardsFile(state)
    inventory, record = _look(file, "drain")
    uuid = _resolve(gpu, inventory, record, "drain")
    drained = Drained(datetime.now(timezone.utc), _who(), " ".join(reason.split()))
    _change(file, lambda before: before.drain(uuid, drained), "drain")
    card = inventory.get(uuid)
    typer.echo(
        f"{_named(uuid, card)} is out of use: no new server gets it. Servers that have it go on until they are stopped."
        if card
        else f"{uuid} is out of use. It is not seen on this machine now; when it is, no server gets it."
    )


def undrain(gpu: Card, state: State = DEFAULT_STATE) -> None:
    """Bring a card back into use: one that was drained, or one that was left out because of an XID.

    What the driver, or the Hub by looking at the card, still finds wrong with it keeps it out all the same.

    Exit status: 0 done, or it was not out of use; 2 it could not be done.
    """
    file = CardsFile(state)
    inventory, record = _look(file, "undrain")
    uuid = _resolve(gpu, inventory, record, "undrain")
    _change(file, lambda before: before.undrain(uuid), "undrain")
    name, struck = _named(uuid, inventory.get(uuid)), record.struck.get(uuid)
    if uuid in record.drained:
        typer.echo(f"{name} is in use again.")
    if struck:
        typer.echo(f"XID {struck.xid} of {name} is cleared.")
    if uuid not in record.drained and not struck:
        typer.echo(f"{name} was not out of use.")


def _look(file: CardsFile, command: str) -> tuple[Inventory, Record]:
    try:
        return asyncio.run(cards_of(os.environ).inventory()), file.read()
    except ValueError as error:
        raise _refuse(command, f"GPUSPAWNER_FAKE_GPUS cannot be read. {error}") from None
    except RecordError as error:
        raise _refuse(command, str(error)) from None


def _change(file: CardsFile, how: Callable[[Record], Record], command: str) -> None:
    try:
        file.change(how)
    except RecordError as error:
        raise _refuse(command, str(error)) from None


def _resolve(asked: str, inventory: Inventory, record: Record, command: str) -> GpuUuid:
    """The card that is meant; one that is not there now can still be named by its whole UUID."""
    # A card that was never readable has a name for this look only.
    seen = [gpu for gpu in inventory.gpus if gpu.uuid.startswith("GPU-")]
    by_index = [gpu.uuid for gpu in seen if str(gpu.index) == asked.removeprefix("#")]
    if len(by_index) == 1:
        return by_index[0]
    known = {gpu.uuid for gpu in seen} | record.drained.keys() | record.struck.keys()
    wanted = asked.lower().removeprefix("gpu-")
    found = sorted(uuid for uuid in known if uuid.lower().removeprefix("gpu-").startswith(wanted))
    if wanted and len(found) == 1:
        return found[0]
    if _UUID.fullmatch(asked):
        return GpuUuid(f"GPU-{wanted}")
    if inventory.trouble is not None:
        raise _refuse(
            command,
            f"the cards of this machine cannot be seen, so {asked!r} says nothing. Give a whole UUID, as "
            f"`nvidia-smi -L` prints it. {inventory.detail or inventory.trouble.en}",
        )
    if not known:
        raise _refuse(command, "this machine has no GPU.")
    if wanted and found:
        raise _refuse(command, f"{asked!r} can mean {_list(found, inventory)}. Give more of the UUID, or the index.")
    raise _refuse(command, f"there is no card {asked!r}. There are {_list(sorted(known), inventory)}.")


def _list(uuids: Iterable[GpuUuid], inventory: Inventory) -> str:
    return ", ".join(_named(uuid, inventory.get(uuid)) for uuid in uuids)


def _named(uuid: GpuUuid, card: Gpu | None) -> str:
    return f"#{card.index} ({uuid})" if card else uuid


def _who() -> str:
    """Who is at the terminal, behind sudo too."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _refuse(command: str, why: str) -> typer.Exit:
    typer.echo(f"gpuspawner {command}: {why}", err=True)
    return typer.Exit(2)
