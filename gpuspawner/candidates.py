"""Pure rules: what was seen of a freshly built image → whether it may take the place of the one that students use.

A candidate is judged before its tag moves. Each rule has a name, for the report, and says what it found in sentences
for the admin: what is there, why it matters, what to do now. What is seen is given as values; nothing here starts a
container or reads a clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpuspawner.units import MIB, format_bytes

BUDGET = 1.5
"""How many times the yardstick's seconds, CPU-seconds and memory a server may need until its first answer."""

BEYOND_DOUBT = 2 * BUDGET
"""What is that much more is not measured again in the hope of a quieter machine."""

MOST_NAMED = 10
LOG_LINES = 15
LONGEST_LINE = 300
UID = 1000

USER, GPUS, COMMAND, CREDENTIALS = "user", "no GPU by itself", "command", "no credentials in its settings"
STARTS, HUB_VERSION, BOOT = "starts", "Hub version", "boot budget"
PACKAGES, SECRETS, SPECIAL = "pip check", "no readable secrets", "no setuid surprises"

# What the NVIDIA toolkit reads as "none" (an empty value too).
_NO_GPUS = ("", "void", "none")

_SECRET_WORDS = {"TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "CREDENTIAL", "CREDENTIALS", "APIKEY"}
_SECRET_PAIRS = {("API", "KEY"), ("ACCESS", "KEY"), ("PRIVATE", "KEY"), ("SECRETS", "KEY"), ("AUTH", "KEY")}
# A name that ends so says where a secret is, or how it is used, not what it is.
_HARMLESS_ENDS = {"FILE", "PATH", "DIR", "URL", "TYPE", "NAME", "ID", "EXPIRY", "TTL", "LENGTH", "AUTH", "REQUIRED"}
_HARMLESS_VALUES = {"", "0", "1", "true", "false", "yes", "no", "on", "off", "none", "null"}

_URL_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://[^\s/:@'\"$]*):[^\s/@'\"${}]+@([^\s/:'\"]+)", re.IGNORECASE)
# `|2 NAME=value OTHER=value /bin/sh -c …`: the build arguments that a RUN step could see, with their values.
_ARGUMENTS = re.compile(r"\|\d+ (.*?)(?: /\S+ -\w*c |$)", re.DOTALL)
_ENV_STEP = re.compile(r"(?:^|#\(nop\)\s+)ENV (.*)", re.DOTALL)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(\"[^\"]*\"|'[^']*'|\S*)")

_IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")
_VERSION = re.compile(r"^(\d+)\.\d", re.MULTILINE)


@dataclass(frozen=True)
class ImageConfig:
    """What an image says of itself. `history` holds its build steps, as text."""

    id: str
    user: str
    environment: Mapping[str, str]
    command: tuple[str, ...]
    history: tuple[str, ...]

    @property
    def home(self) -> str:
        """The folder that a student's volume covers."""
        return self.environment.get("HOME") or "/home/jovyan"


@dataclass(frozen=True)
class FileFacts:
    """What a walk over an image's files found: path → what it gives.

    `special`: files that give whoever runs them more rights than they have. `secrets`: files with a private key or a
    password that the user of the image can read.
    """

    special: Mapping[str, str]
    secrets: Mapping[str, str]


@dataclass(frozen=True)
class PackageCheck:
    """What `pip check` said about one Python. `lines` is empty where all is well."""

    python: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Boot:
    """What a server needed until its first answer. Memory is what cannot be given back: without file caches."""

    seconds: float
    cpu_seconds: float
    resident_bytes: int

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.cpu_seconds:.2f} CPU-s, {format_bytes(self.resident_bytes)}"


@dataclass(frozen=True)
class ImportCost:
    """One import of a starting server: the seconds of the module itself, and with all that it imports."""

    module: str
    own_seconds: float
    cumulative_seconds: float


@dataclass(frozen=True)
class Finding:
    """Something that keeps a candidate from being used. `check` names the rule, `text` is for the admin."""

    check: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What was found, by which checks, and what the start cost.

    `boot` is None where it does not start, `yardstick` where there was nothing to measure against. `imports` are the
    most expensive ones of a server that is over the budget.
    """

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    boot: Boot | None = None
    yardstick: Boot | None = None
    imports: tuple[ImportCost, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether students may get it."""
        return not self.findings


# --- what the image says of itself ------------------------------------------------------------------------------------


