"""What a run would do, and why: the folders, what the engine has of them, and `recipes` that compares the two.

Nothing is changed here, and docker-py is not imported: most runs find nothing to do, and end quickly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpuspawner.errors import BuildError
from gpuspawner.recipes import (
    BASE_DIGEST_LABEL,
    BASE_NAME_LABEL,
    HASH_LABEL,
    PREFIX,
    ContextFile,
    Fingerprint,
    Folder,
    Recipe,
    Shelf,
    fingerprints,
    in_order,
    read_shelf,
    reasons,
)
from gpuspawner.recipes.image import Image
from gpuspawner.recipes.versions import LATEST, bad_tag

MOST_REASONS = 3
# The argument by which the lowest image is told what it stands on.
BASE = "BASE"

Look = Callable[[Iterable[str]], Mapping[str, "Image | None"]]


@dataclass(frozen=True)
class Options:
    """What was asked for. No names: all images. `base` is looked for where it is None."""

    names: tuple[str, ...] = ()
    base: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    pull: bool = False
    jobs: int = 2


@dataclass(frozen=True)
class Step:
    """One image of a plan.

    `existing` is what servers start from now, `made` is an image of exactly what is wanted from before a change that
    was taken back, `held` says that this content was rolled back: it is not built again.
    """

    recipe: Recipe
    fingerprint: Fingerprint
    existing: Image | None
    made: Image | None
    reasons: tuple[str, ...]
    held: bool = False

    @property
    def name(self) -> str:
        """The image's name."""
        return self.recipe.name

    @property
    def why(self) -> str:
        """The reasons in one line, the first few of many."""
        more = len(self.reasons) - MOST_REASONS
        return ", ".join(self.reasons[:MOST_REASONS]) + (f" and {more} more" if more > 0 else "")

    @property
    def is_lowest(self) -> bool:
        """Whether it stands on whatever BASE names."""
        return BASE in self.recipe.arguments

    @property
    def is_due(self) -> bool:
        """Whether there is something to do for it."""
        return bool(self.reasons) and not self.held

    @property
    def coming(self) -> Image | None:
        """What servers will start from after the run; None where that is still to be built."""
        return self.made if self.is_due else self.existing

    @property
    def exact(self) -> str:
        """The name that only this content has."""
        return f"{self.recipe.reference}:{self.fingerprint.tag}"

    @property
    def latest(self) -> str:
        """The name that servers start from."""
        return f"{self.recipe.reference}:{LATEST}"


