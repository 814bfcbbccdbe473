"""Candidates on a real engine: a good one passes, each broken one is found out, and nothing is left behind."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.utils import kwargs_from_env

from gpuspawner.builder import boot, trial
from gpuspawner.builder.trial import Trials
from gpuspawner.candidates import (
    BOOT,
    COMMAND,
    CREDENTIALS,
    GPUS,
    HUB_VERSION,
    PACKAGES,
    SECRETS,
    SPECIAL,
    STARTS,
    USER,
    Verdict,
    smoke_check,
)
from gpuspawner.dockerd.boxes import LABEL, Boxes
from gpuspawner.errors import BuildError
from gpuspawner.leases import decode
from gpuspawner.units import MIB
from tests.engine.lab import REPOSITORY
from tests.standins.netns_engine import PrivateEngine

pytestmark = [
    pytest.mark.engine,
    # docker-py leaves the sockets of calls whose container was removed to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

BASE, SCIPY, BUSYBOX = "gpuspawner/base:latest", "gpuspawner/scipy:latest", "gpuspawner-test/busybox:latest"
HUB_VERSION_HERE = "6.1.1"
MARK = f"test-{uuid.uuid4().hex[:8]}"
PREFIX = "trial-test/"

Check = Callable[..., Verdict]

CARELESS = """
FROM gpuspawner/base:latest
USER root
ARG DEPLOY_TOKEN=hunter2
COPY server /usr/local/sbin/new-server
RUN mv /usr/local/sbin/jupyterhub-singleuser /opt/jupyter/real-server \\
 && mv /usr/local/sbin/new-server /usr/local/sbin/jupyterhub-singleuser \\
 && chmod 755 /usr/local/sbin/jupyterhub-singleuser \\
 && cp /bin/cat /usr/local/bin/all-seeing && chmod 4755 /usr/local/bin/all-seeing
COPY capable.py /tmp/
RUN python3 /tmp/capable.py && rm /tmp/capable.py
COPY METADATA /usr/local/lib/python3.11/dist-packages/lonely-1.0.dist-info/
COPY METADATA /opt/jupyter/lib/python3.11/site-packages/lonely-1.0.dist-info/
COPY --chown=1000:100 key /home/jovyan/.ssh/id_rsa
COPY key /etc/school.key
COPY key /etc/closed.key
COPY key /usr/local/lib/python3.11/dist-packages/lonely/test.key
RUN chmod 600 /etc/closed.key /home/jovyan/.ssh/id_rsa
USER jovyan
ENV NVIDIA_VISIBLE_DEVICES=all SCHOOL_API_KEY=abc INDEX=https://teacher:geheim@index.example/simple
"""
SERVER = """
#!/opt/jupyter/bin/python3
import runpy, sys
if "--version" in sys.argv:
    print("4.1.6")
else:
    runpy.run_path("/opt/jupyter/real-server", run_name="__main__")
"""
CAPABLE = """
import os, shutil
shutil.copy("/bin/cat", "/usr/local/bin/raw-sockets")
value = bytes([1, 0, 0, 2]) + (1 << 13).to_bytes(4, "little") + bytes(12)
os.setxattr("/usr/local/bin/raw-sockets", "security.capability", value)
"""
METADATA = "Metadata-Version: 2.1\nName: lonely\nVersion: 1.0\nRequires-Dist: nothing-of-that-name\n"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nbm90IHJlYWxseQ==\n-----END OPENSSH PRIVATE KEY-----\n"
CARELESS_FILES = {"server": SERVER.lstrip(), "capable.py": CAPABLE, "METADATA": METADATA, "key": KEY}

SLOW = """
FROM gpuspawner/base:latest
USER root
COPY slow_lesson.py /opt/jupyter/lib/python3.11/site-packages/
COPY slow_lesson.json /opt/jupyter/etc/jupyter/jupyter_server_config.d/
USER jovyan
"""
SLOW_FILES = {
    "slow_lesson.py": """
        import time
        began = time.process_time()
        while time.process_time() < began + 2.0:
            pass
        def _jupyter_server_extension_points():
            return [{"module": "slow_lesson"}]
        def _load_jupyter_server_extension(app):
            pass
    """,
    "slow_lesson.json": '{"ServerApp": {"jpserver_extensions": {"slow_lesson": true}}}',
}


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Those sockets go here, within this module's filter, and not in somebody else's test."""
    yield
    gc.collect()


