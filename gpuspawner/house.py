"""What all spawners of one Hub share: the profiles, the engine, the cards, the ledger, and what is being cleared away.

JupyterHub makes a spawner for each server and throws it away again; this lives as long as the Hub process, in the
Hub's own settings, so that two Hubs in one process (tests) never share it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from gpuspawner.accounting import UNKNOWN, Accounting
from gpuspawner.boots import Boots, usual_limit
from gpuspawner.caretaker import DRAIN_GRACE_SECONDS, Caretaker
from gpuspawner.container import ImageFacts
from gpuspawner.dockerd import Engine, watch_leases
from gpuspawner.dockerd.translate import build_command
from gpuspawner.errors import ImageMissing, Refused
from gpuspawner.form import Offer
from gpuspawner.gpus import GpuSource, GpuUuid, Inventory
from gpuspawner.guard import Extending
from gpuspawner.journal import Journal
from gpuspawner.leases import CardShare, Held, Holdings, Lease, Owner
from gpuspawner.ledger import Ledger, Standing
from gpuspawner.limits import Left
from gpuspawner.outlook import Line
from gpuspawner.placement import Availability, Policy, availability, others_wait
from gpuspawner.profiles import Catalogue, Profile
from gpuspawner.queueing import Forecast, Scene, Waiter, decide, forecast_newcomers
from gpuspawner.status import Environment, Running, environment
from gpuspawner.terms import Claim, History, People, Rules, may_wait
from gpuspawner.texts import Language, Text
from gpuspawner.times import Times

LOG = logging.getLogger(__name__)

KEEP_JOURNAL_SECONDS = 35 * 86400
RECONCILE_SECONDS, RECONCILE_RETRY_SECONDS = 60.0, 10.0
KEEP_FINISHED_SECONDS = 600.0
NOT_BUILT = Text("image not built", "이미지 없음")
ASK_ADMIN = Text(
    "The admin has to build it first; choose another profile until then.",
    "관리자가 먼저 이미지를 만들어야 합니다. 그때까지 다른 프로필을 선택하세요.",
)

# A Hub that has just begun reads its journal within a moment; beyond this something is wrong with the disk.
JOURNAL_SECONDS = 3.0

# A page of the Hub asks the engine at most this often, and waits for it no longer than that.
MEANING_SECONDS, MEANING_PATIENCE_SECONDS = 10.0, 1.0
_NO_IMAGE = ""


class Meanings:
    """What image references mean now, as Docker's ids: asked when somebody looks, and then remembered for a moment.

    However many look at once, each reference is asked for once, and a call that hangs never gets a second on top. That
    there is no such image is not remembered: somebody builds it, and looks.
    """

    def __init__(self, look: Callable[[str], Awaitable[ImageFacts]]) -> None:
        self._look = look
        self._asked: dict[str, tuple[float, asyncio.Task[str | None]]] = {}

    async def of(self, reference: str) -> str | None:
        """The id; None where there is no such image or the engine does not tell soon enough."""
        return await self._told(reference) or None

    async def missing(self, reference: str) -> bool:
        """Whether there is no such image. An engine that does not tell soon enough is no proof of that."""
        return await self._told(reference) == _NO_IMAGE

    async def _told(self, reference: str) -> str | None:
        asked = self._asked.get(reference)
        if asked is None or (asked[1].done() and self._is_old(*asked)):
            asked = self._asked[reference] = (time.monotonic(), asyncio.ensure_future(self._ask(reference)))
        task = asked[1]
        if not task.done():
            await asyncio.wait([task], timeout=MEANING_PATIENCE_SECONDS)
        return task.result() if task.done() else None

    def _is_old(self, since: float, task: asyncio.Task[str | None]) -> bool:
        return task.result() == _NO_IMAGE or time.monotonic() - since > MEANING_SECONDS

    def forget(self, reference: str) -> None:
        """A server was just made from it: what was heard before that says nothing about this server."""
        self._asked.pop(reference, None)

    async def _ask(self, reference: str) -> str | None:
        try:
            return (await self._look(reference)).id
        except ImageMissing:
            return _NO_IMAGE
        except Refused as error:
            LOG.info("What %s means cannot be known now: %s", reference, error.detail or error)
            return None


@dataclass
class House:
    """One for each Hub process; `hub` is the prefix of its containers' names.

    `gpus` are the cards that there are, `caretaker` tells which of them may be leased. `state` is the folder where it
    keeps what has to outlast the process; None: nothing does. `groups_of` tells the groups of users.
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
    rules: Rules = field(default_factory=Rules)
    extending: Extending = field(default_factory=Extending)
    concurrent_boots: int = 0
    groups_of: Callable[[Collection[str]], Mapping[str, frozenset[str]]] = lambda users: {}
    caretaker: Caretaker = field(init=False)
    ledger: Ledger = field(init=False)
    boots: Boots = field(init=False)
    meanings: Meanings = field(init=False)
    times: Times = field(init=False)
    accounting: Accounting | None = field(init=False, default=None)
    undoing: dict[Owner, asyncio.Task[None]] = field(default_factory=dict)
    last_words: dict[Owner, Text] = field(default_factory=dict)
    told: dict[str, Text] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    languages: dict[str, Language] = field(default_factory=dict)
    _started: dict[Owner, datetime] = field(default_factory=dict)
    _finished: dict[str, float] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.caretaker = Caretaker(self.gpus, self._holdings, self.state, grace_seconds=self.drain_grace_seconds)
        self.ledger = Ledger(
            self.caretaker.holdings,
            self.caretaker.inventory,
            self.policy,
            max_overtakes=self.max_overtakes,
            rules=self.rules,
            look_at_people=self.people,
        )
        self.caretaker.promises = self.ledger
        self.boots = Boots(self.concurrent_boots or usual_limit())
        self.times = Times(self._leases, self.ledger, self.state, self.groups_of, self.extending)
        self.meanings = Meanings(self.engine.image_facts)
        if self.state is not None:
            window = self.rules.limits.longest_window_seconds
            self.accounting = Accounting(
                Journal(self.state / "journal", hub=self.hub, keep_seconds=max(KEEP_JOURNAL_SECONDS, window)),
                self._leases,
                self.groups_of,
                self._memory,
                self.ledger.in_flight,
                window_seconds=window,
            )

    async def _holdings(self) -> Holdings:
        return await self.engine.holdings(self.times.extended())

    async def _leases(self) -> list[Lease]:
        """The leases of this Hub."""
        found = (container.lease for container in await self.engine.leased())
        return [lease for lease in found if lease is not None and lease.owner.hub == self.hub]

    async def _memory(self) -> Mapping[GpuUuid, int]:
        return {gpu.uuid: gpu.memory_bytes for gpu in (await self.gpus.inventory()).gpus}

    def people(self, users: Collection[str]) -> People:
        """What limits and reservations have to know of these users."""
        history = self.accounting.history if self.accounting else History(trouble=UNKNOWN)
        return People(self.groups_of(users), history=history)

    def keep_undoing(self, owner: Owner, task: asyncio.Task[None]) -> None:
        """Remember a clean-up until it is done: the next start of that server waits for it."""
        self.undoing[owner] = task

        def forget(done: asyncio.Task[None]) -> None:
            if self.undoing.get(owner) is done:
                del self.undoing[owner]
            if not done.cancelled() and (error := done.exception()):
                LOG.error("Clearing up after a start of %s failed", owner, exc_info=error)

        task.add_done_callback(forget)

    def has_started(self, owner: Owner) -> None:
        """A server of theirs answers: how the last one ended is of no interest any more."""
        self.last_words.pop(owner, None)
        self._started[owner] = datetime.now(timezone.utc)

    def why_it_ended(self, owner: Owner) -> Text | None:
        """For the form: how the last server ended, where its owner did not end it; None after a new start."""
        if owner in self.last_words:
            return self.last_words[owner]
        notice = self.times.notice(owner)
        started = self._started.get(owner)
        return notice.text if notice and (started is None or notice.given > started) else None

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
        self, groups: Collection[str], *, user: str = "", admin: bool = False
    ) -> tuple[list[Offer], Standing, Text | None]:
        """Every profile that a member of `groups` sees, as it stands now; and what keeps the cards from being known.

        `user` is whose limits count. An `admin` reads which command builds what was never built.
        """
        profiles = self.catalogue.offered_to(groups)
        missing = await self._missing_images(profiles)
        try:
            standing, trouble = await self.ledger.standing(), None
        except Refused as error:
            LOG.warning("The leases cannot be read: %s %s", error, error.detail)
            standing, trouble = Standing(Inventory(trouble=error.text), ()), error.text
        owner = Owner(user, hub=self.hub)
        people = self._people_at(standing, owner)
        scene = Scene(standing.inventory, standing.held, self.policy, datetime.now(timezone.utc))
        drafts = [
            (Offer(profile, self._availability(profile, standing), NOT_BUILT, _who_builds(profile, admin=admin)), None)
            if profile.image_reference in missing
            else self._draft(profile, standing, scene, owner, frozenset(groups), people)
            for profile in profiles
        ]
        found = iter(forecast_newcomers(standing.line, [waiter for _, waiter in drafts if waiter], scene))
        offers = [replace(offer, line=_line(next(found))) if waiter else offer for offer, waiter in drafts]
        return offers, standing, trouble or standing.inventory.trouble

    def _draft(
        self, profile: Profile, standing: Standing, scene: Scene, owner: Owner, groups: frozenset[str], people: People
    ) -> tuple[Offer, Waiter | None]:
        """On this person's terms; and as whom they would wait, where they would have to and may."""
        if profile.gpu is None:
            return Offer(profile, self._availability(profile, standing)), None
        claim = Claim("", profile.gpu, owner, profile.time_limit_seconds, groups)
        terms = self.rules.terms(claim, scene, people)
        newcomer = Waiter("", profile.gpu, terms.time_limit_seconds, terms.barred)
        held = (*standing.held, Held(tuple(CardShare(uuid) for uuid in terms.barred)))
        stands = self._availability(profile, replace(standing, held=held) if terms.barred else standing)
        if terms.refusal is not None:
            stands = replace(stands, refusal=terms.refusal)
        elif stands.fits and not self._served(newcomer, standing, scene):
            stands = replace(stands, refusal=others_wait(profile.gpu))
        if stands.refusal is None or not may_wait(stands.refusal) or not self.queue_timeout:
            return Offer(profile, stands, note=terms.notice if stands.fits else None), None
        return Offer(profile, stands), newcomer

    def _served(self, newcomer: Waiter, standing: Standing, scene: Scene) -> bool:
        decision = decide([*standing.line, newcomer], scene, max_overtakes=self.max_overtakes)
        return newcomer.id in decision.grants

    def _people_at(self, standing: Standing, owner: Owner) -> People:
        if self.rules.trivial:
            return People()
        users = {held.owner.user for held in standing.held if held.owner} | {owner.user}
        users |= {claim.owner.user for claim in standing.claims if claim.owner}
        return replace(self.people(users), waiting=standing.claims)

    def ends_of(self, user: str, standing: Standing) -> list[tuple[str, datetime]]:
        """The servers of a user that have an end, by name, with that end."""
        held = (each for each in standing.held if each.owner and (each.owner.user, each.owner.hub) == (user, self.hub))
        return sorted((each.owner.server, each.ends) for each in held if each.owner and each.ends)

    def hours_left(self, user: str, groups: frozenset[str], standing: Standing) -> Left | None:
        """What is left of somebody's GPU-hours; None where there is no limit or nothing can be known."""
        if self.rules.trivial:
            return None
        people = self._people_at(standing, Owner(user, hub=self.hub))
        return self.rules.left(user, groups, standing.held, people, datetime.now(timezone.utc))

    def _availability(self, profile: Profile, standing: Standing) -> Availability:
        return availability(profile.gpu, standing.inventory, standing.occupancy, self.policy)

    async def _missing_images(self, profiles: Sequence[Profile]) -> frozenset[str]:
        """Images of the shelf that were never built. An engine that does not answer is not proof of that."""
        references = {profile.image_reference for profile in profiles if profile.shelf_image}
        missing = await asyncio.gather(*(self.meanings.missing(reference) for reference in references))
        return frozenset(reference for reference, gone in zip(references, missing, strict=True) if gone)

    def open(self) -> None:
        """Once per process: from now on clear away what was created and will never be started, follow the engine,
        and watch the cards.

        Whoever waits in the line gets a card when the engine tells that a container has ended, not at the next tick.
        """
        if self._tasks:
            return
        if not gc.get_freeze_count():
            # What a Hub has loaded by now it keeps: a walk over all of it takes 0.15 s in which nobody is answered.
            gc.freeze()
        works = [self._reconcile(), watch_leases(self.engine, self._changed)]
        works += [self.accounting.run()] if self.accounting else []
        self._tasks = [asyncio.ensure_future(work) for work in works]

    async def ready(self) -> None:
        """`open`, and where hours count, wait a moment for the journal: nobody is refused because the Hub is young."""
        self.open()
        if self.accounting and self.rules.limits.longest_window_seconds:
            await self.accounting.looked(JOURNAL_SECONDS)

    def _changed(self) -> None:
        self.ledger.nudge()
        if self.accounting:
            self.accounting.nudge()

    async def close(self) -> None:
        """End what `open` began."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reconcile(self) -> None:
        while True:
            try:
                await self.remove_abandoned()
                await self.remove_finished()
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

    async def remove_finished(self) -> None:
        """Remove this Hub's containers that ended some time ago.

        A stop leaves the removal to the background, where a Hub that is killed leaves it undone. Why a server ended by
        itself is read by its spawner's poll, long before.
        """
        now = time.monotonic()
        found = [each for each in await self.engine.finished() if each.lease and each.lease.owner.hub == self.hub]
        self._finished = {each.id: self._finished.get(each.id, now) for each in found}
        for container in found:
            if now - self._finished[container.id] >= KEEP_FINISHED_SECONDS:
                LOG.warning("Removing %s: it ended some time ago, and nobody else removes it.", container.name)
                await self.engine.remove(container.id)


def _line(found: Forecast) -> Line:
    return Line(found.position - 1, found.at)


def _who_builds(profile: Profile, *, admin: bool) -> Text:
    if not admin:
        return ASK_ADMIN
    command = build_command(profile.image)
    return Text(f"Build it with: {command}", f"만드는 명령: {command}")
