"""The command line of `build_images.py`. What each of its words does is in `actions`, imported only where needed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from gpuspawner.build_images.plan import Options, Planner, say_if_current
from gpuspawner.builder import glance
from gpuspawner.builder.certificates import extra_certificates
from gpuspawner.errors import BuildError, RecipeError

# A mistake is noticed within a week or two of refreshes, and each version of a GPU image is gigabytes.
KEEP = 3


def program(folder: Path) -> typer.Typer:
    """The command line over one folder of images.

    Exit status: 0 all as wanted, 1 an image failed or stands on one that did, 2 nothing could be tried, 130 Ctrl-C.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command()
    def main(
        names: Annotated[
            list[str] | None, typer.Argument(metavar="NAME", help="Images; what they stand on comes first.")
        ] = None,
        list_: Annotated[bool, typer.Option("--list", help="Show the images: state, size, cost on disk.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be built, and why.")] = False,
        check: Annotated[bool, typer.Option("--check", help="Try the images that are in use; change nothing.")] = False,
        rollback: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Go back to the last good version, and mark the present one as bad."),
        ] = None,
        prune: Annotated[
            bool, typer.Option("--prune", help="Remove old versions that no container and no profile uses.")
        ] = False,
        keep: Annotated[
            int | None,
            typer.Option(metavar="N", min=1, help="With --prune: how many good versions of each image stay (3)."),
        ] = None,
        config: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                envvar="GPUSPAWNER_CONFIG",
                help="With --prune: the Hub's configuration, whose profiles may name versions that have to stay. By "
                "default the jupyterhub_config.py beside the images.",
            ),
        ] = None,
        pull: Annotated[bool, typer.Option("--pull", help="Look for a newer base, and build on it.")] = False,
        no_cache: Annotated[
            bool, typer.Option("--no-cache", help="Build from nothing, also what is up to date or was rolled back.")
        ] = False,
        jobs: Annotated[int, typer.Option(metavar="N", min=1, help="How many images are built side by side.")] = 2,
        build_arg: Annotated[
            list[str] | None,
            typer.Option(metavar="NAME=VALUE", help="A build argument for the Dockerfiles that declare it."),
        ] = None,
        base: Annotated[
            str | None,
            typer.Option(
                metavar="IMAGE", envvar="GPUSPAWNER_BASE", help="What the lowest image stands on, not plain Debian."
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
        push: Annotated[
            str | None,
            typer.Option(metavar="REGISTRY", help="Copy the images to this registry afterwards (host:port/path)."),
        ] = None,
        json_: Annotated[bool, typer.Option("--json", help="One line of JSON instead of tables and progress.")] = False,
        plain: Annotated[bool, typer.Option("--plain", help="Plain lines, also on a terminal.")] = False,
        metrics: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                envvar="GPUSPAWNER_METRICS",
                help="Write state and times of the images for Prometheus's textfile collector (NAME.prom).",
            ),
        ] = None,
    ) -> None:
        """Build the images that have changed, try each, and let new servers start from those that pass.

        Without NAME: all of them. Servers that run keep the image that they were started from.
        """
        asked = [option for option in (list_, dry_run, check, rollback, prune) if option]
        options = Options(
            names=tuple(names or ()),
            base=base,
            arguments=_arguments(build_arg or ()),
            no_cache=no_cache,
            pull=pull,
            jobs=jobs,
        )
        with Sentences():
            if len(asked) > 1:
                raise BuildError("--list, --dry-run, --check, --rollback and --prune each stand alone: choose one.")
            if asked and push:
                raise BuildError("--push copies what a refresh has published: it goes with a plain refresh only.")
            if pull and asked and not dry_run:
                raise BuildError("--pull looks for a newer base to build on: it goes with a refresh or --dry-run only.")
            if keep is not None and not prune:
                raise BuildError("--keep says how many versions --prune leaves: add --prune, or leave it out.")
            planner = Planner(folder, options, extra_certificates(ca_bundle), glance.look_or_ask)
            if not (asked or push or pull or metrics) and say_if_current(planner.plan(), as_json=json_):
                return
            from gpuspawner.build_images import actions

            setting = actions.Setting(folder, planner, as_json=json_, plain=plain, metrics=metrics)
            if list_:
                ok = actions.show_shelf(setting)
            elif dry_run:
                ok = actions.show_plan(setting)
            elif check:
                ok = actions.check(setting)
            elif rollback:
                ok = actions.roll_back(setting, rollback)
            elif prune:
                ok = actions.prune(setting, keep or KEEP, config)
            else:
                ok = actions.build(setting, push)
        if not ok:
            raise typer.Exit(1)

    return app


def _arguments(given: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"a build argument is written NAME=VALUE, got '{entry}'", param_hint="--build-arg")
        found[name] = value
    return found


class Sentences:
    """Turns what stops a run into a sentence and an exit status."""

    def __enter__(self) -> None:
        # systemd and `kill` end a run as Ctrl-C does: in good order.
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (BuildError, RecipeError)):
            print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
        if isinstance(error, KeyboardInterrupt):
            print("Stopped. What was not finished is as it was: servers start from the same images.", file=sys.stderr)
            raise typer.Exit(130) from None
