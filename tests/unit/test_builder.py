"""Building one image: which program builds, what it is asked and given, and how it is ended."""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuspawner.builder import build as module
from gpuspawner.builder import children as children_module
from gpuspawner.builder.build import Builder, Job, Kind, Tool, find_tool, step_of
from gpuspawner.builder.children import Children
from gpuspawner.builder.context import packed
from gpuspawner.errors import BuildError
from gpuspawner.recipes import ContextFile, Folder
from tests.standins.engine import BuildFails, BuildHangs, RegistryDown, StandinEngine
from tests.unit.fakedocker import FakeDocker, only
from tests.unit.waiting import until

FILES = {"Dockerfile": ContextFile(b"ARG BASE\nFROM ${BASE}\nCOPY a /a\n"), "a": ContextFile(b"abc")}
ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def engine() -> Iterator[StandinEngine]:
    """An engine that has a base."""
    with StandinEngine() as one:
        one.add_image("debian:12", size=100)
        yield one
        one.faults.clear()


def job(*, files: Folder = FILES, tag: str = "gpuspawner/base:1", **more: object) -> Job:
    return Job(tag, files, **{"arguments": {"BASE": "debian:12"}, **more})  # type: ignore[arg-type]


def builder_for(engine: StandinEngine, tool: Tool, children: Children | None = None) -> Builder:
    return Builder(tool, {**os.environ, "DOCKER_HOST": engine.url, "PYTHONPATH": ROOT}, children or Children())


# --- which program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("programs", "chosen", "kind"),
    [
        pytest.param([("28.2.2", True)], 0, Kind.BUILDX, id="new, with buildx"),
        pytest.param([("20.10.24", False)], 0, Kind.BUILDKIT, id="old"),
        pytest.param([("28.2.2", False)], None, Kind.CLASSIC, id="new, without buildx"),
        pytest.param([("28.2.2", False), ("20.10.24", False)], 1, Kind.BUILDKIT, id="an old one further down PATH"),
        pytest.param([("20.10.24", False), ("28.2.2", True)], 1, Kind.BUILDX, id="buildx further down PATH"),
        pytest.param([("28.2.2", False), ("27.0.0", False)], None, Kind.CLASSIC, id="two new ones"),
        pytest.param([("17.06.0", False)], None, Kind.CLASSIC, id="too old for BuildKit"),
        pytest.param([("of my own", False)], None, Kind.CLASSIC, id="no version"),
        pytest.param([], None, Kind.CLASSIC, id="none at all"),
    ],
)
def test_what_builds_best_is_chosen(
    tmp_path: Path, programs: list[tuple[str, bool]], chosen: int | None, kind: Kind
) -> None:
    """All docker programs on PATH are looked at, not only the first."""
    fakes = [FakeDocker.make(tmp_path / str(n), version=v, buildx=b) for n, (v, b) in enumerate(programs)]
    program = "" if chosen is None else str(fakes[chosen].root / "docker")
    assert find_tool({"PATH": only(*(fake.root for fake in fakes))}) == Tool(kind, program)


def test_a_program_that_is_on_path_twice_is_asked_once(tmp_path: Path) -> None:
    """/bin is /usr/bin on most machines."""
    fake = FakeDocker.make(tmp_path / "usr", buildx=False)
    (tmp_path / "bin").symlink_to("usr")
    assert find_tool({"PATH": only(fake.root, tmp_path / "bin")}).kind is Kind.CLASSIC
    assert [call.argv for call in fake.asked] == [["--version"], ["buildx", "version"]]


