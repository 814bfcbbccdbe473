"""What every image promises to students and to the Hub."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.images.conftest import Box

FAMILY = "base"
pytestmark = pytest.mark.images

Open = Callable[..., Box]


AS_THE_HUB_STARTS_IT = {
    "JUPYTERHUB_API_TOKEN": "servers-own",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_ACTIVITY_URL": "http://127.0.0.1:8081/hub/api/users/u/activity",
    "JUPYTERHUB_BASE_URL": "/",
    "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-u",
    "JUPYTERHUB_OAUTH_CALLBACK_URL": "/user/u/oauth_callback",
    "JUPYTERHUB_OAUTH_SCOPES": '["access:servers!server=u/", "access:servers!user=u"]',
    "JUPYTERHUB_SERVICE_PREFIX": "/user/u/",
    "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:8888/user/u/",
    "JUPYTERHUB_USER": "u",
}


def wheel(name: str, number: str, code: str) -> tuple[str, bytes]:
    """File name and content of a package with one module."""
    about = f"{name}-{number}.dist-info"
    files = {
        f"{name}/__init__.py": code,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return f"{name}-{number}-py3-none-any.whl", packed.getvalue()


def install(box: Box, name: str, number: str, code: str) -> None:
    """`pip install` of such a package, as a student types it."""
    path = box.put(*wheel(name, number, code))
    box.run("pip", "install", "--no-deps", "--no-index", path)


def notebook(code: str) -> bytes:
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": code}
    about = {"kernelspec": {"name": "python3", "display_name": "x"}}
    return json.dumps({"cells": [cell], "metadata": about, "nbformat": 4, "nbformat_minor": 5}).encode()


def run_cell(box: Box, code: str) -> str:
    """What a cell prints in a kernel of the image."""
    box.put("cell.ipynb", notebook(code))
    box.run("cp", "/tmp/cell.ipynb", "/home/jovyan/cell.ipynb")
    box.run("/opt/jupyter/bin/jupyter-execute", "--inplace", "/home/jovyan/cell.ipynb")
    found = json.loads(box.run("cat", "/home/jovyan/cell.ipynb").output)
    return "".join("".join(output.get("text", "")) for output in found["cells"][0]["outputs"])


def test_the_image_starts_a_server_as_jovyan_and_asks_for_no_gpu(image: Any) -> None:
    """What the spawner and the NVIDIA toolkit read from the image."""
    config = image.attrs["Config"]
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert config["Cmd"] == ["jupyterhub-singleuser"]
    assert not config["Entrypoint"]
    assert config["User"] == "jovyan"
    assert (environment["HOME"], config["WorkingDir"]) == ("/home/jovyan", "/home/jovyan")
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert environment["LANG"] == "C.UTF-8"
    assert not [name for name in environment if "TOKEN" in name or "PASSWORD" in name or name == "LD_PRELOAD"]


def test_the_server_speaks_the_hubs_version_and_has_the_security_fixes(open_box: Open) -> None:
    """Same major version as the Hub that is installed here; floors as in the advisories."""
    code = "import importlib.metadata as m; print(*map(m.version, ('jupyterhub', 'jupyter-server', 'jupyterlab')))"
    hub, server, lab = open_box().run("/opt/jupyter/bin/python", "-c", code).output.split()
    assert hub.split(".")[0] == version("jupyterhub").split(".")[0]
    assert [int(part) for part in server.split(".")[:2]] >= [2, 20]
    assert [int(part) for part in lab.split(".")[:3]] >= [4, 5, 7]


def test_lab_answers_without_a_network_in_korean_and_without_news(open_box: Open) -> None:
    """No question about news, no look at a package index, the Korean menu is there to be chosen."""
    box = open_box()
    box.serve()
    languages = json.loads(box.get("/lab/api/translations"))["data"]
    assert "ko_KR" in languages
    page = box.get("/lab/api/settings/@jupyterlab/apputils-extension:notification")
    defaults = {name: entry["default"] for name, entry in json.loads(page)["schema"]["properties"].items()}
    assert (defaults["fetchNews"], defaults["checkForUpdates"]) == ("false", False)
    # Its server side is off, so the page must not ask for it.
    assert "@jupyterlab/lsp-extension" in box.get("/lab")
    listed = json.loads(box.get("/api/kernelspecs"))
    assert listed["default"] == "python3"
    assert listed["kernelspecs"]["python3"]["spec"]["argv"][0] == "/usr/bin/python3"


def test_the_server_lets_in_its_owner_by_token_and_by_login_and_nobody_else(open_box: Open) -> None:
    """The program that the Hub starts, with its imports cut down, still does all that a Hub needs of it."""
    box = open_box()
    hub = box.put("hub.py", Path(__file__).with_name("hub_in_miniature.py").read_bytes())
    box.container.exec_run(["python", hub], detach=True)
    box.start(["jupyterhub-singleuser"], "/user/u/api", **AS_THE_HUB_STARTS_IT)
    assert box.status("/user/u/api/contents", "-H", "Authorization: token owners") == 200
    assert box.status("/user/u/api/contents", "-H", "Authorization: token strangers") == 403
    assert box.status("/user/u/api/contents", "-H", "Authorization: token nonsense") == 403
    cookies = ["-c", "/tmp/jar", "-b", "/tmp/jar"]
    asked = box.run("curl", "-si", *cookies, "http://127.0.0.1:8888/user/u/lab").output
    location = next(line for line in asked.splitlines() if line.lower().startswith("location:"))
    assert "/hub/api/oauth2/authorize" in location
    state = location.partition("&state=")[2].partition("&")[0].strip()
    assert box.status(f"/user/u/oauth_callback?code=c&state={state}", *cookies) == 302
    assert box.status("/user/u/lab", *cookies) == 200
    assert box.status("/user/u/api/contents", *cookies) == 200


def test_the_status_bar_can_show_memory_use_and_its_limit(open_box: Open) -> None:
    """What the extension in the page asks for, with the limit that DockerSpawner names, and no more than that."""
    box = open_box(environment={"MEM_LIMIT": str(3 * 2**30)})
    box.serve()
    found = json.loads(box.get("/api/metrics/v1"))
    assert found["limits"]["memory"]["rss"] == 3 * 2**30
    assert 20 * 2**20 < found["pss"] < 2**30
    assert "@jupyter-server/resource-usage" in box.get("/lab")
    assert "total_memory_usage" not in box.get("/metrics")


def test_a_terminal_finds_the_same_programs_as_a_notebook(open_box: Open) -> None:
    """JupyterLab starts a login shell, and Debian's /etc/profile would set another PATH."""
    box = open_box()
    assert box.run("bash", "-lc", "echo $PATH").output == box.run("sh", "-c", "echo $PATH").output


