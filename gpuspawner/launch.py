"""One start of one server, from the reservation to the first answer, and its undoing.

It knows the ledger, the engine and the order of the steps, and nothing of JupyterHub: the spawner hands it the one
step that is DockerSpawner's (`boot`). A launch runs as a task of its own, so that a caller who is cancelled can leave
at once: what is under way ends by itself, is undone, and the cards are held until it is (law 4 of the design).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from typing import Any
from uuid import uuid4

from gpuspawner.boots import Boots
from gpuspawner.container import (
    ARRIVAL_PROBE,
    ContainerSpec,
    Defaults,
    ImageFacts,
    attachment_for,
    build,
    check_arrival,
    is_whole_answer,
    last_words,
    object_name,
)
from gpuspawner.dockerd import Engine, collecting, ended, image_missing, translate
from gpuspawner.errors import (
    EngineError,
    GpuNotArrived,
    GpusUnknown,
    ImageMissing,
    Reason,
    Refused,
    ServerDied,
    StartTimedOut,
)
from gpuspawner.gpus import Inventory
from gpuspawner.homes import ensure_home
from gpuspawner.leases import Lease, Limits, Owner
from gpuspawner.ledger import Grant, Ledger, Place
from gpuspawner.probe import server_url, wait_until_answering
from gpuspawner.profiles import Choice
from gpuspawner.terms import Claim
from gpuspawner.texts import Text

LOG = logging.getLogger(__name__)

CHECK_ALIVE_SECONDS = 1.0
ARRIVAL_TRIES = 3
# Within what the spawner leaves between our time limit and the Hub's, whose failure has no words.
WAIT_FOR_UNDOING_SECONDS = 2.0
RETRY_REMOVAL_SECONDS = (0.2, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Order:
    """What is to be started, for whom, and within what.

    `may_pull` allows a foreign image to be pulled where it is missing; images of the shelf never are. `wait_seconds` is
    how long to wait in the line where nothing is free, which comes on top of the time limit; None: not at all.
    """

    owner: Owner
    choice: Choice
    defaults: Defaults
    gpu_attach: str
    time_limit_seconds: float
    api_path: str
    https: bool = False
    may_pull: bool = True
    wait_seconds: float | None = None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stage:
    """A step that the student sees on the pending page; `progress` is a percentage."""

    progress: int
    text: Text


PREPARING = Stage(10, Text("Preparing your server", "서버를 준비하고 있습니다"))
PULLING = Stage(15, Text("Fetching the image: this can take minutes", "이미지를 받고 있습니다. 몇 분 걸릴 수 있습니다"))
WAITING = Stage(20, Text("You are in the waiting line", "대기열에 들어갔습니다"))
LEASING = Stage(25, Text("Looking for a free GPU", "사용 가능한 GPU를 찾고 있습니다"))
NEXT = Stage(
    40, Text("Other servers are starting; yours follows shortly", "다른 서버들이 시작되는 중입니다. 곧 차례가 됩니다")
)
CREATING = Stage(45, Text("Starting the container", "컨테이너를 시작하고 있습니다"))
BOOTING = Stage(70, Text("JupyterLab is starting", "JupyterLab을 시작하고 있습니다"))
READY = Stage(95, Text("Your server answers", "서버가 응답합니다"))


class Launch:
    """One attempt; `run` is called once. `notice` is what the student should know about the terms of the lease.

    Args:
        boot: creates and starts the container of a spec, and returns address and port of the notebook server in it.
        boots: tells when it may do that.
        predecessor: the undoing of an earlier attempt at the same server, which has to end first.
    """

    def __init__(
        self,
        order: Order,
        engine: Engine,
        ledger: Ledger,
        look_at_gpus: Callable[[], Awaitable[Inventory]],
        boot: Callable[[ContainerSpec], Awaitable[tuple[str, int]]],
        boots: Boots,
        predecessor: asyncio.Task[None] | None = None,
    ) -> None:
        self.order = order
        self.lease_id = uuid4().hex
        self.stage = PREPARING
        self.stage_changed = asyncio.Event()
        self.notice: Text | None = None
        self.undoing: asyncio.Task[None] | None = None
        self._engine = engine
        self._ledger = ledger
        self._look_at_gpus = look_at_gpus
        self._boot = boot
        self._boots = boots
        self._predecessor = predecessor
        self._name = object_name(order.owner)
        self._leasing = False
        self.place: Place | None = None
        self._waited_seconds = 0.0
        self._waiting_since: float | None = None

    async def run(self) -> str:
        """Start the server and return its URL once it answers.

        Raises:
            Refused: with a sentence for the student. Nothing of the launch is left then, or is being cleared away by
                the task `undoing`, which holds the cards until it is done.
        """
        limit = self.order.time_limit_seconds
        with collecting() as calls:
            running = asyncio.ensure_future(self._run())
            try:
                began = time.monotonic()
                while not running.done():
                    left = limit - (time.monotonic() - began - self._in_line_seconds())
                    if left <= 0:
                        raise self._too_late(limit)
                    # Not wait_for, which may swallow a cancellation before Python 3.12.
                    await asyncio.wait([running], timeout=left)
                return running.result()
            except asyncio.CancelledError:
                # Whoever cancels (the Stop button) gives a second: the undoing goes on without us.
                self.undoing = asyncio.ensure_future(self._undo(running, calls))
                raise
            except BaseException:
                self.undoing = asyncio.ensure_future(self._undo(running, calls))
                await asyncio.wait([self.undoing], timeout=WAIT_FOR_UNDOING_SECONDS)
                raise

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        # Each watcher waits for the event it saw; the next stage has a new one.
        self.stage_changed.set()
        self.stage_changed = asyncio.Event()

    def _wait(self, place: Place | None) -> None:
        """The waiting in the line begins, or is over."""
        self.place = place
        if place is not None:
            self._waiting_since = time.monotonic()
            self._enter(WAITING)
        else:
            self._waited_seconds, self._waiting_since = self._in_line_seconds(), None
            self._enter(LEASING)

    def _in_line_seconds(self) -> float:
        since = self._waiting_since
        return self._waited_seconds + (time.monotonic() - since if since is not None else 0.0)

    async def _run(self) -> str:
        order, profile = self.order, self.order.choice.profile
        if self._predecessor:
            await asyncio.wait([self._predecessor])
        # A container is never resumed: what an earlier start left behind goes, and its cards with it.
        await self._engine.remove(self._name)
        image = await self._image()
        if profile.gpu:
            self._enter(LEASING)
        self._leasing = True
        claim = Claim(self.lease_id, profile.gpu, order.owner, profile.time_limit_seconds, order.groups)
        grant = await self._ledger.reserve(claim, wait_seconds=order.wait_seconds, on_wait=self._wait)
        if self._waited_seconds:
            # It may have been built anew meanwhile, or be gone.
            image = await self._image()
        self.notice = grant.notice
        if self._boots.busy:
            self._enter(NEXT)
        async with self._boots.turn():
            url = await self._serve(grant, image)
        self._ledger.settle(self.lease_id)
        self._enter(READY)
        return url

    async def _serve(self, grant: Grant, image: ImageFacts) -> str:
        """From the grant to the first answer."""
        order, profile = self.order, self.order.choice.profile
        self._enter(CREATING)
        lease = Lease(
            id=self.lease_id,
            owner=order.owner,
            profile=profile.slug,
            cards=grant.cards,
            started=datetime.now(timezone.utc),
            limits=Limits(
                profile.mem_limit_bytes or order.defaults.mem_limit_bytes,
                profile.cpu_limit or order.defaults.cpu_limit,
                grant.time_limit_seconds,
                profile.idle_timeout_seconds,
            ),
            image=image.reference,
            image_id=image.id,
        )
        spec = await self._spec(lease, image)
        await self._prepare_home(spec)
        try:
            ip, port = await self._boot(spec)
        except Exception as error:
            raise await self._boot_failure(error, lease) from error
        self._enter(BOOTING)
        url = server_url("https" if order.https else "http", ip, port)
        await self._until_serving(url, lease, attached=spec.attached)
        return url

    async def _image(self) -> ImageFacts:
        profile = self.order.choice.profile
        reference = profile.image_reference
        try:
            return await self._engine.image_facts(reference)
        except ImageMissing:
            if profile.shelf_image or not self.order.may_pull:
                raise
        self._enter(PULLING)
        try:
            repository, tag = _split(reference)
            await self._engine.call("pull", repository, tag)
        except Exception as error:
            LOG.warning("Pulling %s failed: %s", reference, error)
            raise image_missing(reference, str(error)) from error
        return await self._engine.image_facts(reference)

    async def _spec(self, lease: Lease, image: ImageFacts) -> ContainerSpec:
        inventory = await self._look_at_gpus()
        cdi = (await self._engine.facts()).cdi_devices if lease.cards and self.order.gpu_attach == "auto" else ()
        uuids = [card.uuid for card in lease.cards]
        attachment = attachment_for(self.order.gpu_attach, uuids, cdi, simulated=inventory.simulated)
        return build(self.order.choice, lease, image, attachment, self.order.defaults)

    async def _prepare_home(self, spec: ContainerSpec) -> None:
        if spec.home_path:
            await asyncio.to_thread(ensure_home, spec.home_path)
        elif spec.home_volume:
            user = self.order.owner.user
            labels = await self._engine.ensure_volume(
                spec.home_volume, {"gpuspawner.home": user, "gpuspawner.hub": self.order.owner.hub}
            )
            # Names are told apart by a short hash, which somebody who may choose their own name could search for.
            if labels.get("gpuspawner.home", user) != user:
                raise EngineError(
                    Text(
                        "The home folder with the name of yours belongs to another account. Please tell the admin.",
                        "같은 이름의 홈 폴더가 다른 계정에 속해 있습니다. 관리자에게 알려 주세요.",
                    ),
                    detail=f"the volume {spec.home_volume} is labelled as the home of {labels['gpuspawner.home']!r}",
                )

    async def _until_serving(self, url: str, lease: Lease, *, attached: bool) -> None:
        """Wait for the first answer, look after the container meanwhile, and make sure that the cards arrived."""
        answering = asyncio.ensure_future(wait_until_answering(url + self.order.api_path))
        tasks = {answering, asyncio.ensure_future(self._verify(lease))} if attached else {answering}
        watched = tasks
        try:
            while watched:
                done, watched = await asyncio.wait(
                    watched, timeout=CHECK_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                await self._raise_if_dead(lease)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _boot_failure(self, error: Exception, lease: Lease) -> Refused:
        """The cause of a failed boot: of a container that ended at once it is its end, not the address it lacks."""
        problem = translate(error, image=lease.image)
        with suppress(Refused):
            inspected = await self._engine.find(self._name)
            if inspected and inspected["State"]["Status"] == "exited":
                return await explain_death(self._engine, inspected, lease.limits.mem_limit_bytes)
        return problem

    async def _raise_if_dead(self, lease: Lease) -> None:
        inspected = await self._engine.find(self._name)
        if inspected is None or not inspected["State"]["Running"]:
            raise await explain_death(self._engine, inspected, lease.limits.mem_limit_bytes)

    async def _verify(self, lease: Lease) -> None:
        """Raises GpuNotArrived unless the container holds exactly its cards."""
        inventory = await self._look_at_gpus()
        if inventory.trouble is not None:
            raise GpusUnknown(inventory.trouble, detail=inventory.detail)
        gpus = [gpu for card in lease.cards if (gpu := inventory.get(card.uuid)) is not None]
        if len(gpus) < len(lease.cards):
            raise GpuNotArrived(
                Text(
                    "The GPU that was leased for you has dropped off this server. Your server was stopped; "
                    "please tell the admin.",
                    "할당된 GPU가 서버에서 사라졌습니다. 서버를 중지했습니다. 관리자에게 알려 주세요.",
                ),
                detail=f"leased {[card.uuid for card in lease.cards]}, present {[gpu.uuid for gpu in inventory.gpus]}",
            )
        output = ""
        for _ in range(ARRIVAL_TRIES):
            output = await self._engine.run_in(self._name, ARRIVAL_PROBE)
            if is_whole_answer(output):
                break
        if problem := check_arrival(gpus, output):
            raise problem

    def _too_late(self, limit: float) -> StartTimedOut:
        words = self.stage.text
        return StartTimedOut(
            Text(
                f"Your server did not start within {limit:.0f} seconds (last step: {words.en}). "
                "Try again; if it happens twice, tell the admin.",
                f"{limit:.0f}초 안에 서버가 시작되지 않았습니다 (마지막 단계: {words.ko}). "
                "다시 시도하고, 반복되면 관리자에게 알려 주세요.",
            ),
            detail=f"the launch of {self._name} was at the step {words.en!r}",
        )

    async def _undo(self, running: asyncio.Task[str], calls: set[Future[Any]]) -> None:
        """Remove whatever this launch made, however long that takes, and only then let go of the cards.

        A call that was given up may still create or start the container, so it has to end before the last look.
        """
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        if not self._leasing:
            # Nothing is made yet; a late removal of the old container must not meet the next launch.
            await ended(calls)
            return

        async def clear() -> None:
            last_look = False
            while not last_look:
                # Only a look that began with no call under way has seen what they did.
                last_look = not calls
                await self._engine.remove_lease(self.lease_id)
                await ended(calls)

        await persist(clear, self._name)
        self._ledger.release(self.lease_id)


async def persist(clear: Callable[[], Awaitable[None]], name: str) -> None:
    """Try `clear` until the engine has carried it out, however long that takes."""
    for attempt in count():
        try:
            return await clear()
        except Refused as problem:
            delay = RETRY_REMOVAL_SECONDS[min(attempt, len(RETRY_REMOVAL_SECONDS) - 1)]
            LOG.warning("Clearing up after %s: %s Next try in %g s.", name, problem.detail, delay)
            await asyncio.sleep(delay)


async def explain_death(engine: Engine, inspected: dict[str, Any] | None, mem_limit_bytes: int | None) -> Refused:
    """The sentence about a container that is not running any more, with the full record as its detail."""
    if inspected is None:
        text = Text(
            "The container of your server was removed from outside.", "서버의 컨테이너가 외부에서 삭제되었습니다."
        )
        return ServerDied(text, reason=Reason.REMOVED)
    return last_words(await engine.evidence(inspected), mem_limit_bytes)


def _split(reference: str) -> tuple[str, str | None]:
    """Repository and tag, as `docker pull` of docker-py wants them; a digest stays with the repository."""
    if "@" in reference:
        return reference, None
    repository, colon, tag = reference.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (reference, "latest")
