"""Runs as root in a box made from an image: one walk over all files of it.

Arguments: the user of the image. Prints one JSON object, in the last line:
{"special": {<path>: "setuid" | "setgid" | "capability" and so on}, "secrets": {<path>: <what it holds>}}.
Standard library only.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import stat
import sys
from pathlib import Path

NOT_OF_THE_IMAGE = {"/proc", "/sys", "/dev"}
# Where packages keep what they ship: keys in there are for tests and examples, and everybody has them.
SHIPPED_WITH_PACKAGES = {"site-packages", "dist-packages", "node_modules"}
EXAMPLES = {"test", "tests", "testing", "testdata", "example", "examples", "doc", "docs"}
SYSTEM_FOLDERS = ("/usr/share/", "/usr/lib/", "/usr/lib64/", "/usr/include/")
PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
URL_WITH_PASSWORD = re.compile(rb"://[^\s/:@'\"$]+:[^\s/@'\"${}]+@")
MOST_BYTES = 256 * 1024
ANYTHING = re.compile(rb"\S")
# The end of a path -> what makes it a credential.
CREDENTIALS = {
    "/.netrc": re.compile(rb"\bpassword\s+\S"),
    "/_netrc": re.compile(rb"\bpassword\s+\S"),
    "/.pypirc": re.compile(rb"(?m)^\s*password\s*[:=]\s*\S"),
    "/.git-credentials": ANYTHING,
    "/.docker/config.json": re.compile(rb'"(?:auth|identitytoken|registrytoken)"\s*:\s*"[^"]'),
    "/.dockercfg": re.compile(rb'"auth"\s*:\s*"[^"]'),
    "/.aws/credentials": re.compile(rb"aws_secret_access_key\s*=\s*\S"),
    "/.kube/config": re.compile(rb"(?m)^\s*(?:- )?(?:token|client-key-data|password):\s*\S"),
    "/.config/gh/hosts.yml": re.compile(rb"oauth_token:\s*\S"),
    "/.config/gcloud/application_default_credentials.json": ANYTHING,
    "/.cache/huggingface/token": ANYTHING,
    "/.huggingface/token": ANYTHING,
    "/.kaggle/kaggle.json": re.compile(rb'"key"\s*:\s*"[^"]'),
    "/.npmrc": re.compile(rb"(?m)(?:_authToken|_password|_auth)\s*=\s*[^\s$]"),
    "/.pgpass": ANYTHING,
    "/.my.cnf": re.compile(rb"(?m)^\s*password\s*=\s*\S"),
    "/pip.conf": URL_WITH_PASSWORD,
    "/uv.toml": URL_WITH_PASSWORD,
    "/.condarc": URL_WITH_PASSWORD,
    "/etc/apt/auth.conf": re.compile(rb"\bpassword\s+\S"),
}
LAST_WORDS = {path.rpartition("/")[2] for path in CREDENTIALS}
CREDENTIAL_FOLDERS = {
    "/etc/apt/auth.conf.d": re.compile(rb"\bpassword\s+\S"),
    "/etc/apt/sources.list.d": URL_WITH_PASSWORD,
}


class Reader:
    """Whoever a student is: the user of the image, and everybody else."""

    def __init__(self, user: str) -> None:
        name, _, group = user.partition(":")
        try:
            entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
            self.uid, self.groups = entry.pw_uid, set(os.getgrouplist(entry.pw_name, entry.pw_gid))
        except KeyError:
            self.uid, self.groups = (int(name) if name.isdigit() else -1), set()
        if group.isdigit():
            self.groups = {int(group)}

    def may(self, found: os.stat_result, bit: int) -> bool:
        """Whether the permission (4: read, 1: enter) is there."""
        mode = found.st_mode
        if found.st_uid == self.uid:
            return bool(mode >> 6 & bit)
        return bool(mode >> 3 & bit) if found.st_gid in self.groups else bool(mode & bit)


def special_in(path: str, mode: int) -> str:
    """The word for a file that gives whoever runs it more rights than they have, or ""."""
    words = ["setuid"] * bool(mode & stat.S_ISUID) + ["setgid"] * bool(mode & stat.S_ISGID)
    if mode & 0o111:
        try:
            os.getxattr(path, "security.capability", follow_symlinks=False)
            words.append("a capability")
        except OSError:
            pass
    return " and ".join(words)


def secret_in(path: str) -> str:
    """What a file gives away, or ""."""
    folder, _, name = path.rpartition("/")
    if name in LAST_WORDS:
        for end, pattern in CREDENTIALS.items():
            if path.endswith(end) and pattern.search(head(path)):
                return "a password or token"
        return ""
    if folder in CREDENTIAL_FOLDERS or path == "/etc/apt/sources.list":
        pattern = CREDENTIAL_FOLDERS.get(folder, URL_WITH_PASSWORD)
        return "a password" if pattern.search(head(path)) else ""
    if folder.endswith("/.ssh") or "/.gnupg/private-keys" in folder:
        return "a private key" if ".gnupg" in folder or PRIVATE_KEY.search(head(path)) else ""
    if name.endswith((".pem", ".key", ".ppk")) or name.startswith(("id_rsa", "id_ed25519", "id_ecdsa", "id_dsa")):
        parts = set(folder.split("/"))
        if parts & (SHIPPED_WITH_PACKAGES | EXAMPLES) or path.startswith(SYSTEM_FOLDERS):
            return ""
        return "a private key" if PRIVATE_KEY.search(head(path)) else ""
    return ""


def head(path: str) -> bytes:
    """The beginning of a file; nothing where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError:
        return b""


def walk(root: str, reader: Reader) -> dict[str, dict[str, str]]:
    """Every file below `root`, in the words of the module's docstring."""
    special: dict[str, str] = {}
    secrets: dict[str, str] = {}
    folders = [(root, True)]
    while folders:
        folder, open_to_reader = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            mode = found.st_mode
            if stat.S_ISDIR(mode) and entry.path not in NOT_OF_THE_IMAGE:
                folders.append((entry.path, open_to_reader and reader.may(found, 1)))
            elif stat.S_ISREG(mode):
                if word := special_in(entry.path, mode):
                    special[entry.path] = word
                readable = open_to_reader and reader.may(found, 4)
                if readable and (word := secret_in(entry.path)):
                    secrets[entry.path] = word
    return {"special": special, "secrets": secrets}


if __name__ == "__main__":
    print(json.dumps(walk("/", Reader(sys.argv[1]))))
