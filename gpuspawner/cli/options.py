"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

State = Annotated[
    Path,
    typer.Option(
        envvar="GPUSPAWNER_STATE", show_envvar=True, show_default=True, help="The Hub's data folder, with cards.json."
    ),
]
DEFAULT_STATE = Path("state")