def test_what_cannot_run_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not executable, broken, or never coming to an end: such a program is passed over."""
    monkeypatch.setattr(module, "QUICK_SECONDS", 0.2)
    for name, text, mode in (("a", "x", 0o644), ("b", "\0", 0o755), ("c", "#!/bin/sh\nexec sleep 60\n", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "docker").write_text(text)
        (tmp_path / name / "docker").chmod(mode)
    path = only(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert find_tool({"PATH": f"{path}:/usr/sbin"}) == Tool(Kind.CLASSIC)


def test_without_a_path_the_systems_own_is_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A timer may have none; an empty entry means the current folder."""
    fake = FakeDocker.make(tmp_path)
    monkeypatch.setattr(os, "defpath", str(tmp_path))
    assert find_tool({}).program == str(tmp_path / "docker")
    monkeypatch.chdir(fake.root)
    assert find_tool({"PATH": ""}) == Tool(Kind.BUILDX, "docker")


# --- what it is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "buildx", "beginning"),
    [
        pytest.param("20.10.24", False, ["build", "--progress=plain"], id="before 23"),
        pytest.param(
            "28.2.2", True, ["buildx", "build", "--builder", "default", "--load", "--progress=plain"], id="buildx"
        ),
    ],
)
def test_a_docker_program_is_asked_in_its_own_words(
    engine: StandinEngine, tmp_path: Path, version: str, buildx: bool, beginning: list[str]
) -> None:
    """Tag, labels and arguments in order; the folder comes on its standard input."""
    fake = FakeDocker.make(tmp_path, version=version, buildx=buildx)
    tool = find_tool(fake.environ(engine.url))
    lines: list[str] = []
    builder_for(engine, tool).build(job(labels={"b": "2", "a": "x=y z"}, no_cache=True, network="host"), lines.append)
    (call,) = fake.builds()
    assert call.argv == [
        *beginning,
        *("--tag", "gpuspawner/base:1"),
        *("--label", "a=x=y z", "--label", "b=2"),
        *("--build-arg", "BASE=debian:12", "--no-cache", "--network", "host", "-"),
    ]
    assert call.environment == {
        "DOCKER_BUILDKIT": "1",
        "DOCKER_HOST": engine.url,
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
    }
    assert "#2 [2/4] FROM ${BASE}" in lines
    built = next(image for image in engine.images if image.ref == "gpuspawner/base:1")
    assert (dict(built.labels), built.size) == ({"a": "x=y z", "b": "2"}, 103)


def test_the_classic_builder_needs_no_program(engine: StandinEngine) -> None:
    """docker-py asks the engine; the same job gives the same image."""
    lines: list[str] = []
    builder = builder_for(engine, Tool(Kind.CLASSIC))
    builder.build(job(labels={"b": "2", "a": "x=y z"}, network="host"), lines.append)
    first = next(image for image in engine.images if image.ref == "gpuspawner/base:1")
    assert (dict(first.labels), first.size) == ({"a": "x=y z", "b": "2"}, 103)
    assert lines[0] == "Step 1/4 : ARG BASE"
    assert lines[-1] == "Successfully tagged gpuspawner/base:1"
    builder.build(job(labels={"b": "2", "a": "x=y z"}, tag="gpuspawner/base:2"), lines.append)
    builder.build(job(labels={"b": "2", "a": "x=y z"}, tag="gpuspawner/base:3", no_cache=True), lines.append)
    ids = {image.ref: image.id for image in engine.images}
    assert ids["gpuspawner/base:2"] == first.id != ids["gpuspawner/base:3"]


@pytest.fixture(params=["buildx", "classic"])
def builder(request: pytest.FixtureRequest, engine: StandinEngine, tmp_path: Path) -> Builder:
    """One with BuildKit, one without."""
    fake = FakeDocker.make(tmp_path / "bin", buildx=request.param == "buildx")
    return builder_for(engine, find_tool(fake.environ(engine.url)))


@pytest.mark.parametrize(
    ("fault", "problem", "last"),
    [
        pytest.param(BuildFails(message="returned a non-zero code: 2"), r"failed\.$", "code: 2", id="a step"),
        pytest.param(
            BuildFails(message="write /x: No Space left on device"),
            r"failed, because the disk of the Docker engine is full\. Make room .*--prune",
            "device",
            id="disk full",
        ),
    ],
)
def test_a_failed_build_is_an_error_and_its_output_is_handed_over(
    engine: StandinEngine, builder: Builder, fault: BuildFails, problem: str, last: str
) -> None:
    """The last line says what went wrong; a full disk is told as such."""
    engine.faults.add(fault)
    lines: list[str] = []
    with pytest.raises(BuildError, match=f"The build of gpuspawner/base:1 {problem}"):
        builder.build(job(), lines.append)
    assert lines[-1].endswith(last)
    assert [image.ref for image in engine.images] == ["debian:12"]