def judge_config(image: ImageConfig) -> tuple[Finding, ...]:
    """The rules that need no container: user, GPUs, command, credentials in settings and build steps."""
    found = []
    if _is_root(image.user):
        found.append(
            Finding(
                USER,
                f"It runs as root{'' if image.user else ' (there is no USER line)'}: a student would own everything in "
                "the container, and files in the home would belong to root. End the Dockerfile with 'USER jovyan'.",
            )
        )
    asked = image.environment.get("NVIDIA_VISIBLE_DEVICES", "")
    if asked.lower() not in _NO_GPUS:
        found.append(
            Finding(
                GPUS,
                f"It says NVIDIA_VISIBLE_DEVICES={asked}: under a default nvidia runtime every container of it gets "
                "cards that nobody leased. Put 'ENV NVIDIA_VISIBLE_DEVICES=void' at the end of the Dockerfile.",
            )
        )
    if not image.command:
        found.append(
            Finding(
                COMMAND,
                "It has no CMD, and the Hub starts what CMD says. Add 'CMD [\"jupyterhub-singleuser\"]': an "
                "ENTRYPOINT alone is not enough, and one in a child image takes away the parent's CMD.",
            )
        )
    return (*found, *_credentials(image))


def _is_root(user: str) -> bool:
    return user.partition(":")[0] in ("", "root", "0")


def _credentials(image: ImageConfig) -> list[Finding]:
    found = []
    names = {name for name, value in image.environment.items() if is_credential(name, value)}
    if names:
        found.append(
            f"Its environment sets {', '.join(sorted(names))}: every student can read that. Remove the ENV line, "
            "withdraw what it gave away, and give it to those who need it through their home."
        )
    urls = {url for value in image.environment.values() for url in _urls(value)}
    if urls:
        found.append(
            f"Its environment holds a password in an address ({', '.join(sorted(urls))}): every student can read that. "
            "Remove the ENV line and change the password."
        )
    arguments: set[str] = set()
    addresses: set[str] = set()
    for step in image.history:
        addresses.update(_urls(step))
        texts = [*_ARGUMENTS.findall(step), *_ENV_STEP.findall(step)]
        pairs = [pair for text in texts for pair in _ASSIGNMENT.findall(text)]
        arguments.update(name for name, value in pairs if is_credential(name, value.strip("\"'")))
    if arguments := arguments - names:
        found.append(
            f"Its build steps hold the value of {', '.join(sorted(arguments))}: 'docker history' shows it to everyone "
            "who has the image. Use 'RUN --mount=type=secret' instead of a build argument, and change what was shown."
        )
    if addresses := addresses - urls:
        found.append(
            f"Its build steps hold a password in an address ({', '.join(sorted(addresses))}): 'docker history' shows "
            "it to everyone who has the image. Use 'RUN --mount=type=secret', and change the password."
        )
    return [Finding(CREDENTIALS, text) for text in found]


def is_credential(name: str, value: str) -> bool:
    """Whether a variable of this name, with this value, gives away a password, a token or a key."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper().replace("-", "_").split("_")
    if value.strip().lower() in _HARMLESS_VALUES or value.startswith("$") or words[-1] in _HARMLESS_ENDS:
        return False
    return bool(_SECRET_WORDS & set(words) or _SECRET_PAIRS & set(pairwise(words)))


def _urls(text: str) -> list[str]:
    """Addresses with a password in `text`, without the password."""
    return [f"{begin}:…@{host}" for begin, host in _URL_PASSWORD.findall(text)]


# --- what is in it ----------------------------------------------------------------------------------------------------


def judge_files(own: FileFacts, parent: FileFacts | None, *, parent_name: str = "its parent") -> tuple[Finding, ...]:
    """Secrets that a student could read; rights that the parent does not give, where there is one to compare with."""
    found = []
    if own.secrets:
        found.append(
            Finding(
                SECRETS,
                f"A student can read {_some(f'{path} ({what})' for path, what in sorted(own.secrets.items()))}. "
                "Deleting it in a later step does not help: leave it out of the step that brings it (.dockerignore, "
                "'RUN --mount=type=secret'), and change what was given away.",
            )
        )
    special = own.special.items() - parent.special.items() if parent else ()
    if special:
        found.append(
            Finding(
                SPECIAL,
                f"It adds {_some(f'{path} ({what})' for path, what in sorted(special))}, which {parent_name} does not "
                "have: such a program gives whoever runs it more rights than they have. Take them off where nothing "
                "needs them: 'chmod a-s FILE', 'setcap -r FILE'.",
            )
        )
    return tuple(found)


def judge_user(uid: int) -> tuple[Finding, ...]:
    """The number of the user as whom it runs. Root is `judge_config`'s case."""
    if uid in (0, UID):
        return ()
    return (
        Finding(
            USER,
            f"It runs as user number {uid}, not {UID}: files in the homes of all other images belong to {UID}, so "
            f"students could not write there. Make its user with 'useradd --uid {UID}', or stand on an image that "
            "has one.",
        ),
    )


def judge_hub_version(hub_version: str, answer: str) -> tuple[Finding, ...]:
    """What `jupyterhub-singleuser --version` answered, against the version of the Hub."""
    match, wanted = _VERSION.search(answer), hub_version.split(".")[0]
    if match and match[1] == wanted:
        return ()
    pin = f"Put 'jupyterhub=={wanted}.*' into the requirements of the server's Python, and build again."
    if match is None:
        said = f" (it said: {_last(answer.splitlines(), 1)})" if answer.strip() else ""
        return (Finding(HUB_VERSION, f"jupyterhub-singleuser does not tell its version{said}. {pin}"),)
    version = next(line for line in answer.splitlines() if _VERSION.match(line)).split()[0]
    return (
        Finding(
            HUB_VERSION,
            f"Its jupyterhub-singleuser is version {version} and the Hub is {hub_version}: logins and activity reports "
            f"only work within one major version. {pin}",
        ),
    )