def test_nobody_elses_secret_can_be_read(open_box: Open) -> None:
    """No key, password or index address with one is left from the build where the student can read it."""
    places = "/etc /home /root /opt/jupyter/etc /opt/jupyter/*.txt /srv /tmp /var /usr/local/etc /usr/local/share"
    pattern = r"PRIVATE KEY-----|://[^/@ ]+:[^/@ ]+@|^machine .* password"
    found = open_box().run("sh", "-c", f"grep -rIlE -e '{pattern}' {places} 2>/dev/null || true").output
    assert found == ""


def test_what_a_student_installs_lasts_and_is_seen_by_notebooks(open_box: Open, home: dict[str, Any]) -> None:
    """`pip install` goes into the home: the next container still has it."""
    install(open_box(volumes=home), "greeting", "1.0", "text = 'hello from my home'")
    later = open_box(volumes=home)
    assert later.run("python", "-c", "import greeting; print(greeting.text)").output.strip() == "hello from my home"
    assert run_cell(later, "import greeting; print(greeting.text)").strip() == "hello from my home"
    later.run("pip", "uninstall", "-y", "greeting")
    assert later.run("python", "-c", "import greeting", check=False).status == 1


def test_a_students_version_of_a_package_wins_over_the_images(open_box: Open, home: dict[str, Any]) -> None:
    """A course may need another version than the image has."""
    box = open_box(volumes=home)
    install(box, "comm", "99.0", "")
    assert box.run("python", "-c", "import comm; print(comm.__file__)").output.startswith("/home/jovyan/.local/")