def test_what_the_engine_refuses_before_the_first_step_is_told(engine: StandinEngine, builder: Builder) -> None:
    """A Dockerfile that it cannot read."""
    lines: list[str] = []
    with pytest.raises(BuildError, match=r"The build of gpuspawner/base:1 failed\."):
        builder.build(job(files={"Dockerfile": ContextFile(b"FROM x\nFLY\n")}), lines.append)
    assert lines[-1].endswith("dockerfile parse error line 2: unknown instruction: FLY")
    with engine.faults.during(RegistryDown()), pytest.raises(BuildError):
        builder.build(job(arguments={"BASE": "school/nothing:1"}), lines.append)
    assert "school/nothing" in lines[-1]


def test_an_engine_that_is_gone_fails_a_build(tmp_path: Path) -> None:
    """The line says so."""
    lines: list[str] = []
    environ = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock", "PYTHONPATH": ROOT}
    with pytest.raises(BuildError, match=r"failed\."):
        Builder(Tool(Kind.CLASSIC), environ, Children()).build(job(), lines.append)
    assert "No such file or directory" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_what_needs_buildkit_is_not_tried_without_it(engine: StandinEngine) -> None:
    """The classic builder's own message would not say what to install."""
    with pytest.raises(BuildError, match=r"Dockerfile of x:1 uses RUN --mount or a heredoc.*docker-buildx"):
        builder_for(engine, Tool(Kind.CLASSIC)).build(job(tag="x:1", needs_buildkit=True), lambda _: None)
    assert [call.operation for call, _ in engine.calls] == []