def judge_packages(checks: Iterable[PackageCheck]) -> tuple[Finding, ...]:
    """What `pip check` said about each Python."""
    return tuple(
        Finding(
            PACKAGES,
            f"The packages of {check.python} do not fit together: {_some(check.lines, between='; ')}. "
            "Pin versions that do in the requirements, and build again.",
        )
        for check in checks
        if check.lines
    )


# --- what it does -----------------------------------------------------------------------------------------------------


def smoke_check(name: str) -> str:
    """The name of the check that an image's smoke_test.py is."""
    return f"smoke test of {name}"


def judge_smoke_test(
    name: str, status: int | None, lines: Sequence[str], *, limit_seconds: float
) -> tuple[Finding, ...]:
    """How the smoke_test.py of image `name` ended in the candidate. No status: it did not end in time."""
    if status == 0:
        return ()
    how = f"did not end within {limit_seconds:g} seconds" if status is None else f"ended with status {status}"
    return (
        Finding(
            smoke_check(name),
            f"images/{name}/smoke_test.py {how}. Its last lines:\n{_last(lines)}\n"
            "Mend the image, or the test where it asks for something that is not meant any more.",
        ),
    )


def judge_start(how: str, lines: Sequence[str]) -> tuple[Finding, ...]:
    """A server that did not come to answer: `how` completes "Started as the Hub starts it, it …"."""
    last = f" Its last lines:\n{_last(lines)}\n" if any(line.strip() for line in lines) else " It printed nothing. "
    return (
        Finding(
            STARTS,
            f"Started as the Hub starts it, it {how}.{last}Run 'jupyterhub-singleuser' in it by hand to see more, and "
            "look at what its CMD and ENTRYPOINT do.",
        ),
    )


def best(boots: Sequence[Boot]) -> Boot:
    """The least of each figure: whatever else a machine does only adds to them."""
    return Boot(
        min(boot.seconds for boot in boots),
        min(boot.cpu_seconds for boot in boots),
        min(boot.resident_bytes for boot in boots),
    )


def over_budget(candidate: Boot, yardstick: Boot, times: float = BUDGET) -> tuple[str, ...]:
    """What is more than so many times the yardstick's, each as "2.31 s, 3.9 times 0.59 s"."""
    figures = (
        ("{:.2f} s", candidate.seconds, yardstick.seconds),
        ("{:.2f} s of CPU", candidate.cpu_seconds, yardstick.cpu_seconds),
        ("{:.0f} MiB of memory", candidate.resident_bytes / MIB, yardstick.resident_bytes / MIB),
    )
    return tuple(
        f"{words.format(own)}, {own / other:.1f} times {words.format(other)}"
        for words, own, other in figures
        if other > 0 and own > times * other
    )


def judge_boot(candidate: Boot, yardstick: Boot, imports: Sequence[ImportCost]) -> tuple[Finding, ...]:
    """The boot budget. `imports`: the most expensive ones, where they were looked at."""
    over = over_budget(candidate, yardstick)
    if not over:
        return ()
    named = ", ".join(f"{cost.module} {cost.own_seconds:.2f} s" for cost in imports)
    return (
        Finding(
            BOOT,
            f"Until its first answer its server needs {' and '.join(over)} in the image below all others; "
            f"{BUDGET:g} times is allowed. In a class thirty start at once. "
            + (f"The most expensive imports, each without those within it: {named}. " if named else "")
            + "Leave out the server extensions that are not needed, or have them import such modules when they are "
            "first used.",
        ),
    )


def parse_imports(log: Iterable[str]) -> tuple[ImportCost, ...]:
    """Imports in the words of `python -X importtime`, in the order in which they ended; other lines do not matter."""
    matches = (_IMPORT_TIME.search(line) for line in log)
    return tuple(ImportCost(match[3], int(match[1]) / 1e6, int(match[2]) / 1e6) for match in matches if match)


def most_expensive(imports: Iterable[ImportCost]) -> tuple[ImportCost, ...]:
    """The ten that themselves take longest."""
    return tuple(sorted(imports, key=lambda cost: -cost.own_seconds)[:MOST_NAMED])


# --- words ------------------------------------------------------------------------------------------------------------


def _some(words: Iterable[str], between: str = ", ") -> str:
    """The first ten, and how many more there are."""
    listed = list(words)
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return between.join(listed[:MOST_NAMED]) + more


def _last(lines: Sequence[str], most: int = LOG_LINES) -> str:
    kept = [line.rstrip()[:LONGEST_LINE] for line in lines if line.strip()][-most:]
    return "\n".join(kept) or "(no output)"