def test_nothing_that_a_student_installs_breaks_the_server(open_box: Open, home: dict[str, Any]) -> None:
    """The notebook server lives in an environment of its own, into which the home does not reach."""
    box = open_box(volumes=home)
    for name in ("tornado", "jupyter_server", "jupyterhub", "traitlets", "sqlalchemy"):
        install(box, name, "99.0", "raise SystemExit('broken on purpose')")
    box.run("sh", "-c", "mkdir -p ~/.local/bin; printf '#!/bin/sh\\nexit 1\\n' > ~/.local/bin/jupyterhub-singleuser")
    box.run(
        "sh",
        "-c",
        "chmod +x ~/.local/bin/jupyterhub-singleuser; cp ~/.local/bin/jupyterhub-singleuser ~/.local/bin/jupyter",
    )
    later = open_box(volumes=home)
    assert later.run("jupyterhub-singleuser", "--version").output.startswith(version("jupyterhub").split(".")[0])
    later.serve()


def test_a_student_owns_the_home_and_can_change_nothing_else(open_box: Open) -> None:
    """No file of the server or of the image's Python can be written, nothing in the home is someone else's."""
    box = open_box()
    assert box.run("id", "-u", "-n").output.split() == ["jovyan"]
    assert box.run("find", "/home/jovyan", "-not", "-user", "jovyan").output == ""
    writable = "find /opt/jupyter /usr /etc /var/lib -writable -not -type l 2>/dev/null || true"
    assert box.run("sh", "-c", writable).output == ""
    assert box.run("sh", "-c", "find / -xdev -type f -perm /6000 2>/dev/null || true").output == ""


def test_modules_are_compiled_beforehand(open_box: Open) -> None:
    """A student cannot write .pyc files there: without these, every start would compile everything anew."""
    code = (
        "import importlib.util, pathlib, sys;"
        "roots = [pathlib.Path(sys.prefix, 'lib', f'python3.{sys.version_info[1]}', 'site-packages', name)"
        " for name in ('jupyterhub', 'jupyter_server', 'jupyterlab', 'tornado', 'rfc3987_syntax', 'isoduration')];"
        "files = [path for root in roots for path in root.rglob('*.py')];"
        "print(len(files), [str(f) for f in files if not pathlib.Path(importlib.util.cache_from_source(f)).exists()])"
    )
    count, missing = open_box().run("/opt/jupyter/bin/python", "-c", code).output.strip().split(" ", 1)
    assert int(count) > 200
    assert missing == "[]"


def test_the_image_has_the_certificates_of_the_machine_that_built_it(open_box: Open) -> None:
    """What pip and requests use is the system's bundle, into which a school's own certificate goes."""
    box = open_box()
    bundle = box.run("cat", "/etc/ssl/certs/ca-certificates.crt").output
    own = box.run("sh", "-c", "cat /usr/local/share/ca-certificates/*.crt 2>/dev/null || true").output
    bodies = [part.split("-----END")[0].strip() for part in own.split("-----BEGIN CERTIFICATE-----")[1:]]
    assert bundle.count("BEGIN CERTIFICATE") > 50
    assert all(body in bundle for body in bodies), hashlib.sha256(own.encode()).hexdigest()
    assert "ca-certificates.crt" in box.run("python", "-c", "import ssl; print(ssl.get_default_verify_paths())").output
