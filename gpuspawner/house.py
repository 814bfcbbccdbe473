"""What all spawners of one Hub share: the profiles, the engine, the cards, the ledger, and what is being cleared away.

JupyterHub makes a spawner for each server and throws it away again; this lives as long as the Hub process, in the
Hub's own settings, so that two Hubs in one process (tests) never share it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from gpuspawner.caretaker import DRAIN_GRACE_SECONDS, Caretaker
from gpuspawner.container import ImageFacts
from gpuspawner.dockerd import Engine, watch_leases
from gpuspawner.dockerd.translate import build_command
from gpuspawner.errors import ImageMissing, Reason, Refused
from gpuspawner.form import Offer
from gpuspawner.gpus import GpuSource, Inventory
from gpuspawner.leases import Owner
from gpuspawner.ledger import Ledger, Standing
from gpuspawner.outlook import Line
from gpuspawner.placement import Availability, Policy, availability, others_wait
from gpuspawner.profiles import Catalogue, Profile
from gpuspawner.queueing import Scene, Waiter, decide, forecast
from gpuspawner.status import Environment, Running, environment
from gpuspawner.texts import Language, Text

LOG = logging.getLogger(__name__)

RECONCILE_SECONDS, RECONCILE_RETRY_SECONDS = 60.0, 10.0
NOT_BUILT = Text("image not built", "이미지 없음")
ASK_ADMIN = Text(
    "The admin has to build it first; choose another profile until then.",
    "관리자가 먼저 이미지를 만들어야 합니다. 그때까지 다른 프로필을 선택하세요.",
)

# A page of the Hub asks the engine at most this often, and waits for it no longer than that.
MEANING_SECONDS, MEANING_PATIENCE_SECONDS = 10.0, 1.0


class Meanings:
    """What image references mean now, as Docker's ids: asked when somebody looks, and then remembered for a moment.

    However many look at once, each reference is asked for once, and a call that hangs never gets a second on top.
    """

    def __init__(self, look: Callable[[str], Awaitable[ImageFacts]]) -> None:
        self._look = look
        self._asked: dict[str, tuple[float, asyncio.Task[str | None]]] = {}

    async def of(self, reference: str) -> str | None:
        """The id; None where there is no such image or the engine does not tell soon enough."""
        asked = self._asked.get(reference)
        if asked is None or (asked[1].done() and time.monotonic() - asked[0] > MEANING_SECONDS):
            asked = self._asked[reference] = (time.monotonic(), asyncio.ensure_future(self._ask(reference)))
        task = asked[1]
        await asyncio.wait([task], timeout=MEANING_PATIENCE_SECONDS)
        return task.result() if task.done() else None

    def forget(self, reference: str) -> None:
        """A server was just made from it: what was heard before that says nothing about this server."""
        self._asked.pop(reference, None)

    async def _ask(self, reference: str) -> str | None:
        try:
            return (await self._look(reference)).id
        except Refused as error:
            LOG.info("What %s means cannot be known now: %s", reference, error.detail or error)
            return None


@dataclass
class House:
    """One for each Hub process; `hub` is the prefix of its containers' names.

    `gpus` are the cards that there are, `caretaker` tells which of them may be leased. `state` is the folder where it
    keeps what has to outlast the process; None: nothing does.
    """

    hub: str
    catalogue: Catalogue
    engine: Engine
    gpus: GpuSource
    policy: Policy
    queue_timeout: int = 0
    max_overtakes: int = 3
    state: Path | None = None
    drain_grace_seconds: float = DRAIN_GRACE_SECONDS
    caretaker: Caretaker = field(init=False)
    ledger: Ledger = field(init=False)
    meanings: Meanings = field(init=False)
    undoing: dict[Owner, asyncio.Task[None]] = field(default_factory=dict)
    last_words: dict[Owner, Text] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    languages: dict[str, Language] = field(default_factory=dict)
    _reconciling: asyncio.Task[None] | None = None
    _watching: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.caretaker = Caretaker(self.gpus, self.engine.holdings, self.state, grace_seconds=self.drain_grace_seconds)
        self.ledger = Ledger(
            self.caretaker.holdings, self.caretaker.inventory, self.policy, max_overtakes=self.max_overtakes
        )
        self.caretaker.promises = self.ledger
        self.meanings = Meanings(self.engine.image_facts)

    def keep_undoing(self, owner: Owner, task: asyncio.Task[None]) -> None:
        """Remember a clean-up until it is done: the next start of that server waits for it."""
        self.undoing[owner] = task

        def forget(done: asyncio.Task[None]) -> None:
            if self.undoing.get(owner) is done:
                del self.undoing[owner]
            if not done.cancelled() and (error := done.exception()):
                LOG.error("Clearing up after a start of %s failed", owner, exc_info=error)

        task.add_done_callback(forget)

    async def renewable(self, servers: Mapping[str, Running | None]) -> list[str]:
        """Those of the named servers that a restart would give another image. What cannot be known is none."""
        stands = await asyncio.gather(*(self._environment(running) for running in servers.values()))
        return [name for name, stand in zip(servers, stands, strict=True) if stand == "older"]

    async def _environment(self, running: Running | None) -> Environment:
        profile = next((each for each in self.catalogue.profiles if running and each.slug == running.profile), None)
        if running is None or profile is None:
            return "unknown"
        return environment(running.image_id, await self.meanings.of(profile.image_reference))

    async def offers(
        self, groups: Collection[str], *, admin: bool = False
    ) -> tuple[list[Offer], Standing, Text | None]:
        """Every profile that a member of `groups` sees, as it stands now; and what keeps the cards from being known.

        An `admin` reads which command builds what was never built.
        """
        profiles = self.catalogue.offered_to(groups)
        missing = await self._missing_images(profiles)
        try:
            standing, trouble = await self.ledger.standing(), None
        except Refused as error:
            LOG.warning("The leases cannot be read: %s %s", error, error.detail)
            standing, trouble = Standing(Inventory(trouble=error.text), ()), error.text
        offers = [
            Offer(profile, self._availability(profile, standing), NOT_BUILT, _who_builds(profile, admin=admin))
            if profile.image_reference in missing
            else self._offer(profile, standing)
            for profile in profiles
        ]
        return offers, standing, trouble or standing.inventory.trouble

    def _offer(self, profile: Profile, standing: Standing) -> Offer:
        """With what a newcomer finds who would have to wait."""
        stands = self._availability(profile, standing)
        if profile.gpu is None:
            return Offer(profile, stands)
        scene = Scene(standing.inventory, standing.held, self.policy, datetime.now(timezone.utc))
        newcomer = Waiter("", profile.gpu, profile.time_limit_seconds)
        line = [*standing.line, newcomer]
        if stands.fits and not decide(line, scene, max_overtakes=self.max_overtakes).grants.get(newcomer.id):
            stands = replace(stands, refusal=others_wait(profile.gpu))
        busy = stands.refusal is not None and stands.refusal.reason is Reason.BUSY
        if not busy or not self.queue_timeout:
            return Offer(profile, stands)
        found = forecast(line, scene)[newcomer.id]
        return Offer(profile, stands, line=Line(found.position - 1, found.at))

    def _availability(self, profile: Profile, standing: Standing) -> Availability:
        return availability(profile.gpu, standing.inventory, standing.occupancy, self.policy)

    async def _missing_images(self, profiles: Sequence[Profile]) -> frozenset[str]:
        """Images of the shelf that were never built. An engine that does not answer is not proof of that."""
        references = {profile.image_reference for profile in profiles if profile.shelf_image}
        missing = await asyncio.gather(*(self._is_missing(reference) for reference in references))
        return frozenset(reference for reference, gone in zip(references, missing, strict=True) if gone)

    async def _is_missing(self, reference: str) -> bool:
        try:
            await self.engine.image_facts(reference)
        except ImageMissing:
            return True
        except Refused:
            return False
        return False

    def open(self) -> None:
        """Once per process: from now on clear away what was created and will never be started, follow the engine,
        and watch the cards.

        Whoever waits in the line gets a card when the engine tells that a container has ended, not at the next tick.
        """
        if self._reconciling is None:
            self._reconciling = asyncio.ensure_future(self._reconcile())
            self._watching = asyncio.ensure_future(watch_leases(self.engine, self.ledger.nudge))

    async def close(self) -> None:
        """End what `open` began."""
        tasks = [task for task in (self._reconciling, self._watching) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reconcile(self) -> None:
        while True:
            try:
                await self.remove_abandoned()
                # The driver tells an XID to those that are there to hear it, and the log should say it without a guest.
                await self.ledger.standing()
                await asyncio.sleep(RECONCILE_SECONDS)
            except Refused as error:
                LOG.warning("Old containers cannot be looked at yet: %s", error.detail or error)
                await asyncio.sleep(RECONCILE_RETRY_SECONDS)

    async def remove_abandoned(self) -> None:
        """Remove this Hub's containers that wait for a start which nobody is about to give them.

        A Hub that was killed leaves them, and so does an engine that carries out a create call long after we gave it
        up. Whatever is not in flight at the first line here is over, or has begun later than `now`.
        """
        now, starting = datetime.now(timezone.utc).replace(microsecond=0), self.ledger.in_flight()
        for container in await self.engine.leased():
            lease = container.lease
            if (
                lease
                and lease.owner.hub == self.hub
                and container.state == "created"
                and lease.started < now
                and lease.id not in starting
            ):
                LOG.warning("Removing %s: it was created and never started.", container.name)
                await self.engine.remove(container.id)


def _who_builds(profile: Profile, *, admin: bool) -> Text:
    if not admin:
        return ASK_ADMIN
    command = build_command(profile.image)
    return Text(f"Build it with: {command}", f"만드는 명령: {command}")
