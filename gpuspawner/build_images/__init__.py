"""Program: `build_images.py [NAME...]` builds the images that have changed, each after the one that it stands on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gpuspawner.build_images.refresh import Options, Outcome, Refresh, Step
from gpuspawner.build_images.show import LiveShow, PlainShow, outcome_table, plan_table, print_failures, shelf_table
from gpuspawner.builder import Builder, BuildError, find_program
from gpuspawner.recipes import RecipeError

__all__ = ["Options", "Outcome", "Refresh", "Step", "program"]


def program(folder: Path) -> typer.Typer:
    """The command line over one folder of images.

    Exit status: 0 all as wanted, 1 an image failed or stands on one that did, 2 nothing could be tried, 130 Ctrl-C.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command()
    def main(
        names: Annotated[
            list[str] | None,
            typer.Argument(metavar="[NAME]...", help="Images to build; what they stand on comes first."),
        ] = None,
        list_: Annotated[bool, typer.Option("--list", help="Show the images and whether they are up to date.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be built, and why.")] = False,
        no_cache: Annotated[
            bool, typer.Option("--no-cache", help="Build, also what is up to date, from nothing.")
        ] = False,
        base: Annotated[
            str | None,
            typer.Option(
                metavar="IMAGE",
                envvar="GPUSPAWNER_BASE",
                help="Build the lowest image on this one instead of plain Debian.",
            ),
        ] = None,
        ca_bundle: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                envvar="GPUSPAWNER_CA_BUNDLE",
                help="Certificates (PEM) that the images shall trust, for networks with a TLS-inspecting proxy. By "
                "default those that this machine trusts beyond its distribution's.",
            ),
        ] = None,
    ) -> None:
        """Build the images that have changed, in the order in which they stand on each other.

        Without NAME: all of them. `latest` of an image moves when its build has succeeded; running servers keep theirs.
        """
        options = Options(tuple(names or ()), base, ca_bundle, no_cache)
        console = Console()
        try:
            builder = Builder(find_program(os.environ), os.environ)
            builder.check_engine()
            refresh = Refresh(folder, options, builder, os.environ)
            if list_ or dry_run:
                console.print(shelf_table(refresh.plan()) if list_ else plan_table(refresh.plan()))
                return
            outcomes = _run(refresh, console)
        except (BuildError, RecipeError) as error:
            print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            print("Stopped. The images are as they were before the one that was being built.", file=sys.stderr)
            raise typer.Exit(130) from None
        console.print(outcome_table(outcomes))
        print_failures(console, outcomes)
        if any(outcome.result in ("failed", "stopped") for outcome in outcomes):
            raise typer.Exit(1)

    return app


def _run(refresh: Refresh, console: Console) -> tuple[Outcome, ...]:
    steps = refresh.plan()
    if not any(step.reasons for step in steps):
        return tuple(
            Outcome(step.recipe.name, "unchanged", size_bytes=step.existing.size_bytes if step.existing else None)
            for step in steps
        )
    show = LiveShow(console, [step.recipe.name for step in steps]) if console.is_terminal else PlainShow(console)
    with show:
        return refresh.run(show)
