"""Pages of the Hub that JupyterHub has not: more time for a server, from the button on the home page.

`accounts.LabAuthenticator` registers them; with another authenticator do so in its `get_handlers`. The rules are in
`guard`; nothing is decided here.
"""

from __future__ import annotations

from jupyterhub.handlers import BaseHandler
from jupyterhub.utils import url_path_join
from tornado.web import HTTPError, authenticated

from gpuspawner.spawner import GPUSpawner


class ExtendHandler(BaseHandler):
    """`POST /hub/gpu/extend` with `server`: one step more time for a server of whoever asks.

    The answer is the home page, which says what has become of it.
    """

    @authenticated
    async def post(self) -> None:
        """Ask for it. Raises 404 where this person has no such server."""
        user = self.current_user
        server = self.get_body_argument("server", "")
        spawner = user.spawners.get(server) if server in user.spawners else None
        if not isinstance(spawner, GPUSpawner):
            raise HTTPError(404, "You have no server of this name. Go back to the Hub's home page.")
        await spawner.extend()
        self.redirect(url_path_join(self.hub.base_url, "home"))


HANDLERS = [(r"/gpu/extend", ExtendHandler)]
