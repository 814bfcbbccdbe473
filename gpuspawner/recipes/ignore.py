"""The rules of .dockerignore.

They are Docker's, which are not Git's: each pattern is rooted at the folder and covers all that is below what it
matches, `**` crosses folders, `!` takes back, the last match decides. No library does it right: pathspec knows Git's
rules only, docker-py's own matcher misreads `[^a]` and `\\[` (a test compares this module with a real builder).
"""

from __future__ import annotations

import posixpath
import re

from gpuspawner.errors import RecipeError
from gpuspawner.recipes.files import ContextFile, Folder

_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|\\.|.", re.DOTALL)
_GLOB_WORDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def visible(folder: Folder) -> dict[str, ContextFile]:
    """What a build sees of a folder: all that its .dockerignore does not leave out, and in any case the Dockerfile."""
    ignore = folder.get(".dockerignore", ContextFile(b"")).content.decode("utf-8", "replace").removeprefix("\ufeff")
    rules = [rule for line in ignore.splitlines() if (rule := _rule(line))]

    def is_left_out(path: str) -> bool:
        decisive = next((taken_back for taken_back, pattern in reversed(rules) if pattern.fullmatch(path)), True)
        return not decisive

    return {path: file for path, file in folder.items() if path == "Dockerfile" or not is_left_out(path)}


def _rule(line: str) -> tuple[bool, re.Pattern[str]] | None:
    """(whether it takes back, what it matches) for a line of .dockerignore; None for a comment or an empty one."""
    written = line.strip()
    taken_back = written.startswith("!")
    pattern = posixpath.normpath(written.removeprefix("!").strip()).lstrip("/")
    # Within a name, `**` is no more than any number of folders before the rest.
    pattern = re.sub(r"\*\*(?=[^/])", "**/", pattern)
    if written == "!":
        raise RecipeError("'!' alone in .dockerignore is no pattern that Docker knows: write what is to be taken back.")
    if line.startswith("#") or not written or not pattern:
        return None
    words = _GLOB.findall(pattern)
    if "[" in words:
        raise RecipeError(f"'{written}' in .dockerignore is no pattern that Docker knows: '[' has no end.")
    expression = "".join(_GLOB_WORDS.get(word) or _literal(word) for word in words)
    try:
        return taken_back, re.compile(expression + "(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise RecipeError(f"'{written}' in .dockerignore is no pattern that Docker knows: {error}.") from error


def _literal(word: str) -> str:
    if word.startswith("[") and len(word) > 1:
        return word
    return re.escape(word.removeprefix("\\") if len(word) > 1 else word)
