"""The server of our images, started by their launcher, does what a student and the Hub need of it: in a browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocket, expect

from tests.engine.conftest import sweep
from tests.engine.lab import REPOSITORY, Lab, Person, eventually
from tests.standins.gpustate import GpuState, nvml_environment
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

CONFIG = """
load_subconfig({config!r})
c.GPUSpawner.environment = {{"JUPYTERHUB_ACTIVITY_INTERVAL": "1"}}
"""
A_NOTEBOOK: dict[str, Any] = {
    "type": "notebook",
    "format": "json",
    "content": {
        "cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "first"}],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    },
}
SENT_BY_THE_PAGE = """async ([method, path, body]) => {
    const xsrf = document.cookie.match(/_xsrf=([^;]*)/)[1];
    const answer = await fetch(path, {method, body, redirect: "error", headers: {"X-XSRFToken": xsrf}});
    return [answer.status, await answer.text()];
}"""
MUCH_LESS_THAN_THE_GRACE = 5.0
AUTOSAVE_SECONDS = 10


@pytest.fixture(scope="module")
def lab(engine: PrivateEngine, gpus: GpuState, nvml: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The Hub as it is shipped, whose servers report what they do every second instead of every five minutes."""
    sweep(engine)
    folder = tmp_path_factory.mktemp("lab")
    config = folder / "config.py"
    config.write_text(CONFIG.format(config=str(REPOSITORY / "jupyterhub_config.py")))
    made = Lab(folder, {"DOCKER_HOST": engine.host, **nvml_environment(nvml, engine.state_file)}, config)
    made.start()
    yield made
    made.stop()
    sweep(engine)


@pytest.fixture(scope="module")
def ada(student: Callable[..., Person]) -> Person:
    """A student of this module."""
    return student("ada")


def now() -> datetime:
    """The time on the Hub's clock."""
    return datetime.now(timezone.utc)


def from_page(page: Page, method: str, path: str, body: Any = None) -> str:
    """What a server answers to a request of its own page."""
    status, text = page.evaluate(SENT_BY_THE_PAGE, [method, path, None if body is None else json.dumps(body)])
    assert status < 300, f"{method} {path} was answered with {status}: {text}"
    return str(text)


def on_disk(engine: PrivateEngine, path: str) -> str:
    """A file of the home, read in the container and not through the server."""
    return engine.docker("exec", "jupyter-ada", "cat", f"/home/jovyan/{path}", check=False)


def end_of(engine: PrivateEngine, since: datetime) -> tuple[list[str], list[str]]:
    """Signals that ada's container was sent, and its exit status, as the engine wrote them down."""
    argv = ["events", "--since", str(since.timestamp()), "--until", str(time.time()), "--format", "{{json .}}"]
    lines = engine.docker(*argv, "--filter", "type=container", "--filter", "container=jupyter-ada").splitlines()
    events = [(entry["Action"], entry["Actor"]["Attributes"]) for entry in map(json.loads, lines)]
    signals = [about["signal"] for action, about in events if action == "kill"]
    return signals, [about["exitCode"] for action, about in events if action == "die"]


def stop(lab: Lab) -> float:
    """Stop ada's server as the button does; the seconds until it was gone."""
    began = time.monotonic()
    assert lab.api("DELETE", "users/ada/server").status_code in (202, 204)
    eventually(lambda: lab.server_state("ada") == {}, "the server still runs")
    return time.monotonic() - began


def start(somebody: Person) -> None:
    """Choose a profile and wait for JupyterLab, which opens what was open."""
    somebody.pick("cpu")
    somebody.page.wait_for_url(re.compile("/user/ada/lab"), timeout=60_000)
    somebody.page.locator("#jp-main-dock-panel").wait_for()


def write(page: Page, text: str) -> None:
    """Type at the end of the open notebook's first cell."""
    cell = page.locator(".jp-Notebook .jp-MarkdownCell").first
    cell.dblclick()
    cell.locator(".cm-content").click()
    page.keyboard.press("End")
    page.keyboard.insert_text(text)
    expect(cell).to_contain_text(text)


def test_a_login_in_a_fresh_browser_lands_in_the_lab(ada: Person, person: Callable[..., Person]) -> None:
    """The Hub's OAuth from both ends: after the form, and from a link into the server without a login."""
    ada.start("cpu")
    elsewhere = person("ada")
    page = elsewhere.see("/user/ada/lab")
    page.fill("#username_input", "ada")
    page.fill("#password_input", "correct horse battery")
    page.click("#login_submit")
    elsewhere.wait_for_lab()
    elsewhere.page.goto("about:blank")


def test_nobody_elses_login_opens_it(student: Callable[..., Person]) -> None:
    """The scopes, which are read without the Hub's tables here, are those of the owner."""
    page = student("bob").see("/user/ada/lab")
    expect(page.locator("body")).to_contain_text("403")


