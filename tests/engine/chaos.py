"""Faults by a seeded dice, and a watcher from outside: what the chaos test does to a lab, and how it finds out.

Nothing here looks into the Hub: the watcher reads the labels that `docker ps` shows, and the log of the stub hook.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.engine.lab import Lab
from tests.standins.gpustate import DEFAULT_CARDS, MIB, GpuState
from tests.standins.netns_engine import PrivateEngine

HUB_START_SECONDS = 90.0
SAMPLE_SECONDS = 0.1
LABEL = "gpuspawner."
MEMORY_MIB = {card.uuid: (card.memory or 0) // MIB for card in DEFAULT_CARDS}


@dataclass(frozen=True)
class Use:
    """A container's part of each of its cards; `memory_mib` is None for whole cards."""

    container: str
    cards: tuple[str, ...]
    memory_mib: int | None


def overbooked(uses: Sequence[Use]) -> list[str]:
    """A sentence for each card on which these containers have more than it has, all at the same moment."""
    found = []
    for uuid in sorted({uuid for use in uses for uuid in use.cards}):
        here = [use for use in uses if uuid in use.cards]
        whole = any(use.memory_mib is None for use in here)
        if len(here) > 1 and (whole or sum(use.memory_mib or 0 for use in here) > MEMORY_MIB[uuid]):
            found.append(f"{uuid} is leased to {', '.join(f'{use.container} ({use.memory_mib})' for use in here)}")
    return found


def overlaps_in(log: str, engine_ends: Sequence[float] = ()) -> list[str]:
    """What the stub hook has seen itself: cards given to a container while others that ran had too much of them.

    No container outlives its engine, which kills at its next start what it knows to run. An engine that is killed in
    the middle of a start (Docker 20.10) does not know: the container can be removed as if it had never run, and its
    process stays, with nothing that tells of it. So who began before one of `engine_ends` (seconds since 1970) and is
    still there after it is not judged: no container is.
    """
    found = []
    entries = [json.loads(line) for line in log.splitlines()]
    began = {entry["id"]: entry["at"] for entry in entries}
    for entry in entries:
        beside = [
            other for other in entry["beside"] if not any(began[other["id"]] < end < entry["at"] for end in engine_ends)
        ]
        uses = [Use(each["id"][:12], tuple(each["cards"]), each["memory_mib"]) for each in (entry, *beside)]
        found += overbooked(uses)
    return found


class EngineConnection(http.client.HTTPConnection):
    """To the engine's socket, and closed also where nobody listens."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=5)
        self._path = path

    def connect(self) -> None:
        """Over the unix socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Watcher:
    """Samples the labels of all containers that hold a lease, as often as it can; an engine that is down is no news."""

    def __init__(self, engine: PrivateEngine) -> None:
        self.overbooked: list[str] = []
        self.samples = self.misses = self.most = 0
        self.leases: set[str] = set()
        self._socket = str(engine.socket)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            try:
                uses = [_use(entry) for entry in self._holding()]
            except (OSError, http.client.HTTPException, ValueError):
                self.misses += 1
                continue
            self.samples += 1
            self.most = max(self.most, len(uses))
            self.overbooked += overbooked(uses)

    def _holding(self) -> list[dict[str, Any]]:
        """What `docker ps` asks: everything that lives or may live. What has ended holds nothing any more."""
        states = ["created", "running", "paused", "restarting"]
        filters = quote(json.dumps({"label": [f"{LABEL}lease"], "status": states}))
        connection = EngineConnection(self._socket)
        try:
            connection.request("GET", f"/containers/json?all=1&filters={filters}")
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise http.client.HTTPException(f"{answer.status} {answer.reason}")
            found: list[dict[str, Any]] = json.loads(answer.read())
        finally:
            connection.close()
        self.leases.update(entry["Id"] for entry in found)
        return found


