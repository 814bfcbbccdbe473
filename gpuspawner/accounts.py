"""Accounts of a lab: nativeauthenticator, with a first admin whose password is generated, never a default one.

nativeauthenticator 1.3 was written for JupyterHub 5: its login page fails on JupyterHub 6, which has no `statsd` any
more (jupyterhub#5407) and asks the page to render synchronously after an error. `LoginHandler` mends both; it goes
when a release of nativeauthenticator runs on JupyterHub 6 by itself.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from nativeauthenticator import NativeAuthenticator
from nativeauthenticator import handlers as native
from traitlets import Unicode

from gpuspawner.errors import ConfigError
from gpuspawner.handlers import HANDLERS


class _NoTimer:
    """What `statsd` was to the login page: a timer that nobody reads."""

    def timer(self, name: str) -> _NoTimer:
        return self

    def start(self) -> _NoTimer:
        return self

    def stop(self, send: bool = True) -> None:
        return None


class LoginHandler(native.LoginHandler):
    """nativeauthenticator's login page, made to run on JupyterHub 6."""

    statsd = _NoTimer()
    _sync = False

    def _render(self, login_error: str | None = None, username: str | None = None, **options: Any) -> Any:
        self._sync = bool(options.get("sync"))
        return super()._render(login_error=login_error, username=username)

    def render_template(self, name: str, **namespace: Any) -> Any:
        """Render as text instead of a coroutine where the Hub's error page asks for it."""
        if self._sync:
            namespace["sync"] = True
        return super().render_template(name, **namespace)


class LabAuthenticator(NativeAuthenticator):
    """Students sign up, an admin approves. The first admin is made at the first start of the Hub."""

    first_admin = Unicode(
        "admin",
        help="""
        The name of the admin account that is made when it does not exist yet; it must be in `admin_users` too.
        The default is "admin"; "" makes none, and then somebody in `admin_users` has to sign up.
        """,
    ).tag(config=True)

    password_file = Unicode(
        "admin-password",
        help="""
        The file that the generated password of `first_admin` is written to, once, readable by the Hub's user only.
        The default lies in the folder that the Hub runs in. Read it, delete it, and change the password in the Hub.
        """,
    ).tag(config=True)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.first_admin and not self.user_exists(self.first_admin):
            self._make_first_admin()

    def get_handlers(self, app: Any) -> list[tuple[str, Any]]:
        """nativeauthenticator's pages, with our login page; and what the Hub's own pages of this package call."""
        theirs = [
            (path, LoginHandler if handler is native.LoginHandler else handler)
            for path, handler in super().get_handlers(app)
        ]
        return [*theirs, *HANDLERS]

    def _make_first_admin(self) -> None:
        password = secrets.token_urlsafe(12)
        path = Path(self.password_file)
        # The file first: an account whose password nobody can read would lock the admin out.
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password + "\n")
        created = self.create_user(self.first_admin, password)
        if created is None or not created.is_authorized:
            path.unlink()
            raise ConfigError(
                f"The first admin {self.first_admin!r} could not be made: it must be in c.Authenticator.admin_users, "
                "its name must not hold a comma, space or slash, and enable_signup must be on at the first start."
            )
        self.log.warning("The account %r was made; its password is in %s.", self.first_admin, path.resolve())