def context(dockerfile: str, files: dict[str, str]) -> bytes:
    """A build context, as `docker build -` takes it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in {"Dockerfile": dockerfile, **files}.items():
            content = textwrap.dedent(text).lstrip("\n").encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture(scope="module")
def build(engine: PrivateEngine) -> Iterator[Callable[..., str]]:
    """Builds an image from a Dockerfile and files; they go after the module."""
    if not engine.docker("images", "--quiet", BASE):
        pytest.fail(f"The image {BASE} is not in the test engine: `scripts/test engine` builds it first.")
    tags: list[str] = []

    def make(name: str, dockerfile: str, files: dict[str, str] | None = None) -> str:
        tags.append(f"{PREFIX}{name}:{len(tags)}")
        # Classic: the networks of a private engine are not BuildKit's.
        engine.docker("build", "--network", "none", "--tag", tags[-1], "-", stdin=context(dockerfile, files or {}))
        return tags[-1]

    yield make
    if tags:
        engine.docker("rmi", "--force", *tags)


@pytest.fixture(scope="module")
def client(engine: PrivateEngine) -> Iterator[Any]:
    """docker-py's client of the engine."""
    made = docker.APIClient(version="auto", **kwargs_from_env())
    yield made
    made.close()


@pytest.fixture
def trials(client: Any) -> Iterator[Trials]:
    """Trials of this module; whatever a failed test leaves goes."""
    made = Trials(Boxes(client, MARK), hub_version=HUB_VERSION_HERE)
    yield made
    made.sweep()


@pytest.fixture(scope="module")
def check(client: Any) -> Check:
    """Judges an image against base, and shows what it said where the test fails."""

    def judge(image: str, **more: Any) -> Verdict:
        trials = Trials(Boxes(client, MARK), hub_version=HUB_VERSION_HERE)
        began = time.monotonic()
        arguments = {"parent": BASE, "yardstick": BASE, "smoke_tests": {}, "say": print, **more}
        verdict = trials.check(image, **arguments)
        print(f"{image} was checked in {time.monotonic() - began:.1f} s: {verdict}")
        assert Boxes(client, MARK).leftovers() == ()
        return verdict

    return judge


def source(name: str) -> str:
    return (REPOSITORY / "images" / name / "smoke_test.py").read_text()


def found(verdict: Verdict, name: str) -> str:
    """The texts of a check's findings."""
    texts = [finding.text for finding in verdict.findings if finding.check == name]
    assert texts, f"{name} found nothing; there is: {verdict.findings}"
    return "\n".join(texts)


def test_a_good_image_passes(check: Check) -> None:
    """scipy on base with the shelf's own smoke tests: no finding, all checks made, both starts measured."""
    verdict = check(SCIPY, smoke_tests={"base": source("base"), "scipy": source("scipy")})
    assert verdict.findings == ()
    assert verdict.ok
    rules = {USER, GPUS, COMMAND, CREDENTIALS, STARTS, HUB_VERSION, BOOT, PACKAGES, SECRETS, SPECIAL}
    assert set(verdict.checks) == rules | {smoke_check("base"), smoke_check("scipy")}
    assert verdict.boot is not None
    assert verdict.yardstick is not None
    assert 0.1 < verdict.boot.cpu_seconds < 20
    assert 20 < verdict.boot.resident_bytes / MIB < 500


