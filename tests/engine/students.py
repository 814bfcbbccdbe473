"""Students who do over REST what the pages do: start a server or wait for one, work, cancel, stop, and read why not."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.engine.lab import Lab, eventually

VISIT_SECONDS = 150.0
"""A start that is neither ready nor refused after that long, in a line of eight, is stuck."""
LEAVE_SECONDS = 90.0

Options = dict[str, object]
WISHES: tuple[tuple[Options, int], ...] = (
    ({"profile": "rtx4090", "wait": True}, 5),
    ({"profile": "rtx4090-8g", "wait": True}, 4),
    ({"profile": "rtx4090"}, 1),
    ({"profile": "cpu"}, 1),
)


@dataclass(frozen=True)
class Outcome:
    """How one visit went.

    `how`: served; told (why not, in `words`); cancelled; cut off (the Hub was killed meanwhile: the student sees the
    form again); hit (the container was ended from outside meanwhile); untold or stuck, which must not be.
    """

    student: str
    options: Options
    how: str
    words: str
    seconds: float


@dataclass
class Student:
    """One student with a token of their own. `cut_off` and `hit` say whether that has happened since a moment."""

    lab: Lab
    name: str
    token: str
    dice: random.Random
    cut_off: Callable[[float], bool]
    hit: Callable[[float], bool]
    outcomes: list[Outcome] = field(default_factory=list)

    def live(self, over: threading.Event) -> None:
        """Visit after visit, until it is over."""
        wishes, weights = zip(*WISHES, strict=True)
        while not over.is_set():
            options = self.dice.choices(wishes, weights)[0]
            patience = self.dice.uniform(0.0, 8.0) if self.dice.random() < 0.25 else VISIT_SECONDS
            self.outcomes.append(self.visit(options, patience))
            over.wait(self.dice.uniform(0.2, 2.0))

    def visit(self, options: Options, patience: float = VISIT_SECONDS) -> Outcome:
        """Ask for a server, work with it for a moment, and leave nothing; cancel once `patience` seconds are over."""
        began = time.monotonic()
        how, words = self.ask(options)
        if how in ("asked", "cut off"):
            how, words = self._follow(began, patience)
        outcome = Outcome(self.name, options, how, words, time.monotonic() - began)
        if how == "served":
            threading.Event().wait(self.dice.uniform(0.5, 4.0))
        self.leave()
        return outcome

    def ask(self, options: Options) -> tuple[str, str]:
        """Ask for a server: ("asked", ""), or what became of it."""
        began = time.monotonic()
        answer = self._call("POST", "server", json=options)
        if answer is None:
            return "cut off" if self.cut_off(began) else "untold", "the Hub did not answer"
        if answer.status_code in (201, 202):
            return "asked", ""
        return self._told(answer.json().get("message", "")) if _is_json(answer) else self._not_hub(began, answer)

    def model(self) -> dict[str, Any] | None:
        """The student's server: {} where there is none, None while the Hub does not say."""
        answer = self._call("GET")
        if answer is None or answer.status_code != 200:
            return None
        found: dict[str, Any] = answer.json()["servers"].get("", {})
        return found

    def leave(self) -> None:
        """Stop whatever there is, again and again until the Hub has forgotten it."""

        def gone() -> bool:
            model = self.model()
            if model and model.get("pending") != "stop":
                self._call("DELETE", "server")
            return model == {}

        eventually(gone, f"{self.name}'s server still runs", LEAVE_SECONDS)

    # --- parts of a visit ---------------------------------------------------------------------------------------------

    def _follow(self, began: float, patience: float) -> tuple[str, str]:
        """Until the server is ready, or is known not to come."""
        seen = ""
        while (waited := time.monotonic() - began) < VISIT_SECONDS:
            if waited > patience:
                self._call("DELETE", "server")
                return "cancelled", seen
            model = self.model()
            if model == {}:
                return self._why(began)
            if model and model["ready"]:
                return "served", seen
            if model:
                ended, seen = self._listen(seen, min(1.5, max(0.1, patience - waited)))
                if ended:
                    return self._told(ended)
            # The Hub may be away, or ask itself what has become of this server.
            threading.Event().wait(0.3)
        return "stuck", seen

    def _listen(self, seen: str, seconds: float) -> tuple[str, str]:
        """What the pending page would show: why the start has failed, "" if it has not; and the last words before."""
        deadline = time.monotonic() + seconds
        try:
            with self._request("GET", "server/progress", stream=True, timeout=(5, seconds)) as answer:
                answer.encoding = "utf-8"
                for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        if event.get("failed"):
                            return str(event["message"]), seen
                        seen = str(event["message"])
                    if time.monotonic() > deadline:
                        break
        except requests.RequestException:
            pass  # nothing new for a while, or the Hub is gone
        return "", seen

    def _why(self, began: float) -> tuple[str, str]:
        """There is no server any more: what the Hub says of the start that there was."""
        ended, _ = self._listen("", 5)
        if ended:
            return self._told(ended)
        if self.cut_off(began):
            return "cut off", ""
        return ("hit" if self.hit(began) else "untold"), "there is no server and no reason"

    def _told(self, words: str) -> tuple[str, str]:
        bad = ("Traceback", "Exception", "Error:", "Internal Server", "object at", "Unhandled")
        plain = words.removeprefix("Spawn failed: ")
        is_sentence = len(plain) > 20 and " " in plain and not any(part in plain for part in bad)
        return ("told" if is_sentence else "untold"), plain

    def _not_hub(self, began: float, answer: requests.Response) -> tuple[str, str]:
        """The proxy's own answer, while the Hub is away."""
        return "cut off" if self.cut_off(began) else "untold", f"{answer.status_code} {answer.text[:200]}"

    def _call(self, method: str, path: str = "", **kwargs: Any) -> requests.Response | None:
        try:
            return self._request(method, path, timeout=40, **kwargs)
        except requests.RequestException:
            return None

    def _request(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        url = f"{self.lab.url}/hub/api/users/{self.name}/{path}".rstrip("/")
        return requests.request(method, url, headers={"Authorization": f"token {self.token}"}, **kwargs)


def _is_json(answer: requests.Response) -> bool:
    return "json" in answer.headers.get("Content-Type", "")


def admin_token(lab: Lab) -> str:
    """A REST token of the first admin, who logs in with the generated password, without a browser."""
    with requests.Session() as session:
        session.get(f"{lab.url}/hub/login", timeout=10)
        form = {"username": "admin", "password": lab.admin_password, "_xsrf": _xsrf(session)}
        answer = session.post(f"{lab.url}/hub/login", data=form, timeout=10)
        assert answer.status_code == 200, answer.text[:500]
        session.get(f"{lab.url}/hub/home", timeout=10)
        headers = {"X-XSRFToken": _xsrf(session)}
        made = session.post(f"{lab.url}/hub/api/users/admin/tokens", headers=headers, timeout=10)
        assert made.status_code == 201, made.text
        token: str = made.json()["token"]
        return token


def _xsrf(session: requests.Session) -> str:
    return next(cookie.value or "" for cookie in session.cookies if cookie.name == "_xsrf" and cookie.path == "/hub/")


def enrol(lab: Lab, name: str) -> str:
    """Make an account over REST, and a token of that student's."""
    assert lab.api("POST", f"users/{name}").status_code == 201
    token: str = lab.api("POST", f"users/{name}/tokens").json()["token"]
    return token
