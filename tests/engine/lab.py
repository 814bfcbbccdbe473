"""A lab server for tests: the real `jupyterhub_config.py` in a real Hub process, and people with browsers.

Runs inside the private engine's network namespace: there 127.0.0.1 and the bridge address are what they are on a real
host, and nothing meets the machine's own ports.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

REPOSITORY = Path(__file__).parents[2]
SCREENSHOTS = REPOSITORY / "tests" / "_output"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "correct horse battery"

T = TypeVar("T")


def eventually(look: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """The first true answer of `look`, asked again and again; fails with `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: still {answer!r} after {seconds:g} s")
        time.sleep(0.1)


@dataclass
class Lab:
    """One Hub with its state folder. `environment` reaches the Hub; DOCKER_HOST and the NVML stand-in are in it."""

    folder: Path
    environment: Mapping[str, str]
    config: Path = REPOSITORY / "jupyterhub_config.py"
    url: str = "http://127.0.0.1:8000"
    process: subprocess.Popen[bytes] | None = None
    token: str = ""
    _admin_password: str = field(default="", repr=False)

    @property
    def log(self) -> str:
        """What the Hub has printed so far."""
        return (self.folder / "hub.log").read_text(errors="replace")

    @property
    def admin_password(self) -> str:
        """The generated password, from the file that the first start wrote."""
        if not self._admin_password:
            self._admin_password = (self.folder / "admin-password").read_text().strip()
        return self._admin_password

    def start(self) -> None:
        """Start the Hub and wait until it answers."""
        with (self.folder / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(self.config)],
                cwd=self.folder,
                env={**os.environ, **self.environment, "GPUSPAWNER_STATE": str(self.folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            eventually(self._healthy, "the Hub does not answer", 40)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-4000:]}") from None

    def _healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the Hub has ended:\n{self.log[-4000:]}"
        try:
            # 200 from the Hub itself: until its route is there the proxy answers 404.
            return requests.get(f"{self.url}/hub/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """`kill -9` of the Hub alone: its proxy and the students' containers stay."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """End the Hub and its proxy as a service manager would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=20)
            self.process = None
        proxy = self.folder / "jupyterhub-proxy.pid"
        if proxy.exists() and (pid := int(proxy.read_text() or 0)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def api(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """The Hub's REST API with the admin's token."""
        headers = {"Authorization": f"token {self.token}"}
        return requests.request(method, f"{self.url}/hub/api/{path}", headers=headers, timeout=60, **kwargs)

    def server_state(self, user: str, server: str = "") -> dict[str, Any]:
        """The model of a user's server, {} when there is none."""
        found: dict[str, Any] = self.api("GET", f"users/{user}").json()["servers"].get(server, {})
        return found


class Person:
    """Somebody with a browser of their own."""

    def __init__(self, lab: Lab, context: BrowserContext, name: str) -> None:
        self.lab = lab
        self.context = context
        self.name = name
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)

    def see(self, path: str) -> Page:
        """Open a page of the Hub."""
        self.page.goto(self.lab.url + path)
        return self.page

    def picture(self, name: str) -> None:
        """Write what is on the screen to the folder of screenshots."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def sign_up(self) -> None:
        """Fill in the form for a new account."""
        page = self.see("/hub/signup")
        page.fill("#username_input", self.name)
        page.fill("#password_input", PASSWORD)
        page.fill("#password_confirmation_input", PASSWORD)
        page.click("#signup_submit")
        expect(page.locator("body")).to_contain_text("admin")

    def log_in(self, password: str = PASSWORD) -> None:
        """Log in at the Hub's own form."""
        page = self.see("/hub/login")
        page.fill("#username_input", self.name)
        page.fill("#password_input", password)
        page.click("#login_submit")
        page.wait_for_url(re.compile(r"/hub/(spawn|home)|/user/"))

    def approve(self, student: str) -> None:
        """As an admin: let a new account in."""
        page = self.see("/hub/authorize")
        page.locator("tr", has_text=student).get_by_role("button", name="Authorize", exact=True).click()
        expect(page.locator("tr", has_text=student)).to_contain_text("Unauthorize")

    def make_token(self) -> str:
        """A REST token of this person, made from a page of the Hub."""
        self.see("/hub/home")
        made: str = self.page.evaluate(
            """async (name) => (await (await fetch(`/hub/api/users/${name}/tokens`, {
                method: "POST", headers: {"X-XSRFToken": window.jhdata.xsrf_token}})).json()).token""",
            self.name,
        )
        return made

    def pick(self, slug: str, *, wait: bool = True) -> None:
        """Choose a profile on the form and press Start; `wait` for the page that follows."""
        page = self.see("/hub/spawn")
        page.locator(f"input[name=profile][value={slug}]").check()
        page.get_by_role("button", name="Start").click(no_wait_after=not wait)

    def start(self, slug: str) -> None:
        """Choose a profile and wait until JupyterLab is open."""
        self.pick(slug)
        self.wait_for_lab()

    def wait_for_lab(self) -> None:
        """Until JupyterLab's launcher is on the screen."""
        self.page.wait_for_url(re.compile(r"/user/.*/lab"), timeout=60_000)
        self.page.locator(".jp-LauncherCard").first.wait_for(timeout=60_000)

    def run(self, code: str) -> str:
        """Run code in a new notebook, through the browser, and give back what the cell printed."""
        page = self.page
        page.locator('.jp-LauncherCard[data-category="Notebook"]').first.click()
        cell = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first
        cell.wait_for()
        # A key pressed before the kernel is there can be lost.
        expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=60_000)
        cell.click()
        page.keyboard.insert_text(code)
        page.keyboard.press("Shift+Enter")
        output = page.locator(".jp-CodeCell .jp-OutputArea-output").first
        output.wait_for(timeout=60_000)
        return output.inner_text().strip()


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()
