"""The trial of a candidate: started as the Hub would start it, looked through and compared, before its tag moves.

`candidates` judges; this makes the containers for it, all without a network and all removed on every way out. Two
scripts look at a candidate from inside (`inside/walk.py` as root, `inside/own.py` as its user). A third plays the Hub
(`inside/hub.py`) in a box of its own, whose network the candidate joins: so the candidate's own box holds nothing but
its server, and what the engine counts for it is exact.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from gpuspawner import candidates, container
from gpuspawner.builder.boot import AS_THE_HUB_STARTS_IT, PORT, PREFIX, HubBox, NoAnswer, answer_in, script
from gpuspawner.builder.children import Say
from gpuspawner.builder.desk import Desk
from gpuspawner.candidates import Boot, FileFacts, Finding, ImageConfig, ImportCost, PackageCheck, Verdict
from gpuspawner.dockerd.boxes import Box, Boxes, CannotStart
from gpuspawner.errors import BuildError
from gpuspawner.leases import Lease, Limits, Owner
from gpuspawner.profiles import Choice, Profile
from gpuspawner.units import GIB

MEMORY_BYTES, SMOKE_MEMORY_BYTES, CPU_LIMIT = 2 * GIB, 4 * GIB, 2.0
SMOKE_SECONDS, LOOK_SECONDS = 300.0, 300.0
ROUNDS, BOOTS_IN_A_ROUND = 3, 3
SMOKE_FILE, IMPORTS_FILE = "/gpuspawner-trial/smoke_test.py", "/gpuspawner-trial/sitecustomize.py"


class Trials:
    """The trials of one run of the builder. Several may be under way at once, each in a thread of its own.

    What was seen of an image's files is kept for the images that stand on it.
    """

    def __init__(self, boxes: Boxes, *, hub_version: str) -> None:
        self._boxes = boxes
        self._hub_version = hub_version
        self._stopped = threading.Event()
        self._desks: set[Desk] = set()
        self._files: dict[str, FileFacts] = {}
        # Two servers that start at the same moment would each look slow.
        self._stopwatch = threading.Lock()

    def check(
        self,
        image: str,
        *,
        parent: str | None,
        yardstick: str | None,
        smoke_tests: Mapping[str, str],
        say: Say,
    ) -> Verdict:
        """Judge one candidate.

        Args:
            image: id or reference of the candidate.
            parent: the image that it stands on; None where the engine does not have it: then nothing is said about
                setuid programs.
            yardstick: the image against which its start is measured; None where it is that itself.
            smoke_tests: name of image → source of its smoke_test.py, the candidate's and those of all that it
                stands on.
            say: gets a line about each step.

        Raises:
            BuildError: the engine failed, the yardstick does not start any more, or `stop` was called.
        """
        desk = Desk(self._boxes, self._stopped)
        self._desks.add(desk)
        pool = ThreadPoolExecutor(3, thread_name_prefix="trial")
        try:
            trial = _Trial(self, desk, say, self._boxes.image(image))
            files = pool.submit(trial.judge_files, self._boxes.image(parent) if parent else None, parent)
            own = pool.submit(trial.judge_from_inside)
            smoke = pool.submit(trial.judge_smoke_tests, smoke_tests)
            looked = [part.result() for part in (own, files, smoke)]
            with self._stopwatch:
                started = trial.judge_boot(self._boxes.image(yardstick) if yardstick else None)
            return trial.verdict([*looked, started])
        except BuildError:
            if self._stopped.is_set():
                raise BuildError("stopped") from None
            raise
        finally:
            # First the boxes: what the threads wait for are their ends.
            desk.close()
            pool.shutdown(cancel_futures=True)
            self._desks.discard(desk)

    def stop(self) -> None:
        """End every trial that is under way, from any thread: its `check` raises BuildError("stopped")."""
        self._stopped.set()
        for desk in list(self._desks):
            desk.close()

    def sweep(self) -> None:
        """Remove what a run that was killed left behind. Not while another run is under way."""
        for name in self._boxes.leftovers():
            self._boxes.remove(name)

    def files_of(self, image: ImageConfig, look: Callable[[], FileFacts]) -> FileFacts:
        """What is in an image; looked at once."""
        if image.id not in self._files:
            self._files[image.id] = look()
        return self._files[image.id]

    @property
    def hub_version(self) -> str:
        """The version of the Hub that will start these images."""
        return self._hub_version


Looked = tuple[tuple[str, ...], tuple[Finding, ...]]
"""The checks that were made, and what they found."""


class _Trial:
    """One candidate. Its methods are called by several threads and share nothing that changes but the figures."""

    def __init__(self, trials: Trials, desk: Desk, say: Say, image: ImageConfig) -> None:
        self._trials = trials
        self._desk = desk
        self._boxes = desk.boxes
        self._listener = say
        self._talking = threading.Lock()
        self._image = image
        self._boot: Boot | None = None
        self._yardstick: Boot | None = None
        self._imports: tuple[ImportCost, ...] = ()

    def verdict(self, looked: Sequence[Looked]) -> Verdict:
        """All that was seen."""
        ran = (candidates.USER, candidates.GPUS, candidates.COMMAND, candidates.CREDENTIALS)
        parts = [(ran, candidates.judge_config(self._image)), *looked]
        checks = dict.fromkeys(check for names, _ in parts for check in names)
        findings = dict.fromkeys(finding for _, found in parts for finding in found)
        return Verdict(tuple(findings), tuple(checks), self._boot, self._yardstick, self._imports)

    def _say(self, line: str) -> None:
        with self._talking:
            self._listener(line)

    # -- looking at it ---------------------------------------------------------------------------------------------

    def judge_files(self, parent: ImageConfig | None, parent_name: str | None) -> Looked:
        """Secrets, and what it adds to its parent's setuid programs."""
        self._say("Looking through its files")
        try:
            own = self._trials.files_of(self._image, lambda: self._walk(self._image))
            above = self._trials.files_of(parent, lambda: self._look_at(parent)) if parent else None
        except CannotStart as problem:
            text = f"Its files cannot be looked at: {problem}. It needs a python3 on its PATH, for JupyterLab as well."
            return (candidates.SECRETS,), (Finding(candidates.SECRETS, text),)
        if above is None:
            self._say("The image that it stands on is not in the engine, so setuid programs cannot be compared.")
        made = (candidates.SECRETS, candidates.SPECIAL) if above else (candidates.SECRETS,)
        return made, candidates.judge_files(own, above, parent_name=parent_name or "its parent")

    def _look_at(self, parent: ImageConfig) -> FileFacts:
        try:
            return self._walk(parent)
        except CannotStart:
            # A bare system without Python: its files can be had as well, only slower.
            host_config = {**self._host_config(MEMORY_BYTES), "network_mode": "none"}
            with self._desk.box(Box(parent.id, ["true"], host_config=host_config), start=False) as name:
                return FileFacts(special=self._boxes.special_files(name), secrets={})

    def _walk(self, image: ImageConfig) -> FileFacts:
        host_config = {
            **self._host_config(MEMORY_BYTES),
            "network_mode": "none",
            "read_only": True,
            # To read what is closed to others; what a student can read is told apart by the script.
            "cap_add": ["DAC_READ_SEARCH"],
        }
        argv = ["-I", "-S", "-B", "-c", script("walk"), image.user]
        box = Box(image.id, argv, program="python3", user="0", host_config=host_config, environment=self._void())
        with self._desk.box(box) as name:
            status = self._boxes.wait(name, LOOK_SECONDS)
            found = answer_in(self._boxes.log(name, errors_too=False))
            if found is None:
                lines = self._boxes.log(name, last=3)
                raise CannotStart(f"its python3 {_ended(status, LOOK_SECONDS)}: {' '.join(lines) or 'no output'}")
        return FileFacts(special=found["special"], secrets=found["secrets"])

    def judge_from_inside(self) -> Looked:
        """Its user's number, the Hub's version and `pip check`, with its own entrypoint and environment."""
        made = (candidates.USER, candidates.HUB_VERSION, candidates.PACKAGES)
        self._say("Asking for its versions, and pip whether its packages fit together")
        box = Box(
            self._image.id,
            ["python3", "-c", script("own")],
            host_config={**self._host_config(SMOKE_MEMORY_BYTES), "network_mode": "none"},
            environment=self._void(),
        )
        try:
            with self._desk.box(box) as name:
                status = self._boxes.wait(name, LOOK_SECONDS)
                found = answer_in(self._boxes.log(name, errors_too=False))
                if found is None:
                    how = f"cannot run 'python3', which {_ended(status, LOOK_SECONDS)}"
                    return made, candidates.judge_start(how, self._boxes.log(name, last=candidates.LOG_LINES))
        except CannotStart as problem:
            return made, candidates.judge_start(f"cannot run 'python3': {problem}", ())
        checks = [PackageCheck(entry["python"], tuple(entry["lines"])) for entry in found["packages"]]
        for entry in found["packages"]:
            if not entry["pip"]:
                self._say(f"No pip is there for {entry['python']}: whether its packages fit was not checked.")
        return made, (
            *candidates.judge_user(int(found["uid"])),
            *candidates.judge_hub_version(self._trials.hub_version, found["server_version"]),
            *candidates.judge_packages(checks),
        )

    def judge_smoke_tests(self, tests: Mapping[str, str]) -> Looked:
        """Each smoke_test.py with the students' Python, in a fresh container."""
        findings: list[Finding] = []
        for image, source in tests.items():
            self._say(f"Running the smoke test of {image}")
            findings += self._smoke_test(image, source)
        return tuple(candidates.smoke_check(image) for image in tests), tuple(findings)

    def _smoke_test(self, image: str, source: str) -> tuple[Finding, ...]:
        box = Box(
            self._image.id,
            ["python", SMOKE_FILE],
            host_config={**self._host_config(SMOKE_MEMORY_BYTES), "network_mode": "none"},
            environment=self._void(),
            volumes=[self._image.home],
            files={SMOKE_FILE: source.encode()},
        )
        try:
            with self._desk.box(box) as name:
                status = self._boxes.wait(name, SMOKE_SECONDS)
                lines = self._boxes.log(name, last=200) if status != 0 else []
                if status and self._boxes.state(name).out_of_memory:
                    lines.append(f"(it ran out of memory: {SMOKE_MEMORY_BYTES // GIB} GiB)")
        except CannotStart as problem:
            status, lines = 127, [str(problem)]
        return candidates.judge_smoke_test(image, status, lines, limit_seconds=SMOKE_SECONDS)

    # -- starting it -----------------------------------------------------------------------------------------------

    def judge_boot(self, yardstick: ImageConfig | None) -> Looked:
        """Whether its server answers, and what that costs beside the yardstick's, in the same minute."""
        made = (candidates.STARTS,) if yardstick is None else (candidates.STARTS, candidates.BOOT)
        try:
            with self._hub(yardstick or self._image) as hub:
                self._measure(hub, yardstick)
                if self._boot and self._yardstick and candidates.over_budget(self._boot, self._yardstick):
                    self._say("Its start is over the budget: looking at its imports")
                    self._imports = candidates.most_expensive(self._profile(hub))
        except CannotStart as problem:
            return made, candidates.judge_start(f"cannot run 'python3': {problem}", ())
        except NoAnswer as problem:
            return made, candidates.judge_start(problem.how, problem.lines)
        if self._boot is None or self._yardstick is None:
            return made, ()
        return made, candidates.judge_boot(self._boot, self._yardstick, self._imports)

    def _measure(self, hub: HubBox, yardstick: ImageConfig | None) -> None:
        """Start both in turn until the candidate is within the budget, or has had all its rounds."""
        own: list[Boot] = []
        others: list[Boot] = []
        for number in range(ROUNDS * BOOTS_IN_A_ROUND if yardstick else BOOTS_IN_A_ROUND):
            # The one that comes first changes, so that a machine that gets slower favours neither.
            for image in (self._image, yardstick) if number % 2 else (yardstick, self._image):
                if image is self._image:
                    own.append(self._start(hub, image))
                elif image:
                    others.append(self._start_yardstick(hub, image))
            self._boot, self._yardstick = candidates.best(own), candidates.best(others) if others else None
            if self._yardstick and self._is_decided(self._boot, self._yardstick, len(own)):
                break
        beside = f"; the image below all others: {self._yardstick}" if self._yardstick else ""
        self._say(f"First answer after {self._boot}{beside}")

    @staticmethod
    def _is_decided(own: Boot, yardstick: Boot, boots: int) -> bool:
        """Whether more starts of each can change nothing: a quieter moment may bring one back within the budget."""
        if boots >= 2 and candidates.over_budget(own, yardstick, candidates.BEYOND_DOUBT):
            return True
        return boots % BOOTS_IN_A_ROUND == 0 and not candidates.over_budget(own, yardstick)

    def _start_yardstick(self, hub: HubBox, image: ImageConfig) -> Boot:
        try:
            return self._start(hub, image)
        except NoAnswer as problem:
            last = " ".join(problem.lines[-3:]) or "no output"
            raise BuildError(
                f"The image that starts are measured against {problem.how} ({last}). Build it anew with --no-cache."
            ) from problem

    def _start(self, hub: HubBox, image: ImageConfig) -> Boot:
        """What one server needs until its first answer."""
        with self._server(hub, image) as name:
            return self._boxes.usage(name, hub.await_answer(name))

    def _profile(self, hub: HubBox) -> tuple[ImportCost, ...]:
        path = ":".join(filter(None, (IMPORTS_FILE.rpartition("/")[0], self._image.environment.get("PYTHONPATH"))))
        files = {IMPORTS_FILE: script("imports").encode()}
        with self._server(hub, self._image, {"PYTHONPATH": path}, files) as name:
            hub.await_answer(name)
            return candidates.parse_imports(self._boxes.log(name))

    @contextmanager
    def _server(
        self,
        hub: HubBox,
        image: ImageConfig,
        environment: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Iterator[str]:
        box = Box(
            image.id,
            image.command or None,
            host_config={**self._host_config(MEMORY_BYTES, CPU_LIMIT), "network_mode": f"container:{hub.name}"},
            environment={
                **AS_THE_HUB_STARTS_IT,
                **self._void(),
                "JUPYTER_IMAGE_SPEC": image.id,
                "MEM_LIMIT": str(MEMORY_BYTES),
                "CPU_LIMIT": str(CPU_LIMIT),
                **(environment or {}),
            },
            volumes=[image.home],
            files=files or {},
        )
        try:
            with self._desk.box(box) as name:
                yield name
        except CannotStart as problem:
            raise NoAnswer(f"cannot be started: {problem}", ()) from problem

    @contextmanager
    def _hub(self, image: ImageConfig) -> Iterator[HubBox]:
        arguments = [self._trials.hub_version, str(PORT), f"{PREFIX}api"]
        box = Box(
            image.id,
            ["-I", "-S", "-B", "-c", script("hub"), *arguments],
            program="python3",
            user="65534",
            host_config={**self._host_config(MEMORY_BYTES), "network_mode": "none", "read_only": True},
            environment=self._void(),
        )
        with self._desk.box(box) as name:
            yield HubBox(self._boxes, name)

    # -- how -------------------------------------------------------------------------------------------------------

    def _host_config(self, memory_bytes: int, cpu_limit: float | None = None) -> dict[str, Any]:
        """What the Hub sets for a profile without a GPU; neither its labels nor its home volume."""
        spec = container.build(
            Choice(_PROFILE),
            Lease("", Owner("u"), _PROFILE.slug, (), datetime.now(timezone.utc), Limits(memory_bytes, cpu_limit)),
            container.ImageFacts(self._image.id, self._image.id, self._image.home),
            "nvidia",
            container.Defaults(),
        )
        limits: dict[str, Any] = {"mem_limit": spec.mem_limit_bytes}
        if spec.cpu_limit:
            limits |= {"cpu_period": 100_000, "cpu_quota": int(spec.cpu_limit * 100_000)}
        return {**spec.host_config, **limits}

    def _void(self) -> dict[str, str]:
        return {"NVIDIA_VISIBLE_DEVICES": "void"}


_PROFILE = Profile.model_validate({"display_name": "Trial", "image": "candidate"})


def _ended(status: int | None, limit_seconds: float) -> str:
    return f"did not end within {limit_seconds:g} seconds" if status is None else f"ended with status {status}"
