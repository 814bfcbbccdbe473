"""The watch: what it looks at, what it says and to whom, and what it does where something does not answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import pytest_asyncio

from gpuspawner.config import watch_service
from gpuspawner.dockerd.engine import LeasedContainer
from gpuspawner.errors import ConfigError, EngineDown, HubError
from gpuspawner.extensions import Extensions
from gpuspawner.guard import Clock, Policy, Stop, Warn
from gpuspawner.hubapi import Outcome
from gpuspawner.leases import Lease, Limits, Owner
from gpuspawner.notices import FileNotices, read_notices
from gpuspawner.service.settings import Settings
from gpuspawner.service.watch import Watch
from gpuspawner.texts import Text
from tests.unit.waiting import until

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=timezone.utc)
MINUTE, HOUR = 60, 3600
REPOSITORY = Path(__file__).parents[2]


def lease(user: str = "kim", server: str = "", hub: str = "jupyter", limit: int | None = 2 * HOUR) -> Lease:
    """A lease that began at noon, with the user's name as its id."""
    return Lease(f"{user}{server}", Owner(user, server, hub), "gpu", (), NOON, Limits(time_limit_seconds=limit))


def box(of: Lease | None, state: str = "running") -> LeasedContainer:
    """A container that holds this lease; None for labels that cannot be read."""
    return LeasedContainer("c" * 64, "jupyter-x", state, (), of)


