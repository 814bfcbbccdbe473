"""`gpuspawner status`: the cards, the servers and the images, as tables for a person or as JSON for a program."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpuspawner import quarantine
from gpuspawner.cards import CardsFile
from gpuspawner.cli.options import DEFAULT_STATE, State
from gpuspawner.dockerd import Engine
from gpuspawner.errors import EngineDown, EngineTimeout, RecordError, Refused
from gpuspawner.extensions import Extensions
from gpuspawner.fakegpus import FakeGPUs
from gpuspawner.gpus import GpuSource
from gpuspawner.leases import CardShare, Owner
from gpuspawner.nvml import Nvml
from gpuspawner.profiles import SHELF
from gpuspawner.quarantine import Record
from gpuspawner.status import ADMIN, CardStatus, Holder, ImageStatus, ServerStatus, Status, as_json, report
from gpuspawner.units import format_bytes, format_duration

ENGINE_SECONDS = 10.0
SHORT = 8
"""How many characters of a UUID are shown."""

_STYLES = {
    "free": "green",
    "whole": "",
    "shared": "",
    "drained": "yellow",
    "current": "green",
    "older": "yellow",
    "unknown": "yellow",
}


def command(
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    state: State = DEFAULT_STATE,
) -> None:
    """Show who holds which card, which servers run an older image than a restart would give, and the images.

    The labels of the containers and the NVIDIA driver are asked, and what is remembered of drained and sick cards and
    of extended times; no Hub is needed. GPUSPAWNER_FAKE_GPUS counts simulated cards, as for the Hub.

    Exit status: 0 all well, 1 something has to be looked after (a card is out of order or gone, a lease cannot be
    read, nor what is drained), 2 nothing could be told.
    """
    try:
        gpus = cards_of(os.environ)
        record = _remembered(state)
        status = asyncio.run(look(gpus, record or Record(), state))
    except (Refused, ValueError) as error:
        typer.echo(f"gpuspawner status: {_sentence(error)}", err=True)
        raise typer.Exit(2) from None
    if as_json_:
        print(json.dumps(as_json(status), indent=2, ensure_ascii=False))
    else:
        show(status, Console(highlight=False))
    raise typer.Exit(1 if status.wrong or record is None else 0)


def _remembered(folder: Path) -> Record | None:
    """What is drained and sick; None, and a sentence, where it cannot be read: all the rest can still be told."""
    try:
        return CardsFile(folder).read()
    except RecordError as error:
        typer.echo(f"gpuspawner status: {error}", err=True)
        return None


def cards_of(environ: Mapping[str, str]) -> GpuSource:
    """The driver's cards, or simulated ones where GPUSPAWNER_FAKE_GPUS asks for them, as `jupyterhub_config.py` does.

    Raises:
        ValueError: the variable cannot be read.
    """
    spec = environ.get("GPUSPAWNER_FAKE_GPUS", "")
    return FakeGPUs(spec) if spec else Nvml()


async def look(gpus: GpuSource, record: Record, folder: Path) -> Status:
    """Ask the driver, then the engine (a server that starts in between is nobody from outside), then `folder`.

    Raises:
        Refused: the engine does not tell.
    """
    engine = Engine(threads=2, call_timeout_seconds=ENGINE_SECONDS)
    try:
        seen = await gpus.inventory()
        containers, images = await asyncio.gather(engine.leased(), engine.images())
    finally:
        engine.close()
    leased = frozenset(card.uuid for container in containers for card in container.cards)
    state = quarantine.watch({}, seen, leased=leased, now=0.0)
    faults = quarantine.faults(seen, record, state, now=0.0, grace_seconds=0.0)
    inventory = quarantine.apply(seen, faults)
    extensions = Extensions(folder).read()
    at = datetime.now(timezone.utc)
    return report(containers, inventory, images, at=at, viewer=ADMIN, extensions=extensions)


def _sentence(error: Exception) -> str:
    """For the admin, who needs the engine's words and not the advice to ask an admin."""
    detail = " ".join(str(getattr(error, "detail", "") or error).split())
    match error:
        case EngineDown():
            return (
                f"the Docker engine does not answer ({detail}). Start it (systemctl start docker), set DOCKER_HOST to "
                "where it is, or run this as root or as a member of the group docker."
            )
        case EngineTimeout():
            return f"the Docker engine does not answer in time ({detail}). Look at: journalctl -u docker"
        case Refused():
            return f"the Docker engine refuses to tell ({detail}). Look at: journalctl -u docker"
        case _:
            return f"GPUSPAWNER_FAKE_GPUS cannot be read. {detail}"


# --- what is printed -------------------------------------------------------------------------------------------------


def show(status: Status, console: Console) -> None:
    """Three tables; what is empty is a sentence, and so is what somebody has to do something about."""
    names = _CardNames(status.cards)
    _show_cards(status, names, console)
    console.print()
    _show_servers(status, names, console)
    console.print()
    if status.images:
        console.print(_images(status))
    else:
        console.print("No image has been built yet. Build them with: images/build_images.py")