@pytest.fixture(scope="module")
def careless(build: Callable[..., str], check: Check) -> Verdict:
    """An image with every fault that does not keep it from starting."""
    image = build("careless", CARELESS, CARELESS_FILES)
    failing = "import os\nprint('uid', os.getuid())\nassert 1 + 1 == 3, 'numbers come out wrong'\n"
    # No yardstick: what is found does not depend on it.
    return check(image, yardstick=None, smoke_tests={"careless": failing})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(GPUS, ["NVIDIA_VISIBLE_DEVICES=all", "void"], id="asks-for-all-gpus"),
        pytest.param(CREDENTIALS, ["SCHOOL_API_KEY", "teacher:…@index.example"], id="credentials-in-env"),
        pytest.param(CREDENTIALS, ["DEPLOY_TOKEN", "docker history"], id="build-argument"),
        pytest.param(SPECIAL, ["/usr/local/bin/all-seeing (setuid)", BASE], id="setuid"),
        pytest.param(SPECIAL, ["/usr/local/bin/raw-sockets (a capability)"], id="capability"),
        pytest.param(SECRETS, ["/etc/school.key (a private key)"], id="world-readable-key"),
        pytest.param(SECRETS, ["/home/jovyan/.ssh/id_rsa (a private key)"], id="key-of-the-student"),
        pytest.param(PACKAGES, ["/usr/bin/python3", "nothing-of-that-name"], id="broken-packages"),
        pytest.param(PACKAGES, ["/opt/jupyter/bin/python3"], id="broken-server-packages"),
        pytest.param(HUB_VERSION, ["4.1.6", HUB_VERSION_HERE, "jupyterhub==6.*"], id="another-hub-version"),
        pytest.param(smoke_check("careless"), ["uid 1000", "numbers come out wrong"], id="smoke-test"),
    ],
)
def test_each_fault_of_a_careless_image_is_named(careless: Verdict, name: str, words: list[str]) -> None:
    """With the thing itself and what to do about it."""
    text = found(careless, name)
    assert [word for word in words if word not in text] == []


def test_nothing_else_is_said_about_a_careless_image(careless: Verdict) -> None:
    """No false alarm: closed files, keys that packages ship, and the password itself are not named; it does start."""
    expected = {GPUS, CREDENTIALS, SPECIAL, SECRETS, PACKAGES, HUB_VERSION, smoke_check("careless")}
    assert {finding.check for finding in careless.findings} == expected
    everything = "\n".join(finding.text for finding in careless.findings)
    assert not [word for word in ("closed.key", "test.key", "geheim", "hunter2") if word in everything]
    assert careless.boot is not None


def test_a_slow_server_extension_is_found_and_its_module_named(build: Callable[..., str], check: Check) -> None:
    """The boot budget: an extension that computes at import, first among the expensive imports."""
    verdict = check(build("slow", SLOW, SLOW_FILES))
    assert [finding.check for finding in verdict.findings] == [BOOT]
    assert "slow_lesson" in found(verdict, BOOT)
    assert "of CPU" in found(verdict, BOOT)
    assert verdict.imports[0].module == "slow_lesson"
    assert verdict.imports[0].own_seconds > 1.9
    assert len(verdict.imports) == 10


@pytest.mark.parametrize(
    ("last_lines", "name", "words"),
    [
        pytest.param("USER root", USER, ["runs as root", "USER jovyan"], id="root"),
        pytest.param("USER 4321", USER, ["4321", "useradd --uid 1000"], id="another-user"),
        pytest.param(
            'CMD ["sh", "-c", "echo the licence server is away; exit 3"]',
            STARTS,
            ["exit code 3", "the licence server is away"],
            id="ends-at-once",
        ),
        pytest.param('CMD ["no-such-program"]', STARTS, ["no-such-program"], id="no-program"),
        pytest.param('ENTRYPOINT ["sh", "-c", "exit 7"]', STARTS, ["exit code 7"], id="entrypoint"),
        pytest.param("USER nobody-of-that-name", STARTS, ["nobody-of-that-name"], id="no-such-user"),
    ],
)
def test_a_server_that_cannot_run_is_found_out(
    build: Callable[..., str], check: Check, last_lines: str, name: str, words: list[str]
) -> None:
    """The finding holds the last lines of the server, or the engine's words."""
    image = build("unfit", f"FROM {BASE}\n{last_lines}\n")
    verdict = check(image, yardstick=None, parent=None)
    text = found(verdict, name)
    assert [word for word in words if word not in text] == []