def test_a_cell_runs_and_the_hub_hears_of_it(lab: Lab, ada: Person) -> None:
    """The server's own report: nothing else tells the Hub of it within five minutes."""
    began = now()
    assert ada.run("print(6 * 7)") == "42"

    def heard() -> bool:
        return datetime.fromisoformat(lab.server_state("ada")["last_activity"].replace("Z", "+00:00")) > began

    eventually(heard, "the Hub does not know of the cell")


def test_a_terminal_opens_and_prints(ada: Person) -> None:
    """What is typed goes to a shell, and what that prints comes back."""
    came: list[str] = []

    def listen(socket: WebSocket) -> None:
        if "/terminals/websocket/" in socket.url:
            socket.on("framereceived", lambda frame: came.append(str(frame)))

    page = ada.page
    page.on("websocket", listen)
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="New").first.hover()
    page.locator(".lm-Menu-itemLabel", has_text="Terminal").click()
    page.locator(".jp-Terminal .xterm-screen").wait_for()
    eventually(lambda: "$" in "".join(came) or page.wait_for_timeout(100), "the shell shows no prompt")
    page.locator(".jp-Terminal .xterm-screen").click()
    page.keyboard.type("echo $((6 * 7))-answers\n")
    eventually(lambda: "42-answers" in "".join(came) or page.wait_for_timeout(100), f"nothing was printed: {came}")


def test_an_edit_is_saved_by_itself_and_outlives_a_stop(lab: Lab, ada: Person, engine: PrivateEngine) -> None:
    """Nobody presses Save; ten seconds later the edit is on the disk, and in the page after the next start."""
    from_page(ada.page, "PUT", "/user/ada/api/contents/kept.ipynb", A_NOTEBOOK)
    ada.see("/user/ada/lab/tree/kept.ipynb?reset")
    write(ada.page, " and what was typed last")
    typed = time.monotonic()
    eventually(lambda: "typed last" in on_disk(engine, "kept.ipynb"), "the edit is not saved")
    assert time.monotonic() - typed < AUTOSAVE_SECONDS + 3
    stop(lab)
    start(ada)
    ada.see("/user/ada/lab/tree/kept.ipynb")
    expect(ada.page.locator(".jp-Notebook .jp-MarkdownCell").first).to_contain_text("first and what was typed last")


def test_an_edit_in_the_moment_of_a_stop_is_saved_once_the_server_is_back(
    lab: Lab, ada: Person, engine: PrivateEngine
) -> None:
    """It is in the page alone. While that stays open, it is saved as soon as Lab is opened beside it."""
    left_open = ada.page
    # Lab writes down its layout when it has begun; a stop before that leaves a page that never works.
    with left_open.expect_response(lambda answer: "/api/workspaces/" in answer.url and answer.request.method == "PUT"):
        ada.see("/user/ada/lab/tree/kept.ipynb")
    write(left_open, ", a second before")
    stop(lab)
    beside = ada.page = ada.context.new_page()
    start(ada)
    assert "a second before" not in on_disk(engine, "kept.ipynb")
    ada.page = left_open  # which a failure shall show

    def saved() -> bool:
        left_open.wait_for_timeout(200)
        return "typed last, a second before" in on_disk(engine, "kept.ipynb")

    eventually(saved, "the page that stayed open does not save", 40)
    left_open.close()
    ada.page = beside


def test_a_stop_ends_the_server_by_itself_while_it_works(lab: Lab, ada: Person, engine: PrivateEngine) -> None:
    """With a kernel, a terminal and a page that opens: SIGTERM, exit status 0, well inside the grace of 10 s."""
    from_page(ada.page, "POST", "/user/ada/api/kernels", {"name": "python3"})
    from_page(ada.page, "POST", "/user/ada/api/terminals", {})
    ada.see("/user/ada/lab/tree/kept.ipynb")
    ada.page.locator("#jp-main-dock-panel").wait_for()
    began = now()
    assert stop(lab) < MUCH_LESS_THAN_THE_GRACE
    assert end_of(engine, began) == (["15"], ["0"])


def test_a_shutdown_from_inside_ends_it_too(lab: Lab, ada: Person, engine: PrivateEngine) -> None:
    """Lab's request for it, which its menu does not offer under a Hub, even while a page opens; the Hub sees it."""
    start(ada)
    began = now()
    from_page(ada.page, "POST", "/user/ada/api/shutdown")
    eventually(lambda: end_of(engine, began)[1], "the server did not end")
    assert end_of(engine, began) == ([], ["0"])
    eventually(lambda: lab.server_state("ada") == {}, "the Hub does not see that it ended", 60)
