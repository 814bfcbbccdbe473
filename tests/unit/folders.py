"""Small image folders as values, for the tests of `recipes`; and what Docker leaves out of a build."""

from __future__ import annotations

from hypothesis import strategies as st

from gpuspawner.recipes import ContextFile, Shelf, read_shelf

BASE = "FROM debian:12-slim\n"


def folder(dockerfile: str, **files: str) -> dict[str, ContextFile]:
    """A folder with a Dockerfile and text files (`_` in a name stands for a dot)."""
    texts = {"Dockerfile": dockerfile, **{name.replace("_", "."): text for name, text in files.items()}}
    return {name: ContextFile(text.encode()) for name, text in texts.items()}


def shelf_of(**dockerfiles: str) -> Shelf:
    return read_shelf({name: folder(text) for name, text in dockerfiles.items()})


@st.composite
def shelves(draw: st.DrawFn) -> Shelf:
    """Shelves of up to eight images, each of which stands on earlier ones (in an order that names do not give away)."""
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1, max_size=8, unique=True))
    folders = {}
    for index, name in enumerate(names):
        parents = draw(st.lists(st.sampled_from(names[:index]), max_size=3, unique=True)) if index else []
        lines = [f"FROM gpuspawner/{parent} AS s{number}" for number, parent in enumerate(parents)] or ["FROM debian"]
        folders[name] = folder("\n".join(lines), data=draw(st.text(max_size=5)))
    return read_shelf(dict(draw(st.permutations(sorted(folders.items())))))