class Planner:
    """Makes the plan for one folder of images; asks the engine through `look`, each reference once.

    Raises:
        RecipeError: the folders cannot be read as images.
        BuildError: the engine does not answer, or there is nothing to read.
    """

    def __init__(self, folder: Path, options: Options, certificates: tuple[str, ...], look: Look) -> None:
        self.folders = read_folders(folder)
        self.options = options
        self.certificates = certificates
        self._look = look
        self._known: dict[str, Image | None] = {}

    def plan(self, *, base: str | None = None, fresh: Mapping[str, str] | None = None) -> tuple[Step, ...]:
        """What is to be done, parents first.

        `base` is what the lowest image will stand on: by default what was asked for, else what it stands on already.
        `fresh` are digests that are known to be the newest, by reference.
        """
        default = self.shelf(None)
        latest = self._ask(f"{recipe.reference}:{LATEST}" for recipe in default.values())
        shelf = self.shelf(base or self.options.base or _made_before(default, latest))
        chosen = in_order(shelf, self.options.names or tuple(shelf))
        self._refuse_unknown_arguments(shelf)
        digests = self._base_digests(shelf, latest, fresh or {})
        outside = {"this machine's CA bundle": "".join(self.certificates)} if self.certificates else {}
        held: dict[str, str] = {}
        while True:
            prints = fingerprints(shelf, outside=outside, base_digests=digests, held=held)
            bad = self._newly_held(shelf, prints, latest, held)
            if not bad:
                break
            held.update(bad)
        steps: dict[str, Step] = {}
        for recipe in chosen:
            parent = steps.get(recipe.parent.recipe or "")
            steps[recipe.name] = self._step(recipe, prints[recipe.name], latest, recipe.name in held, parent)
        return tuple(steps.values())

    def shelf(self, base: str | None) -> Shelf:
        """The recipes, the lowest one standing on `base`."""
        given = dict(self.options.arguments)
        return read_shelf(self.folders, {**given, BASE: base} if base else given)

    def forget(self) -> None:
        """Ask the engine again from now on."""
        self._known.clear()

    def _step(
        self,
        recipe: Recipe,
        wanted: Fingerprint,
        latest: Mapping[str, Image | None],
        held: bool,
        parent: Step | None,
    ) -> Step:
        existing = latest[f"{recipe.reference}:{LATEST}"]
        why = reasons(wanted, existing.labels if existing else None)
        made = None
        if self.is_anew(recipe.name):
            why = why or ("--no-cache",)
        elif not why and not _stands_on(existing, parent):
            why = (f"parent {recipe.parent.recipe} was built anew",)
        elif why:
            exact = f"{recipe.reference}:{wanted.tag}"
            made = self._ask([exact])[exact]
        return Step(recipe, wanted, existing, made if _stands_on(made, parent) else None, why, held)

    def is_anew(self, name: str) -> bool:
        """Whether an image is built from nothing, also if it is up to date or was rolled back."""
        return self.options.no_cache and (not self.options.names or name in self.options.names)

    def _newly_held(
        self,
        shelf: Shelf,
        prints: Mapping[str, Fingerprint],
        latest: Mapping[str, Image | None],
        held: Mapping[str, str],
    ) -> dict[str, str]:
        """The lowest images whose wanted content is marked as bad, with the digest of what stays in use instead."""
        for recipe in in_order(shelf, shelf):
            in_use = latest[f"{recipe.reference}:{LATEST}"]
            digest = prints[recipe.name].digest
            if in_use is None or recipe.name in held or self.is_anew(recipe.name):
                continue
            mark = f"{recipe.reference}:{bad_tag(digest)}"
            if in_use.labels.get(HASH_LABEL) != digest and self._ask([mark])[mark]:
                return {recipe.name: in_use.labels.get(HASH_LABEL, in_use.id)}
        return {}

    def _base_digests(
        self, shelf: Shelf, latest: Mapping[str, Image | None], fresh: Mapping[str, str]
    ) -> dict[str, str]:
        """The digest of each image from elsewhere that a recipe stands on, as far as it can be known."""
        parents = {recipe.name: recipe.parent.reference for recipe in shelf.values() if not recipe.parent.recipe}
        here = self._ask(parents.values())
        found: dict[str, str] = {}
        for name, reference in parents.items():
            if reference in fresh:
                found[reference] = fresh[reference]
            elif image := here[reference]:
                found[reference] = image.digest
            elif digest := _recorded(latest[f"{PREFIX}{name}:{LATEST}"], reference):
                # It was removed since: that does not change what was built on it.
                found[reference] = digest
        return found

    def _refuse_unknown_arguments(self, shelf: Shelf) -> None:
        declared = {name for recipe in shelf.values() for name in recipe.arguments}
        if unknown := sorted(set(self.options.arguments) - declared):
            raise BuildError(
                f"No Dockerfile declares the build argument {unknown[0]}: write 'ARG {unknown[0]}' into the one that "
                f"shall see it. Declared are: {', '.join(sorted(declared)) or 'none'}."
            )

    def _ask(self, references: Iterable[str]) -> Mapping[str, Image | None]:
        wanted = list(dict.fromkeys(references))
        if missing := [reference for reference in wanted if reference not in self._known]:
            self._known.update(self._look(missing))
        return {reference: self._known[reference] for reference in wanted}


def _recorded(image: Image | None, reference: str) -> str:
    """The digest of what an image was built on, if that had this name."""
    is_it = image is not None and image.labels.get(BASE_NAME_LABEL) == reference
    return image.labels.get(BASE_DIGEST_LABEL, "") if image and is_it else ""


def _stands_on(image: Image | None, parent: Step | None) -> bool:
    """Whether an image was built on what its parent will be; in doubt (no word about it) it was."""
    if image is None or parent is None:
        return True
    below = image.labels.get(BASE_DIGEST_LABEL, "")
    return not below or (parent.coming is not None and below == parent.coming.id)


def _made_before(shelf: Shelf, latest: Mapping[str, Image | None]) -> str | None:
    """A system that was made because no registry answered stays what the images stand on."""
    for recipe in shelf.values():
        image = latest[f"{recipe.reference}:{LATEST}"]
        if BASE in recipe.arguments and image:
            name = image.labels.get(BASE_NAME_LABEL, "")
            if name.startswith(PREFIX):
                return name
    return None


def say_if_current(steps: Sequence[Step], *, as_json: bool = False) -> bool:
    """Whether every image is as its folder says; then this is all that a run has to say."""
    if any(step.reasons for step in steps):
        return False
    if as_json:
        sizes = {step.name: step.existing.size_bytes if step.existing else None for step in steps}
        images = [{"name": name, "result": "unchanged", "why": "", "size_bytes": size} for name, size in sizes.items()]
        print(json.dumps({"ok": True, "images": images}))
    else:
        print("\n".join(f"{step.name}: unchanged" for step in steps))
    return True


def read_folders(folder: Path) -> dict[str, Folder]:
    """What is in each image folder. Times and owners are not read: they make no difference.

    Raises:
        BuildError: there is no such folder, or something in it cannot be read.
    """
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
        return {path.name: _read_folder(path) for path in found}
    except OSError as error:
        raise BuildError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _read_folder(folder: Path) -> Folder:
    found: dict[str, ContextFile] = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root) / name
            if path.is_symlink():
                file = ContextFile(os.fsencode(path.readlink()), is_link=True)
            elif path.is_file():
                file = ContextFile(path.read_bytes(), executable=bool(path.stat().st_mode & 0o111))
            else:
                continue
            found[path.relative_to(folder).as_posix()] = file
    return found
