"""The watch: looks at the leases again and again, gives warnings, and has servers stopped whose time is over.

It decides nothing (`guard` does) and keeps nothing that has to outlive it: labels and state files say the rest. What
does not answer, engine or Hub, is asked again at the next look, and until then nobody is stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timezone

from gpuspawner.dockerd.engine import LeasedContainer
from gpuspawner.errors import HubError, Refused
from gpuspawner.extensions import Extensions
from gpuspawner.guard import Clock, Policy, State, Stop, Timed, Verdict, Warn, judge
from gpuspawner.hubapi import Outcome
from gpuspawner.leases import Lease, Owner
from gpuspawner.notices import Notice, Notices
from gpuspawner.units import format_duration

LOG = logging.getLogger("gpuspawner.watch")

# What is created only waits for its start, and what is being removed is over.
WATCHED_STATES = ("running", "paused", "restarting")
STOPS_AT_ONCE = 8

_OUTCOMES = {
    Outcome.STOPPED: "is stopped",
    Outcome.ABSENT: "has a container, but the Hub knows no such server that runs: nothing was stopped",
    Outcome.NEWER: "was started anew by its owner: left alone",
}


def read_clock() -> Clock:
    """Both clocks now. The monotonic one counts the time in which the machine sleeps, as the labels do."""
    return Clock(datetime.now(timezone.utc), time.clock_gettime(time.CLOCK_BOOTTIME))


class Watch:
    """One for each Hub.

    Args:
        leased: every container that holds a lease. It may raise Refused: then nothing is judged.
        stop: stops a server that began at that moment. It may raise HubError.
        hub: the prefix of this Hub's containers; those of other Hubs are not looked at.
    """

    def __init__(
        self,
        leased: Callable[[], Awaitable[Iterable[LeasedContainer]]],
        stop: Callable[[Owner, datetime], Awaitable[Outcome]],
        extensions: Extensions,
        notices: Notices,
        policy: Policy,
        hub: str,
        clock: Callable[[], Clock] = read_clock,
    ) -> None:
        self._leased, self._stop = leased, stop
        self._extensions, self._notices = extensions, notices
        self._policy, self._hub, self._clock = policy, hub, clock
        self._state: State | None = None
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(STOPS_AT_ONCE)
        self._said: dict[str, str] = {}

    async def run(self, every_seconds: float) -> None:
        """Look for ever."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:  # A fault in one look must not end the watch over all the others.
                    LOG.exception("This look has failed; the next one is in %g s", every_seconds)
                await asyncio.sleep(every_seconds)
        finally:
            for task in self._stopping.values():
                task.cancel()

    async def look(self) -> tuple[Verdict, ...]:
        """Look once: judge every lease of this Hub, and act on each verdict. Stops go on in the background."""
        try:
            found = await self._leased()
        except Refused as error:
            self._say_once("labels", f"The leases cannot be read, so nobody is stopped: {error.detail or error}")
            return ()
        self._say_once("labels", "")
        if self._state is None:
            given = self._notices.given().values()
            self._state = State.restored(
                {each.lease_id: (each.ends, each.step_seconds) for each in given if each.kind == "warning"}
            )
        extensions = self._extensions.read()
        timed = [Timed(lease, ends) for lease in self._ours(found) if (ends := lease.ends_with(extensions)) is not None]
        self._state, verdicts = judge(self._state, timed, self._clock(), self._policy)
        self._forget({each.lease.id for each in timed})
        await self._give([verdict for verdict in verdicts if isinstance(verdict, Warn)])
        for verdict in verdicts:
            if isinstance(verdict, Stop) and verdict.lease.id not in self._stopping:
                self._stopping[verdict.lease.id] = asyncio.ensure_future(self._carry_out(verdict))
        return verdicts

    async def stops_done(self) -> None:
        """Wait for the stops that are under way."""
        await asyncio.gather(*self._stopping.values())

    def _ours(self, found: Iterable[LeasedContainer]) -> list[Lease]:
        return [
            each.lease
            for each in found
            if each.lease and each.lease.owner.hub == self._hub and each.state in WATCHED_STATES
        ]

    async def _give(self, warnings: list[Warn], stopped: Stop | None = None) -> None:
        for warning in warnings:
            left = format_duration(warning.left_seconds).en
            LOG.info("warn %s: the server is stopped in %s, at the end of its time", _name(warning.lease), left)
        now = self._clock().utc
        new = [Notice.warning(warning, now) for warning in warnings]
        if stopped:
            new.append(Notice.stopped(stopped, now))
        standing = self._state.warned if self._state else frozenset()
        try:
            await self._notices.give(new, standing, now)
        except OSError as error:
            LOG.error("Notices cannot be written down, so the Hub's pages do not show them: %s", error)

    async def _carry_out(self, verdict: Stop) -> None:
        lease = verdict.lease
        try:
            async with self._places:
                self._say_once(lease.id, f"stop {_name(lease)}: {verdict.reason.en}", logging.INFO)
                outcome = await self._stop(lease.owner, lease.started)
            self._say_once(f"{lease.id} outcome", f"{_name(lease)} {_OUTCOMES[outcome]}", logging.INFO)
            if outcome is Outcome.STOPPED:
                await self._give([], verdict)
        except HubError as error:
            text = f"{_name(lease)} could not be stopped, and it is tried again: {error}"
            self._say_once(f"{lease.id} outcome", text)
        except Exception:  # Nobody awaits this task: without a line here the fault would be lost.
            LOG.exception("%s could not be stopped, and it is tried again", _name(lease))
        finally:
            del self._stopping[lease.id]

    def _say_once(self, about: str, text: str, level: int = logging.WARNING) -> None:
        """Say what is new about something; every twenty seconds the same would hide the rest of the Hub's log."""
        if text and self._said.get(about) != text:
            LOG.log(level, "%s", text)
        self._said[about] = text

    def _forget(self, living: set[str]) -> None:
        self._said = {about: text for about, text in self._said.items() if about.split()[0] in {*living, "labels"}}


def _name(lease: Lease) -> str:
    """Whose server; names are quoted, because they may hold anything."""
    server = f" {lease.owner.server!r}" if lease.owner.server else ""
    return f"{lease.owner.user!r}{server} ({lease.profile}, lease {lease.id})"