@pytest.mark.parametrize(
    ("line", "step"),
    [
        pytest.param("#8 [5/9] RUN pip  install x", "5/9 RUN pip install x", id="BuildKit"),
        pytest.param("#8 [ 5/12] COPY a b", "5/12 COPY a b", id="BuildKit, padded"),
        pytest.param("#8 [made 2/3] RUN make", "2/3 RUN make", id="BuildKit, named stage"),
        pytest.param("Step 3/9 : RUN pip install x", "3/9 RUN pip install x", id="classic"),
        pytest.param("#8 1.23 Collecting numpy", None, id="output"),
        pytest.param("#8 [internal] load metadata", None, id="internal"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_steps_are_recognised_in_the_output(line: str, step: str | None) -> None:
    """Both builders number their steps."""
    assert step_of(line) == step


# --- what it is given -------------------------------------------------------------------------------------------------

CONTEXT: Folder = {
    "Dockerfile": ContextFile(b"FROM x\n"),
    ".dockerignore": ContextFile(b"*.pyc\n"),
    "bin/start": ContextFile(b"#!/bin/sh\n", executable=True),
    "link": ContextFile(b"bin/start", is_link=True),
    "odd\udce4": ContextFile(b""),
}


def test_a_context_is_the_same_whenever_it_is_packed() -> None:
    """Neither order nor time nor owner gets in."""
    forwards = packed(CONTEXT).read()
    assert packed({path: CONTEXT[path] for path in reversed(list(CONTEXT))}).read() == forwards
    assert forwards != packed({**CONTEXT, "link": ContextFile(b"elsewhere", is_link=True)}).read()


def test_a_context_holds_modes_and_links_and_no_dockerignore() -> None:
    """That one has done its work, and would be done again by the engine."""
    with tarfile.open(fileobj=packed(CONTEXT)) as tar:
        found = {entry.name: entry for entry in tar}
        start = tar.extractfile("bin/start")
        assert start is not None
        assert start.read() == b"#!/bin/sh\n"
    assert set(found) == {"Dockerfile", "bin/start", "link", "odd\udce4"}
    assert {name: entry.mode for name, entry in found.items() if entry.isreg()} == {
        "Dockerfile": 0o644,
        "bin/start": 0o755,
        "odd\udce4": 0o644,
    }
    assert (found["link"].issym(), found["link"].linkname) == (True, "bin/start")
    assert {(entry.uid, entry.gid, entry.mtime) for entry in found.values()} == {(0, 0, 0)}


# --- how it is ended --------------------------------------------------------------------------------------------------


def test_children_hand_over_their_lines_and_their_end(tmp_path: Path) -> None:
    """Both streams as they come, and the exit status."""
    lines: list[str] = []
    argv = ["sh", "-c", "printf 'a  \\n'; printf '\\344b\\n' >&2; cat; exit 3"]
    (tmp_path / "in").write_bytes(b"given")
    with (tmp_path / "in").open("rb") as stdin:
        assert Children().run(argv, lines.append, environ=os.environ, stdin=stdin) == 3
    assert lines == ["a", "\ufffdb", "given"]


def test_a_program_that_is_not_there_is_named() -> None:
    """With the system's reason."""
    with pytest.raises(BuildError, match=r"/nowhere/x cannot be run: No such file or directory\."):
        Children().run(["/nowhere/x"], lambda _: None, environ={})


def test_a_listener_that_fails_leaves_nothing_running() -> None:
    """The program is ended before the error goes on."""
    children = Children()

    def fail(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="ready"):
        children.run(["sh", "-c", "echo ready; exec sleep 60"], fail, environ={"PATH": os.environ["PATH"]})
    assert not children._running


def test_a_stop_ends_what_runs_and_lets_nothing_begin() -> None:
    """Two programs in two threads, one stop."""
    children, ready = Children(), threading.Semaphore(0)
    ended: list[str] = []

    def work() -> None:
        try:
            children.run(["sh", "-c", "echo; exec sleep 60"], lambda _: ready.release(), environ=dict(os.environ))
        except BuildError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert ready.acquire(timeout=10)
    children.stop()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert ended == ["stopped", "stopped"]
    with pytest.raises(BuildError, match="stopped"):
        children.run(["true"], lambda _: None, environ={})


@pytest.mark.parametrize("deaf", ["the program", "what it has started"])
def test_a_stop_does_not_wait_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch, deaf: str) -> None:
    """A docker program may wait for an engine for ever, and its plugin holds the pipe when it is gone itself."""
    monkeypatch.setattr(children_module, "GRACE_SECONDS", 0.2)
    children, ready = Children(), threading.Event()
    hangs = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    program = hangs if deaf == "the program" else f"({hangs}) & wait"
    problems: list[str] = []

    def work() -> None:
        try:
            children.run(["sh", "-c", program], lambda _: ready.set(), environ=dict(os.environ))
        except BuildError as error:
            problems.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10)
    children.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert problems == ["stopped"]


@pytest.mark.parametrize("buildx", [True, False], ids=["buildx", "classic"])
def test_a_build_that_is_stopped_makes_no_image(engine: StandinEngine, tmp_path: Path, buildx: bool) -> None:
    """The engine gives it up when its client is gone."""
    fake = FakeDocker.make(tmp_path, buildx=buildx)
    children = Children()
    problems: list[str] = []
    builder = builder_for(engine, find_tool(fake.environ(engine.url)), children)

    def work() -> None:
        try:
            builder.build(job(), lambda _: None)
        except BuildError as error:
            problems.append(str(error))

    with engine.faults.during(BuildHangs()) as fault:
        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: fault.struck == 1)
        children.stop()
        thread.join(10)
        assert not thread.is_alive()
        until(lambda: any(call.operation == "build" for call, _ in engine.calls))
    assert problems == ["stopped"]
    assert [image.ref for image in engine.images] == ["debian:12"]