def _show_cards(status: Status, names: _CardNames, console: Console) -> None:
    if status.simulated:
        console.print("These cards are simulated: they are counted, and none is attached.", style="yellow")
    if status.trouble:
        console.print(f"The cards cannot be seen. {status.detail or status.trouble.en}", markup=False, style="yellow")
    elif not status.cards:
        console.print("This machine has no GPU.")
    if status.cards:
        table = _headed("card", "model", "uuid", ">memory", "state", "held by")
        for card in status.cards:
            gpu = card.gpu
            table.add_row(
                f"#{gpu.index}" if gpu else "?",
                Text(gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ") if gpu else "?"),
                names.short(card.uuid),
                format_bytes(gpu.memory_bytes) if gpu and gpu.memory_bytes else "?",
                _card_state(card),
                Text("\n".join(_who(holder) for holder in card.holders)),
            )
        console.print(table)
    for card in status.cards:
        if card.gpu and card.gpu.fault:
            style = "yellow" if card.state == "drained" else "red"
            console.print(f"{names[card.uuid]}: {card.gpu.fault.en}", style=style, markup=False)
        elif card.state == "gone":
            console.print(
                f"{names[card.uuid]} is held and not there any more: look at `dmesg | grep -i xid`, and stop that "
                "server: it has lost its card.",
                style="red",
                markup=False,
            )
    if status.detail and not status.trouble:
        console.print(status.detail, style="red", markup=False)


def _show_servers(status: Status, names: _CardNames, console: Console) -> None:
    if not status.servers:
        console.print("No server is running.")
        return
    hubs = {server.lease.owner.hub for server in status.servers if server.lease}
    # A narrow terminal has no room for a column that says nothing.
    limited = any(server.ends for server in status.servers)
    left = (">left",) if limited else ()
    table = _headed("server", "profile", "cards", ">for", *left, "state", "image", "which is")
    for server in status.servers:
        lease = server.lease
        table.add_row(
            Text(_name(lease.owner, with_hub=len(hubs) > 1) if lease else server.container),
            Text(lease.profile if lease else "?"),
            Text("\n".join(_share(card, names) for card in server.cards) or "none"),
            Text(_duration(status.at, lease.started) if lease else "?", no_wrap=True),
            *([_left(status.at, server)] if limited else []),
            Text(server.state, "" if server.state == "running" else "yellow"),
            # The whole reference is in the table of images.
            Text(_image_name(lease.image).rpartition("/")[2] if lease else "?"),
            Text(server.environment, _STYLES[server.environment]),
        )
    console.print(table)
    if older := sum(server.environment == "older" for server in status.servers):
        who = "1 server runs" if older == 1 else f"{older} servers run"
        console.print(
            f"{who} an older image: a newer one is ready, and a restart of the server gets it. "
            "The Hub's home page says so to its owner.",
            style="yellow",
        )
    for server in status.servers:
        if server.lease is None:
            console.print(
                f"The labels of {server.container} cannot be read, so its cards are taken as whole. If no other "
                f"version of gpuspawner made it: docker rm --force {server.container}",
                style="red",
                markup=False,
            )


def _left(at: datetime, server: ServerStatus) -> Text:
    """How long the server may run on; in yellow what should have been stopped by now."""
    if server.ends is None:
        return Text("-" if server.lease else "?")
    if server.ends <= at:
        return Text("over", "yellow")
    return Text(_duration(server.ends, at), no_wrap=True)


def _images(status: Status) -> Table:
    table = _headed("image", "id", ">made", "servers")
    for image in status.images:
        table.add_row(
            Text(_image_name(image.reference)),
            image.image.id.removeprefix("sha256:")[:12] if image.image else Text("not here", "yellow"),
            Text(f"{_duration(status.at, image.image.created)} ago" if image.image else "?", no_wrap=True),
            Text(_users(image)),
        )
    return table


def _users(image: ImageStatus) -> str:
    counts = ((image.current, "current"), (image.older, "older"))
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "none"


def _headed(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table


class _CardNames:
    """Cards as a person calls them: by their number where they have one, else by a part of their UUID."""

    def __init__(self, cards: Sequence[CardStatus]) -> None:
        self._numbers = {card.uuid: f"#{card.gpu.index}" for card in cards if card.gpu}
        # The beginning tells real cards apart; simulated ones differ at their end.
        beginnings = {card.uuid.removeprefix("GPU-")[:SHORT] for card in cards}
        self._from_the_end = len(beginnings) < len(cards)

    def short(self, uuid: str) -> str:
        return uuid[-SHORT:] if self._from_the_end else uuid.removeprefix("GPU-")[:SHORT]

    def __getitem__(self, uuid: str) -> str:
        return self._numbers.get(uuid) or self.short(uuid)


def _card_state(card: CardStatus) -> Text:
    words = {"fault": "out of order", "drained": "out of use", "unknown": "cannot be seen"}.get(card.state, card.state)
    if card.state == "shared":
        words = f"shared: {format_bytes(card.shared_bytes)}"
    return Text(words, _STYLES.get(card.state, "bold red"))


def _who(holder: Holder) -> str:
    if holder.unreadable:
        return holder.unreadable
    name = _name(Owner(holder.user, holder.server)) if holder.user else "somebody"
    return name if holder.memory_bytes is None else f"{name} {format_bytes(holder.memory_bytes)}"


def _name(owner: Owner, *, with_hub: bool = False) -> str:
    name = f"{owner.user}/{owner.server}" if owner.server else owner.user
    return f"{name} ({owner.hub})" if with_hub else name


def _share(card: CardShare, names: _CardNames) -> str:
    name = names[card.uuid]
    return name if card.memory_bytes is None else f"{format_bytes(card.memory_bytes)} of {name}"


def _duration(at: datetime, moment: datetime) -> str:
    """To the minute, from the first minute on."""
    seconds = round((at - moment).total_seconds())
    return format_duration(seconds if seconds < 60 else seconds // 60 * 60).en


def _image_name(reference: str) -> str:
    """An image of the shelf by its folder's name, as profiles call it."""
    name = reference.removeprefix(f"{SHELF}/")
    return name.removesuffix(":latest") if name != reference else reference