@dataclass
class House:
    """A state folder, containers, a Hub that notes whom it was to stop, and a clock."""

    folder: Path
    boxes: list[LeasedContainer] = field(default_factory=list)
    stopped: list[tuple[Owner, datetime]] = field(default_factory=list)
    answer: Outcome | Exception = Outcome.STOPPED
    trouble: Exception | None = None
    now: float = 0.0
    hold: asyncio.Event | None = None

    def watch(self) -> Watch:
        """A new process."""
        return Watch(
            self.leased,
            self.stop,
            Extensions(self.folder),
            FileNotices(self.folder),
            Policy(),
            "jupyter",
            lambda: Clock(NOON + timedelta(seconds=self.now), 77.0 + self.now),
        )

    async def leased(self) -> list[LeasedContainer]:
        """What the engine lists."""
        if self.trouble:
            raise self.trouble
        return self.boxes

    async def stop(self, owner: Owner, started: datetime) -> Outcome:
        """What the Hub is asked."""
        self.stopped.append((owner, started))
        if self.hold:
            await self.hold.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def house(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> House:
    """Everything well, nobody there."""
    caplog.set_level(logging.INFO)
    return House(tmp_path)


@pytest_asyncio.fixture
async def watch(house: House) -> AsyncIterator[Watch]:
    """A watch of that house."""
    one = house.watch()
    yield one
    if house.hold:
        house.hold.set()
    await one.stops_done()


async def warned_and_over(house: House, watch: Watch) -> None:
    """Go through two hours: the last look is at the end."""
    for house.now in (90 * MINUTE, 110 * MINUTE, 118 * MINUTE, 120 * MINUTE):
        await watch.look()
    await watch.stops_done()


async def test_a_warning_is_logged_and_can_be_read_by_the_hubs_pages(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, and one notice for that lease."""
    house.boxes = [box(lease())]
    house.now = 110 * MINUTE
    (verdict,) = await watch.look()
    assert isinstance(verdict, Warn)
    assert caplog.messages == [
        "warn 'kim' (gpu, lease kim): the server is stopped in 10 min, at the end of its time",
    ]
    notice = read_notices(house.folder)["kim"]
    assert (notice.kind, notice.stops) == ("warning", NOON + timedelta(hours=2))
    assert notice.text.ko.startswith("시간 한도에 따라 10분 후에")


async def test_a_server_is_stopped_with_its_reason(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """The Hub is asked for the very start that was judged; log and notice say why."""
    house.boxes = [box(lease("kim", "second"))]
    await warned_and_over(house, watch)
    assert house.stopped == [(Owner("kim", "second"), NOON)]
    assert caplog.messages[-2] == (
        "stop 'kim' 'second' (gpu, lease kimsecond): The server was stopped, because its time limit of 2 h is over. "
        "The files in the home folder stay; start it again when you need it."
    )
    assert caplog.messages[-1] == "'kim' 'second' (gpu, lease kimsecond) is stopped"
    notice = read_notices(house.folder)["kimsecond"]
    assert (notice.kind, notice.server) == ("stopped", "second")
    house.boxes = []
    await watch.look()
    assert read_notices(house.folder)["kimsecond"] == notice


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(box(lease(hub="another")), id="another Hub"),
        pytest.param(box(lease(), "created"), id="not started yet"),
        pytest.param(box(lease(), "removing"), id="being removed"),
        pytest.param(box(None), id="labels that cannot be read"),
        pytest.param(box(lease(limit=None)), id="no time limit"),
    ],
)
async def test_what_is_not_watched(house: House, watch: Watch, other: LeasedContainer) -> None:
    """Neither warned nor stopped."""
    house.boxes = [other]
    await warned_and_over(house, watch)
    assert house.stopped == []
    assert read_notices(house.folder) == {}


async def test_an_extension_takes_the_warning_back(house: House, watch: Watch) -> None:
    """The next look reads the file: the notice goes, and the server stays until the new end."""
    house.boxes = [box(lease())]
    house.now = 119 * MINUTE
    await watch.look()
    assert set(read_notices(house.folder)) == {"kim"}
    Extensions(house.folder).extend("kim", NOON + timedelta(hours=3), {"kim"})
    house.now = 121 * MINUTE
    assert await watch.look() == ()
    assert read_notices(house.folder) == {}
    house.now = 179 * MINUTE
    assert len(await watch.look()) == 1
    house.now = 181 * MINUTE
    await watch.look()
    await watch.stops_done()
    assert len(house.stopped) == 1


async def test_an_engine_that_does_not_answer_stops_nobody(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unknown is not over. It is said once, and looked at again; what came meanwhile is warned first."""
    house.boxes = [box(lease())]
    house.now = 110 * MINUTE
    await watch.look()
    caplog.clear()
    house.trouble = EngineDown(Text("The engine does not answer."), detail="no socket")
    for house.now in (115 * MINUTE, 120 * MINUTE, 125 * MINUTE):
        assert await watch.look() == ()
    assert caplog.messages == ["The leases cannot be read, so nobody is stopped: no socket"]
    house.trouble = None
    house.now = 126 * MINUTE
    (verdict,) = await watch.look()
    await watch.stops_done()
    assert isinstance(verdict, Stop)
    caplog.clear()
    house.trouble = EngineDown(Text("The engine does not answer."), detail="no socket")
    await watch.look()
    assert len(caplog.messages) == 1


async def test_a_hub_that_does_not_answer_is_asked_again_at_each_look(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says it once; no notice claims a stop that was none."""
    house.boxes = [box(lease())]
    house.answer = HubError("nobody is there")
    await warned_and_over(house, watch)
    for house.now in (7220, 7240):
        await watch.look()
        await watch.stops_done()
    assert len(house.stopped) == 3
    assert (
        caplog.messages.count("'kim' (gpu, lease kim) could not be stopped, and it is tried again: nobody is there")
        == 1
    )
    assert read_notices(house.folder)["kim"].kind == "warning"
    house.answer = Outcome.STOPPED
    await watch.look()
    await watch.stops_done()
    assert read_notices(house.folder)["kim"].kind == "stopped"


@pytest.mark.parametrize("outcome", [Outcome.ABSENT, Outcome.NEWER])
async def test_where_nothing_was_stopped_nobody_is_told_so(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture, outcome: Outcome
) -> None:
    """The admin reads it once in the log."""
    house.boxes = [box(lease())]
    house.answer = outcome
    await warned_and_over(house, watch)
    await watch.look()
    await watch.stops_done()
    assert read_notices(house.folder)["kim"].kind == "warning"
    assert sum("left alone" in line or "nothing was stopped" in line for line in caplog.messages) == 1


async def test_a_slow_stop_holds_up_nobody(house: House, watch: Watch) -> None:
    """A look does not wait for a stop, and does not ask for the same one twice."""
    house.boxes = [box(lease()), box(lease("lee"))]
    house.hold = asyncio.Event()
    for house.now in (110 * MINUTE, 118 * MINUTE, 120 * MINUTE, 121 * MINUTE):
        await watch.look()
    await asyncio.sleep(0)
    assert sorted(owner.user for owner, _ in house.stopped) == ["kim", "lee"]
    house.hold.set()
    await watch.stops_done()
    assert len(house.stopped) == 2


async def test_a_restarted_watch_neither_repeats_a_warning_nor_stops_at_once(house: House, watch: Watch) -> None:
    """It finds what was said in the notices, and warns once more before a stop."""
    house.boxes = [box(lease())]
    for house.now in (110 * MINUTE, 118 * MINUTE):
        await watch.look()
    again = house.watch()
    house.now = 119 * MINUTE
    assert await again.look() == ()
    house.now = 121 * MINUTE
    (verdict,) = await again.look()
    assert isinstance(verdict, Warn)
    house.now = 123 * MINUTE
    (verdict,) = await again.look()
    assert isinstance(verdict, Stop)
    await again.stops_done()
    assert len(house.stopped) == 1


async def test_notices_that_cannot_be_written_hold_up_nothing(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """The state folder is gone or full: the log has the warnings, and cards do not stay taken for ever."""
    house.boxes = [box(lease())]
    house.folder.rmdir()
    await warned_and_over(house, watch)
    assert len(house.stopped) == 1
    assert any("Notices cannot be written down" in line for line in caplog.messages)
    house.folder.mkdir()


async def test_a_fault_in_one_look_does_not_end_the_watch(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is, the next look comes."""
    house.trouble = RuntimeError("a fault")
    looks = 0
    plain = house.leased

    async def counted() -> list[LeasedContainer]:
        nonlocal looks
        looks += 1
        return await plain()

    watch._leased = counted
    running = asyncio.ensure_future(watch.run(0.001))
    while looks < 3:
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait([running])
    assert "This look has failed; the next one is in 0.001 s" in caplog.messages


async def test_names_cannot_forge_a_line_of_the_log(
    house: House, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """A name with a line break stays one line."""
    house.boxes = [box(replace(lease(), owner=Owner("kim\nstop 'lee'")))]
    await warned_and_over(house, watch)
    assert all("\n" not in line for line in caplog.messages)


# --- the program -----------------------------------------------------------------------------------------------------

NEEDED = {
    "JUPYTERHUB_API_URL": "http://127.0.0.1:9/hub/api",
    "JUPYTERHUB_API_TOKEN": "t",
    "GPUSPAWNER_STATE": "/srv/state",
}


def test_the_settings_of_a_plain_service() -> None:
    """Every twenty seconds; thirty, ten and two minutes before; two minutes at least."""
    settings = Settings.of(NEEDED)
    assert (settings.hub, settings.look_seconds, settings.hub_process) == ("jupyter", 20, None)
    assert settings.policy == Policy((1800, 600, 120), 120)


def test_the_settings_that_an_admin_may_give() -> None:
    """Times as in profiles; the steps in any order."""
    more = {
        "GPUSPAWNER_PREFIX": "lab",
        "GPUSPAWNER_WATCH_EVERY": "1m",
        "GPUSPAWNER_WARN_BEFORE": "5m, 1h",
        "GPUSPAWNER_WARN_AT_LEAST": "4m",
        "GPUSPAWNER_HUB_PROCESS": "12",
    }
    settings = Settings.of({**NEEDED, **more})
    assert (settings.hub, settings.look_seconds, settings.hub_process) == ("lab", 60, 12)
    assert settings.policy == Policy((3600, 300), 240)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        pytest.param({}, "JUPYTERHUB_API_URL is not set", id="nothing"),
        pytest.param(
            {**NEEDED, "GPUSPAWNER_STATE": ""}, "GPUSPAWNER_STATE is not set: the state folder", id="no folder"
        ),
        pytest.param(
            {**NEEDED, "GPUSPAWNER_WARN_BEFORE": "soon"},
            "GPUSPAWNER_WARN_BEFORE must be a time such as '2h', '90m' or '1d12h', got 'soon'",
            id="no time",
        ),
        pytest.param({**NEEDED, "GPUSPAWNER_WATCH_EVERY": "0"}, "GPUSPAWNER_WATCH_EVERY must be a time", id="zero"),
    ],
)
def test_what_is_missing_or_wrong_is_named(environ: dict[str, str], sentence: str) -> None:
    """The admin reads which variable it is."""
    with pytest.raises(ConfigError) as error:
        Settings.of(environ)
    assert sentence in str(error.value)


def test_the_entry_for_the_hub(tmp_path: Path) -> None:
    """What the service is told, where the engine is included, and a role with its two scopes and nothing else."""
    environ = {"DOCKER_HOST": "unix:///x.sock", "SECRET": "s", "GPUSPAWNER_WARN_BEFORE": "1h"}
    service, role = watch_service(tmp_path, "lab", environ)
    assert service["command"] == [sys.executable, "-m", "gpuspawner.service"]
    assert service["environment"] == {
        "DOCKER_HOST": "unix:///x.sock",
        "GPUSPAWNER_WARN_BEFORE": "1h",
        "GPUSPAWNER_STATE": str(tmp_path),
        "GPUSPAWNER_PREFIX": "lab",
        "GPUSPAWNER_HUB_PROCESS": str(os.getpid()),
    }
    assert "api_token" not in service
    assert not service.get("admin", False)
    assert role["services"] == [service["name"]]
    assert role["scopes"] == ["delete:servers", "read:servers"]
    assert Settings.of({**NEEDED, **service["environment"]}).hub == "lab"


def start(environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """The program, as a child of this process."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environ}
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "gpuspawner.service"], env=environment, stderr=file)


def test_the_program_says_what_is_missing(tmp_path: Path) -> None:
    """A sentence and a status, no traceback."""
    process = start({"JUPYTERHUB_API_URL": ""}, tmp_path / "log")
    assert process.wait(30) == 1
    assert (tmp_path / "log").read_text().startswith("gpuspawner.service does not start: JUPYTERHUB_API_URL is not set")


def test_sigterm_ends_the_program_also_while_the_engine_hangs(tmp_path: Path) -> None:
    """Within a second, although a call to the engine is under way that nobody answers."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "engine.sock"))
    listener.listen()
    environ = {**NEEDED, "GPUSPAWNER_STATE": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/engine.sock"}
    process = start(environ, tmp_path / "log")
    try:
        connection, _ = listener.accept()
        process.send_signal(signal.SIGTERM)
        assert process.wait(1.0) == 0
        connection.close()
    finally:
        process.kill()
        process.wait()
        listener.close()
    assert "The watch ends" in (tmp_path / "log").read_text()


def test_the_program_hears_ctrl_c_from_its_beginning(tmp_path: Path) -> None:
    """Though whoever started it ignores that signal, as bash has it for what is in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start({**NEEDED, "GPUSPAWNER_STATE": str(tmp_path)}, tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before)

    def ignores() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(mask, 16) & 1 << signal.SIGINT - 1)

    deadline = time.monotonic() + 30
    while ignores():
        assert time.monotonic() < deadline
        time.sleep(0.002)  # nobody tells when a process has changed what it ignores
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    assert "Watching" not in (tmp_path / "log").read_text()


def test_a_service_whose_hub_is_gone_ends(tmp_path: Path) -> None:
    """The next Hub starts its own: two would do the same work, and this one's token is worth nothing any more."""
    environ = {**NEEDED, "GPUSPAWNER_STATE": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    process = start({**environ, "GPUSPAWNER_HUB_PROCESS": "1" if os.getpid() != 1 else "2"}, tmp_path / "log")
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_service_that_cannot_reach_its_engine_goes_on(tmp_path: Path) -> None:
    """It says so and looks again."""
    environ = {**NEEDED, "GPUSPAWNER_STATE": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    more = {"GPUSPAWNER_WATCH_EVERY": "1s", "GPUSPAWNER_HUB_PROCESS": str(os.getpid())}
    process = start({**environ, **more}, tmp_path / "log")
    try:
        until(lambda: "The leases cannot be read, so nobody is stopped" in (tmp_path / "log").read_text(), 30)
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(10) == 0
