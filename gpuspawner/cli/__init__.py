"""Program: `gpuspawner COMMAND` for the admin of a lab server. It asks the engine and the driver, and needs no Hub.

Each command is a module of this package: it looks, a pure module judges, and what is printed here is words only.
"""

from __future__ import annotations

import typer

from gpuspawner.cli import drain, status

__all__ = ["app"]

app = typer.Typer(
    name="gpuspawner",
    help="Look after a shared GPU server. `gpuspawner COMMAND --help` explains each command.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def commands() -> None:
    """Look after a shared GPU server. The Docker engine is the one of DOCKER_HOST, or this machine's."""


app.command("status")(status.command)
app.command("drain")(drain.drain)
app.command("undrain")(drain.undrain)
