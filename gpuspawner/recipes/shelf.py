"""The folders of the shelf: which image stands on which, and the order to build them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from gpuspawner.errors import RecipeError
from gpuspawner.recipes.dockerfile import Source, arguments_in, instructions, lineage, needs_buildkit
from gpuspawner.recipes.files import Folder
from gpuspawner.recipes.ignore import visible
from gpuspawner.recipes.names import PREFIX

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@dataclass(frozen=True)
class Recipe:
    """One image folder.

    `arguments` are those that it declares, `inner_arguments` those that its steps can see: the others only fill in
    `FROM` lines. `files` is what the build sees: the folder after its .dockerignore, Dockerfile included.
    """

    name: str
    path: str
    parent: Source
    sources: tuple[Source, ...]
    arguments: Mapping[str, str | None]
    inner_arguments: frozenset[str]
    needs_buildkit: bool
    files: Folder = field(repr=False)

    @property
    def reference(self) -> str:
        """The image without a tag, as a `FROM` line and a profile name it."""
        return f"{PREFIX}{self.name}"

    @property
    def parents(self) -> tuple[str, ...]:
        """The folders that have to be built before this one."""
        return tuple(sorted({source.recipe for source in self.sources if source.recipe}))


Shelf = Mapping[str, Recipe]


def read_shelf(folders: Mapping[str, Folder], arguments: Mapping[str, str] | None = None) -> Shelf:
    """Every recipe by its name; `arguments` are the build arguments that will be given.

    Raises:
        RecipeError: a Dockerfile cannot be read, stands on a folder that is not there, or on itself.
    """
    shelf = {name: _read(name, folder, dict(arguments or {})) for name, folder in sorted(folders.items())}
    for recipe in shelf.values():
        for source in recipe.sources:
            if source.recipe and source.recipe not in shelf:
                raise RecipeError(
                    f"{recipe.path}:{source.line}: it stands on {source.reference}, but there is no folder "
                    f"'{source.recipe}' beside it. There is: {', '.join(sorted(shelf))}."
                )
    in_order(shelf, shelf)
    return shelf


def in_order(shelf: Shelf, names: Iterable[str]) -> tuple[Recipe, ...]:
    """The named recipes and all that they stand on, parents first, otherwise by name.

    Raises:
        RecipeError: a name that is not on the shelf, or recipes that stand on each other in a circle.
    """
    ordered: dict[str, Recipe] = {}

    def visit(name: str, below: tuple[str, ...]) -> None:
        if name in below:
            circle = [shelf[step] for step in (*below[below.index(name) :], name)]
            steps = "; ".join(
                f"{child.path}:{_line_of(child, parent.name)} stands on {parent.reference}"
                for child, parent in pairwise(circle)
            )
            raise RecipeError(f"{steps}: a circle, so none of them can be built first.")
        if name not in ordered:
            for parent in shelf[name].parents:
                visit(parent, (*below, name))
            ordered[name] = shelf[name]

    for name in sorted(names):
        if name not in shelf:
            raise RecipeError(f"There is no image '{name}'. There is: {', '.join(sorted(shelf)) or 'none'}.")
        visit(name, ())
    return tuple(ordered.values())


def _line_of(recipe: Recipe, parent: str) -> int:
    return next(source.line for source in recipe.sources if source.recipe == parent)


def _read(name: str, folder: Folder, given: Mapping[str, str]) -> Recipe:
    path = f"images/{name}/Dockerfile"
    if not _NAME.fullmatch(name):
        raise RecipeError(f"images/{name}: no image can be named so: use small letters and digits, between them - . _")
    if "Dockerfile" not in folder:
        raise RecipeError(f"images/{name}: there is no Dockerfile in this folder. Write one, or remove the folder.")
    steps = instructions(folder["Dockerfile"].content.decode("utf-8", "replace"))
    sources, parent, declared = lineage(steps, given, path)
    first = next(index for index, step in enumerate(steps) if step.word == "FROM")
    return Recipe(
        name=name,
        path=path,
        parent=parent,
        sources=sources,
        arguments={argument: given.get(argument, default) for argument, default in declared.items()},
        inner_arguments=frozenset(
            name for step in steps[first:] if step.word == "ARG" for name, _ in arguments_in(step.rest)
        ),
        needs_buildkit=any(needs_buildkit(step) for step in steps),
        files=visible(folder),
    )