def _use(entry: Mapping[str, Any]) -> Use:
    labels: Mapping[str, str] = entry["Labels"]
    memory = labels[f"{LABEL}vram"]
    cards = tuple(uuid for uuid in labels[f"{LABEL}gpus"].split(",") if uuid)
    return Use(f"{labels[f'{LABEL}user']} {entry['Id'][:12]}", cards, int(memory) // MIB if memory else None)


@dataclass
class Chaos:
    """Faults, one after the other, in an order that `dice` gives: each kind comes once before any comes again."""

    lab: Lab
    engine: PrivateEngine
    dice: random.Random
    say: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)
    hub_is_down: bool = False
    hub_was_back: float = 0.0
    """When the Hub last answered again, on the monotonic clock."""
    servers_were_hit: float = 0.0
    """When a container last was ended from outside, alone or with the engine."""
    engine_ends: list[float] = field(default_factory=list)
    """When the engine was gone, each time, in seconds since 1970."""

    def run(self, seconds: float) -> None:
        """Do harm for that long, and leave everything repaired."""
        faults = [
            self._the_hub_is_killed,
            self._the_engine_stops,
            self._the_engine_crashes,
            self._the_engine_hangs,
            self._both_are_down,
            self._a_container_is_killed,
            self._a_container_is_removed,
            self._the_hook_fails,
            self._the_hook_ignores,
            self._a_card_is_lost,
        ]
        began = time.monotonic()
        bag: list[Callable[[], None]] = []
        while time.monotonic() - began < seconds:
            bag = bag or self.dice.sample(faults, len(faults))
            fault = bag.pop()
            name = fault.__name__.strip("_").replace("_", " ")
            self.say(f"{time.monotonic() - began:5.1f} s  {name}")
            fault()
            self.done[name] += 1
            self._pass(1.0, 4.0)

    def cut_off_since(self, moment: float) -> bool:
        """Whether the Hub was down at any time since then."""
        return self.hub_is_down or self.hub_was_back >= moment

    def _pass(self, shortest: float, longest: float) -> None:
        """Time goes by: that is what a fault's length is, and nothing is waited for."""
        threading.Event().wait(self.dice.uniform(shortest, longest))

    # --- faults -------------------------------------------------------------------------------------------------------

    def _the_hub_is_killed(self) -> None:
        with self._without_hub():
            self._pass(0.0, 3.0)

    def _the_engine_stops(self) -> None:
        with self._without_engine(kill=False):
            self._pass(0.0, 3.0)

    def _the_engine_crashes(self) -> None:
        with self._without_engine(kill=True):
            self._pass(0.0, 3.0)

    def _the_engine_hangs(self) -> None:
        with self.engine.frozen():
            self._pass(2.0, 6.0)

    def _both_are_down(self) -> None:
        with self._without_hub(), self._without_engine(kill=self.dice.random() < 0.5):
            self._pass(0.0, 2.0)

    def _a_container_is_killed(self) -> None:
        self._hit("kill")

    def _a_container_is_removed(self) -> None:
        self._hit("rm", "--force")

    def _the_hook_fails(self) -> None:
        with self._cards(GpuState(hook_error="nvidia-container-cli: mount error: unknown error")):
            self._pass(2.0, 6.0)

    def _the_hook_ignores(self) -> None:
        with self._cards(GpuState(hook="ignore")):
            self._pass(2.0, 6.0)

    def _a_card_is_lost(self) -> None:
        with self._cards(GpuState().with_card(self.dice.choice(DEFAULT_CARDS).uuid, lost=True)):
            self._pass(3.0, 8.0)

    # --- their parts --------------------------------------------------------------------------------------------------

    @contextmanager
    def _without_hub(self) -> Iterator[None]:
        self.hub_is_down = True
        self.lab.kill()
        yield
        self._start_hub()
        self.hub_was_back, self.hub_is_down = time.monotonic(), False

    def _start_hub(self) -> None:
        """As a service manager does: again, as long as it ends at once, which it does without an engine."""
        deadline = time.monotonic() + HUB_START_SECONDS
        while True:
            try:
                return self.lab.start()
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                with suppress(OSError):
                    self.lab.kill()

    @contextmanager
    def _without_engine(self, *, kill: bool) -> Iterator[None]:
        self.servers_were_hit = float("inf")
        self.engine.stop_daemon(kill=kill)
        self.engine_ends.append(time.time())
        yield
        self.engine.start_daemon()
        self.servers_were_hit = time.monotonic()

    @contextmanager
    def _cards(self, state: GpuState) -> Iterator[None]:
        state.write(self.engine.state_file)
        yield
        GpuState().write(self.engine.state_file)

    def _hit(self, *command: str) -> None:
        filters = ("--filter", f"label={LABEL}lease")
        if running := sorted(self.engine.docker("ps", "--format", "{{.Names}}", *filters).split()):
            # Noted before and after: a student may notice while the command is still under way.
            self.servers_were_hit = float("inf")
            # It may be gone already.
            self.engine.docker(*command, self.dice.choice(running), check=False)
            self.servers_were_hit = time.monotonic()
