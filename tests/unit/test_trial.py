"""What a trial does without an engine: the scripts that run inside images, and docker-py's words made plain."""

from __future__ import annotations

import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
import requests
from docker.errors import APIError

from gpuspawner.builder.boot import answer_in, script
from gpuspawner.builder.inside import hub, own, walk
from gpuspawner.candidates import parse_imports
from gpuspawner.dockerd.boxes import _packed, _Pieces
from gpuspawner.dockerd.translate import for_the_admin
from gpuspawner.units import moment_of

LONG_PATH = f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\n"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nbm90IHJlYWxseQ==\n-----END OPENSSH PRIVATE KEY-----\n"


def put(root: Path, path: str, content: str, mode: int = 0o644) -> Path:
    """A file below `root`."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("path", "content", "is_secret"),
    [
        ("root/.netrc", "machine a login b password c", True),
        ("root/.netrc", "# nothing yet", False),
        ("home/jovyan/.ssh/id_rsa", KEY, True),
        ("home/jovyan/.ssh/work", KEY, True),
        ("home/jovyan/.ssh/id_rsa.pub", "ssh-rsa AAAA", False),
        ("home/jovyan/.ssh/known_hosts", "host ssh-rsa AAAA", False),
        ("home/jovyan/.git-credentials", "https://a:b@code.example", True),
        ("home/jovyan/.docker/config.json", '{"auths": {"r.example": {"auth": "abc"}}}', True),
        ("home/jovyan/.docker/config.json", '{"auths": {"r.example": {}}}', False),
        ("home/jovyan/.aws/credentials", "aws_secret_access_key = x", True),
        ("home/jovyan/.kube/config", "users:\n- user:\n    token: abc", True),
        ("home/jovyan/.cache/huggingface/token", "hf_abc", True),
        ("home/jovyan/.npmrc", "//r.example/:_authToken=abc", True),
        ("home/jovyan/.npmrc", "registry=https://r.example", False),
        ("etc/pip.conf", "[global]\nindex-url = https://a:b@i.example/simple", True),
        ("etc/pip.conf", "[global]\nindex-url = https://i.example/simple", False),
        ("etc/school.key", KEY, True),
        ("opt/app/server.pem", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" + KEY, True),
        ("opt/app/server.pem", "-----BEGIN CERTIFICATE-----\n", False),
        ("opt/app/token", "not a name that says anything", False),
        ("usr/lib/python3/dist-packages/tornado/test/test.key", KEY, False),
        ("opt/jupyter/lib/python3.11/site-packages/x/key.pem", KEY, False),
        ("opt/conda/lib/python3.12/test/certdata/keycert.pem", KEY, False),
        ("opt/tool/testdata/server.key", KEY, False),
    ],
)
def test_secrets_are_known_by_place_and_content(tmp_path: Path, path: str, content: str, is_secret: bool) -> None:
    """Both together: a name alone is a false alarm, and keys that packages ship for their tests are no secret."""
    file = put(tmp_path, path, content)
    assert bool(walk.secret_in(str(file))) is is_secret


@pytest.fixture
def somebody() -> walk.Reader:
    """A user of an image who owns nothing on this machine."""
    reader = walk.Reader("nobody-of-that-name")
    reader.uid, reader.groups = 54321, {54321}
    return reader


@pytest.mark.parametrize(
    ("mode", "folder_mode", "found"),
    [
        pytest.param(0o644, 0o755, True, id="open"),
        pytest.param(0o600, 0o755, False, id="closed"),
        pytest.param(0o640, 0o755, False, id="for-another-group"),
        pytest.param(0o644, 0o700, False, id="in-a-closed-folder"),
        pytest.param(0o644, 0o711, True, id="in-a-folder-that-can-be-entered"),
    ],
)
def test_a_secret_counts_where_a_student_can_read_it(
    tmp_path: Path, somebody: walk.Reader, mode: int, folder_mode: int, found: bool
) -> None:
    """The permissions of the file and of every folder on the way."""
    file = put(tmp_path, "etc/school.key", KEY, mode)
    file.parent.chmod(folder_mode)
    secrets = walk.walk(str(tmp_path), somebody)["secrets"]
    assert secrets == ({str(file): "a private key"} if found else {})


def test_a_students_own_key_counts_as_well(tmp_path: Path, somebody: walk.Reader) -> None:
    """Closed to others, but the home of an image is copied to every student."""
    file = put(tmp_path, "home/jovyan/.ssh/id_rsa", KEY, 0o600)
    somebody.uid = file.stat().st_uid
    assert walk.walk(str(tmp_path), somebody)["secrets"] == {str(file): "a private key"}


def test_setuid_and_setgid_files_are_found_and_nothing_else(tmp_path: Path, somebody: walk.Reader) -> None:
    """Not a folder with setgid, not a link to such a file."""
    put(tmp_path, "plain", "", 0o755)
    su, both = put(tmp_path, "bin/su", "", 0o4755), put(tmp_path, "bin/both", "", 0o6755)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    (tmp_path / "link").symlink_to(su)
    special = walk.walk(str(tmp_path), somebody)["special"]
    assert special == {str(su): "setuid", str(both): "setuid and setgid"}


@pytest.mark.parametrize(
    ("first_lines", "expected"),
    [
        pytest.param(f"#!{sys.executable}\n", sys.executable, id="a-python"),
        pytest.param(f"#!{sys.executable} -s\n", sys.executable, id="with-an-option"),
        pytest.param(LONG_PATH, sys.executable, id="long-path"),
        pytest.param("#!/bin/sh\nexec something\n", None, id="a-shell-script"),
        pytest.param("#!/no/such/python3\n", None, id="a-python-that-is-gone"),
        pytest.param("\x7fELF", None, id="a-program"),
        pytest.param("", None, id="empty"),
    ],
)  # fmt: skip
def test_the_servers_python_is_read_from_its_first_lines(
    tmp_path: Path, first_lines: str, expected: str | None
) -> None:
    """As pip writes them, and as people do."""
    program = put(tmp_path, "jupyterhub-singleuser", first_lines)
    assert own.interpreter_of(str(program)) == expected


def test_env_in_a_first_line_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the PATH of the moment."""
    python = put(tmp_path, "bin/python3", "#!/bin/sh\n", 0o755)
    monkeypatch.setenv("PATH", str(python.parent))
    program = put(tmp_path, "jupyterhub-singleuser", "#!/usr/bin/env -S python3 -s\n")
    assert own.interpreter_of(str(program)) == str(python)


