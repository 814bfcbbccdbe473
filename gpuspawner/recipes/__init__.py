"""Pure rules: the folders of `images/` → which image stands on which, the order to build them, and what is stale.

A recipe is one folder: its name is the image's name, and its `FROM` line, declared nowhere else, is its parent. What is
in the folders is given as values; nothing here reads a disk or asks an engine.

`dockerfile` reads a Dockerfile, `ignore` a .dockerignore, `shelf` puts the folders in order, `fingerprint` says what an
image is made of and why it is stale, `versions` which images of one recipe are good, in use, or in the way.
"""

from gpuspawner.errors import RecipeError
from gpuspawner.recipes.dockerfile import Source
from gpuspawner.recipes.files import ContextFile, Folder
from gpuspawner.recipes.fingerprint import MOST_PARTS, NEUTRAL_ARGUMENTS, Fingerprint, fingerprints, parts_of, reasons
from gpuspawner.recipes.ignore import visible
from gpuspawner.recipes.names import (
    BASE_DIGEST_LABEL,
    BASE_NAME_LABEL,
    CREATED_LABEL,
    HASH_LABEL,
    PARTS_LABEL,
    PREFIX,
    REVISION_LABEL,
    TITLE_LABEL,
)
from gpuspawner.recipes.shelf import Recipe, Shelf, in_order, read_shelf

__all__ = [
    "BASE_DIGEST_LABEL",
    "BASE_NAME_LABEL",
    "CREATED_LABEL",
    "HASH_LABEL",
    "MOST_PARTS",
    "NEUTRAL_ARGUMENTS",
    "PARTS_LABEL",
    "PREFIX",
    "REVISION_LABEL",
    "TITLE_LABEL",
    "ContextFile",
    "Fingerprint",
    "Folder",
    "Recipe",
    "RecipeError",
    "Shelf",
    "Source",
    "fingerprints",
    "in_order",
    "parts_of",
    "read_shelf",
    "reasons",
    "visible",
]
