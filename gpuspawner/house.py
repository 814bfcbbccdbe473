"""What all spawners of one Hub share: the profiles, the engine, the cards, the ledger, and what is being cleared away.

JupyterHub makes a spawner for each server and throws it away again; this lives as long as the Hub process, in the
Hub's own settings, so that two Hubs in one process (tests) never share it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from gpuspawner.dockerd import Engine
from gpuspawner.errors import ImageMissing, Refused
from gpuspawner.form import Offer
from gpuspawner.gpus import GpuSource, Inventory
from gpuspawner.leases import Owner
from gpuspawner.ledger import Ledger, Standing
from gpuspawner.placement import Availability, Occupancy, Policy, availability
from gpuspawner.profiles import Catalogue, Profile
from gpuspawner.texts import Language, Text

LOG = logging.getLogger(__name__)

RECONCILE_SECONDS, RECONCILE_RETRY_SECONDS = 60.0, 10.0
NOT_BUILT = Text("image not built", "이미지 없음")


@dataclass
class House:
    """One for each Hub process; `hub` is the prefix of its containers' names."""

    hub: str
    catalogue: Catalogue
    engine: Engine
    gpus: GpuSource
    policy: Policy
    ledger: Ledger = field(init=False)
    undoing: dict[Owner, asyncio.Task[None]] = field(default_factory=dict)
    last_words: dict[Owner, Text] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    languages: dict[str, Language] = field(default_factory=dict)
    _reconciling: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.engine.holdings, self.gpus.inventory, self.policy)

    def keep_undoing(self, owner: Owner, task: asyncio.Task[None]) -> None:
        """Remember a clean-up until it is done: the next start of that server waits for it."""
        self.undoing[owner] = task

        def forget(done: asyncio.Task[None]) -> None:
            if self.undoing.get(owner) is done:
                del self.undoing[owner]
            if not done.cancelled() and (error := done.exception()):
                LOG.error("Clearing up after a start of %s failed", owner, exc_info=error)

        task.add_done_callback(forget)

    async def offers(self, groups: Collection[str]) -> tuple[list[Offer], Standing, Text | None]:
        """Every profile that a member of `groups` sees, as it stands now; and what keeps the cards from being known."""
        profiles = self.catalogue.offered_to(groups)
        missing = await self._missing_images(profiles)
        try:
            standing, trouble = await self.ledger.standing(), None
        except Refused as error:
            LOG.warning("The leases cannot be read: %s %s", error, error.detail)
            standing, trouble = Standing(Inventory(trouble=error.text), Occupancy()), error.text
        offers = [
            Offer(
                profile,
                self._availability(profile, standing),
                NOT_BUILT if profile.image_reference in missing else None,
            )
            for profile in profiles
        ]
        return offers, standing, trouble or standing.inventory.trouble

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

    def begin_reconciling(self) -> None:
        """Once per process: from now on, clear away what was created and will never be started."""
        if self._reconciling is None:
            self._reconciling = asyncio.ensure_future(self._reconcile())

    async def _reconcile(self) -> None:
        while True:
            try:
                await self.remove_abandoned()
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