def test_a_look_from_inside_tells_user_version_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, of a Python whose packages do not fit, and of a server that is a shell script."""
    complain = "import sys; print('numpy 1.0 requires nothing-such') or sys.exit(1)"
    pip = f'#!/bin/sh\ncase "$*" in *check) exec {sys.executable} -c "{complain}";; esac\n'
    python = put(tmp_path, "python3", pip, 0o755)
    put(tmp_path, "jupyterhub-singleuser", "#!/bin/sh\necho 6.0.1\n", 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    done = subprocess.run([sys.executable, "-c", script("own")], capture_output=True, text=True, check=True)
    assert answer_in(done.stdout.splitlines()) == {
        "uid": os.getuid(),
        "server_version": "6.0.1\n",
        "packages": [{"python": str(python), "pip": True, "lines": ["numpy 1.0 requires nothing-such"]}],
    }


def test_imports_are_told_whichever_way_they_come(tmp_path: Path) -> None:
    """Also those through import_module, with the module's own time apart; the image's sitecustomize still runs."""
    put(tmp_path, "box/sitecustomize.py", script("imports"))
    put(tmp_path, "own/sitecustomize.py", "print('the own one')")
    put(tmp_path, "own/outer.py", "import inner")
    put(
        tmp_path,
        "own/inner.py",
        "import time\nbegan = time.perf_counter()\nwhile time.perf_counter() < began + 0.1: pass",
    )
    done = subprocess.run(
        [sys.executable, "-c", "import importlib; importlib.import_module('outer')"],
        env={"PYTHONPATH": f"{tmp_path}/box:{tmp_path}/own"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    costs = {cost.module: cost for cost in parse_imports(done.stderr.splitlines())}
    assert done.stdout == "the own one\n"
    assert costs["inner"].own_seconds >= 0.1
    assert costs["outer"].cumulative_seconds >= 0.1 > costs["outer"].own_seconds


def test_a_program_that_has_no_sitecustomize_gets_none(tmp_path: Path) -> None:
    """The one that times imports stays where the image has none of its own."""
    put(tmp_path, "sitecustomize.py", script("imports"))
    done = subprocess.run(
        [sys.executable, "-c", "import colorsys; print('fine')"],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "fine\n"
    assert "colorsys" in {cost.module for cost in parse_imports(done.stderr.splitlines())}


def test_the_played_hub_answers_a_server() -> None:
    """Its version, who a token is, and that activity has arrived."""
    hub.Hub.version = "6.1.1"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub.Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with requests.Session() as session:
            url = f"http://127.0.0.1:{server.server_port}/hub/api"
            said = session.get(url)
            assert said.json() == {"version": "6.1.1"}
            assert said.headers["X-JupyterHub-Version"] == "6.1.1"
            assert session.get(f"{url}/user").json()["name"] == "u"
            assert session.post(f"{url}/users/u/activity", json={}).ok
        assert hub.ask(server.server_port, "/hub/api") == 200
    finally:
        server.shutdown()
        server.server_close()
    assert hub.ask(server.server_port, "/hub/api") is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(["noise", '{"a": 1}'], {"a": 1}, id="last-line"),
        pytest.param(['{"a": 1}', "noise"], None, id="noise-behind"),
        pytest.param(["[1]"], None, id="no-object"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_an_answer_is_an_object_in_the_last_line(lines: list[str], expected: dict[str, int] | None) -> None:
    """An entrypoint may print what it likes before."""
    assert answer_in(lines) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2026-10-01T08:00:00.123456789Z", 1790841600.123456789, id="nine-decimals"),
        pytest.param("2026-10-01T08:00:00Z", 1790841600.0, id="whole"),
        pytest.param("0001-01-01T00:00:00Z", 0.0, id="never"),
        pytest.param("", 0.0, id="nothing"),
    ],
)
def test_dockers_times_are_read_to_the_last_digit(text: str, expected: float) -> None:
    """A start is measured against another clock reading: microseconds matter, and "never" is zero."""
    assert moment_of(text) == pytest.approx(expected, abs=1e-6)


def test_what_arrives_in_pieces_reads_like_a_file() -> None:
    """Whatever the sizes of the pieces and of the reads."""
    pieces = _Pieces([b"ab", b"", b"cdefg", b"h"])
    assert pieces.readable()
    buffer = bytearray(3)
    read = bytearray()
    while size := pieces.readinto(buffer):
        read += buffer[:size]
    assert bytes(read) == b"abcdefgh"


def test_files_for_a_box_are_readable_by_everybody() -> None:
    """Whoever the user of the image is."""
    with tarfile.open(fileobj=io.BytesIO(_packed({"/place/file.py": b"x"}))) as tar:
        modes = {entry.name: (entry.isdir(), oct(entry.mode)) for entry in tar}
    assert modes == {"place": (True, "0o755"), "place/file.py": (False, "0o644")}


def answer(status: int, text: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError(text, response=response, explanation=text)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(requests.exceptions.ConnectionError("refused"), "does not answer any more", id="down"),
        pytest.param(requests.exceptions.ReadTimeout("60 s"), "does not answer in time", id="slow"),
        pytest.param(answer(500, "write /x: no space left on device"), "disk of the Docker engine is full", id="full"),
        pytest.param(answer(409, "something else"), "Docker said: something else", id="other"),
    ],
)
def test_the_engines_errors_are_sentences_for_the_admin(error: Exception, words: str) -> None:
    """With what to do now, where that is known."""
    assert words in str(for_the_admin(error))


@pytest.mark.parametrize("name", ["walk", "hub", "own", "imports"])
def test_the_scripts_need_nothing_but_the_standard_library(name: str) -> None:
    """They run in whatever Python an image has, with site packages switched off."""
    load = "import sys; exec(compile(sys.stdin.read(), 'script', 'exec'), {'__name__': 'script'})"
    argv = [sys.executable, "-I", "-S", "-c", load]
    done = subprocess.run(argv, input=script(name), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