def test_what_never_ends_or_never_answers_is_given_up(
    build: Callable[..., str], check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smoke test that waits for something, and a server that listens to nobody."""
    monkeypatch.setattr(trial, "SMOKE_SECONDS", 2.0)
    monkeypatch.setattr(boot, "START_SECONDS", 8.0)
    image = build("idle", f'FROM {BASE}\nCMD ["sh", "-c", "echo waiting for the moon; sleep 600"]\n')
    endless = "import time; print('on and on', flush=True); time.sleep(600)"
    verdict = check(image, yardstick=None, parent=None, smoke_tests={"idle": endless})
    assert "did not end within 2 seconds" in found(verdict, smoke_check("idle"))
    assert "on and on" in found(verdict, smoke_check("idle"))
    assert "gave no answer on /user/u/api at port 8888 within 8 seconds" in found(verdict, STARTS)
    assert "waiting for the moon" in found(verdict, STARTS)


def test_an_image_without_python_gives_findings_and_no_error(build: Callable[..., str], check: Check) -> None:
    """Whatever somebody puts into a folder: it is judged. No CMD and no Python is no notebook."""
    if not docker_has(BUSYBOX):
        pytest.skip(f"{BUSYBOX} is not in the engine: other engine tests make it")
    image = build("bare", f"FROM {BUSYBOX}\nUSER 1000\nCMD []\n")
    verdict = check(image, smoke_tests={"base": source("base")})
    assert {finding.check for finding in verdict.findings} >= {COMMAND, STARTS, SECRETS, smoke_check("base")}


def test_an_image_on_a_bare_system_is_compared_with_it(build: Callable[..., str], check: Check) -> None:
    """A parent without Python: its setuid programs are known all the same, so that only new ones are named."""
    if not docker_has(BUSYBOX):
        pytest.skip(f"{BUSYBOX} is not in the engine: other engine tests make it")
    # The files of a whole base on a parent that has one of its setuid programs.
    parent = build(
        "ground",
        f"FROM {BUSYBOX}\nRUN mkdir -p /usr/bin && cp /bin/busybox /usr/bin/mine && chmod 4755 /usr/bin/mine\n",
    )
    dockerfile = f"""
        FROM {BASE}
        USER root
        RUN cp /bin/cat /usr/bin/mine && cp /bin/cat /usr/bin/new && chmod 4755 /usr/bin/mine /usr/bin/new
        USER jovyan
    """
    verdict = check(build("on-ground", textwrap.dedent(dockerfile)), parent=parent, yardstick=None)
    assert "/usr/bin/new" in found(verdict, SPECIAL)
    assert "/usr/bin/mine" not in found(verdict, SPECIAL)


def docker_has(image: str) -> bool:
    return bool(PrivateEngine.from_environment().docker("images", "--quiet", image))


def test_a_yardstick_that_does_not_start_is_an_error(build: Callable[..., str], check: Check) -> None:
    """It says nothing about the candidate, so it is no finding."""
    broken = build("unfit", f'FROM {BASE}\nCMD ["false"]\n')
    with pytest.raises(BuildError, match="measured against ended by itself with exit code 1"):
        check(SCIPY, yardstick=broken)


def test_an_image_that_is_not_there_is_an_error(check: Check) -> None:
    """With the engine's words."""
    with pytest.raises(BuildError, match="No such image"):
        check("gpuspawner/never-built:latest")


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """What the condition gives as soon as it holds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
    return value


def volumes_of(client: Any, containers: tuple[str, ...]) -> set[str]:
    mounts = [mount for entry in containers for mount in client.inspect_container(entry)["Mounts"]]
    return {mount["Name"] for mount in mounts if mount["Type"] == "volume"}


def test_stop_ends_a_trial_from_another_thread(client: Any, trials: Trials) -> None:
    """Soon, with an error that says so, and with nothing left."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            trials.check(BASE, parent=None, yardstick=None, smoke_tests={"x": "input()"}, say=lambda line: None)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(Boxes(client, MARK).leftovers, "no container was made")
    trials.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert [str(error) for error in errors] == ["stopped"]
    assert isinstance(errors[0], BuildError)
    assert Boxes(client, MARK).leftovers() == ()
    with pytest.raises(BuildError, match="stopped"):
        trials.check(BASE, parent=None, yardstick=None, smoke_tests={}, say=print)


PROGRAM = """
import docker, signal, sys
from docker.utils import kwargs_from_env
from gpuspawner.builder import boot, trial
from gpuspawner.builder.trial import Trials
from gpuspawner.dockerd.boxes import Boxes
# As on a terminal: where the tests run in the background, a shell has switched it off.
signal.signal(signal.SIGINT, signal.default_int_handler)
client = docker.APIClient(version="auto", **kwargs_from_env())
trials = Trials(Boxes(client, sys.argv[1]), hub_version="6.1.1")
waits = {"waits": "import time; print('here', flush=True); time.sleep(200)"}
trials.check(sys.argv[2], parent=None, yardstick=None, smoke_tests=waits, say=print)
"""


@pytest.fixture
def another_run(client: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in which a trial is under way, with a smoke test that takes long."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, MARK, BASE], cwd=REPOSITORY, stderr=subprocess.PIPE)
    try:
        # Until the other two have ended: what is left is the smoke test.
        until(lambda: smoking(client), "no smoke test was begun")
        yield process
    finally:
        process.kill()
        process.communicate()
        Trials(Boxes(client, MARK), hub_version=HUB_VERSION_HERE).sweep()


def smoking(client: Any) -> set[str]:
    """The home volumes of the trial's containers."""
    running = client.containers(filters={"label": [f"{LABEL}={MARK}"]})
    return volumes_of(client, tuple(entry["Id"] for entry in running))


def test_ctrl_c_leaves_nothing_behind(client: Any, another_run: subprocess.Popen[bytes]) -> None:
    """Containers and their volumes are gone when the process is."""
    volumes = smoking(client)
    another_run.send_signal(signal.SIGINT)
    output = another_run.communicate(timeout=20)[1]
    assert b"KeyboardInterrupt" in output
    assert Boxes(client, MARK).leftovers() == ()
    assert not volumes & known_volumes(client)


def test_the_next_run_sweeps_up_after_one_that_was_killed(
    client: Any, trials: Trials, another_run: subprocess.Popen[bytes]
) -> None:
    """kill -9 leaves containers behind; `sweep` removes them and their volumes."""
    volumes = smoking(client)
    os.kill(another_run.pid, signal.SIGKILL)
    another_run.wait()
    assert Boxes(client, MARK).leftovers() != ()
    trials.sweep()
    assert Boxes(client, MARK).leftovers() == ()
    assert volumes
    assert not volumes & known_volumes(client)


def known_volumes(client: Any) -> set[str]:
    return {volume["Name"] for volume in client.volumes()["Volumes"] or ()}


def test_a_trial_does_not_look_like_a_lease(client: Any, another_run: subprocess.Popen[bytes]) -> None:
    """A Hub on the same engine must not count it; it has neither a network nor more rights than a student's server."""
    for container in Boxes(client, MARK).leftovers():
        inspected = client.inspect_container(container)
        host = inspected["HostConfig"]
        assert decode(inspected["Config"]["Labels"]) is None
        assert host["NetworkMode"] == "none" or host["NetworkMode"].startswith("container:")
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Memory"] == host["MemorySwap"] > 0
        assert host["Runtime"] == "runc"
        assert "NVIDIA_VISIBLE_DEVICES=void" in inspected["Config"]["Env"]


def test_an_engine_that_is_away_is_named(tmp_path: Path) -> None:
    """A sentence for the admin, not a traceback of docker-py."""
    client = docker.APIClient(base_url=f"unix://{tmp_path}/docker.sock", version="1.41")
    with pytest.raises(BuildError, match="does not answer any more"):
        Trials(Boxes(client), hub_version="6.1.1").check("x", parent=None, yardstick=None, smoke_tests={}, say=print)
    client.close()
