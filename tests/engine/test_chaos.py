"""Eight students, two cards, and everything fails: no card is given twice, nothing stays, everyone is served or told.

`GPUSPAWNER_CHAOS_SECONDS=300` is the long version; `GPUSPAWNER_CHAOS_SEED` repeats an order of faults and wishes
(not its timing: that is the machine's).
"""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles

import pytest

from tests.engine.chaos import Chaos, Watcher, overlaps_in
from tests.engine.conftest import SCENES, sweep
from tests.engine.lab import SCREENSHOTS, Lab, eventually
from tests.engine.students import Outcome, Student, admin_token, enrol
from tests.standins.gpustate import DEFAULT_CARDS, MIB, GpuState
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

NAMES = ("ada", "bob", "cho", "dan", "eve", "flo", "gus", "hal")
GOOD = {"served", "told", "cancelled", "cut off", "hit"}
WHOLE, SHARE = {"profile": "rtx4090", "wait": True}, {"profile": "rtx4090-8g", "wait": True}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints at once, also when the test passes."""

    def tell(words: str) -> None:
        with capsys.disabled():
            print(f"\n  chaos: {words}", end="", flush=True)

    return tell


@pytest.fixture
def chaos(
    request: pytest.FixtureRequest, lab: Lab, engine: PrivateEngine, say: Callable[[str], None]
) -> Iterator[Chaos]:
    """The dice; whatever it has broken is whole again afterwards, and the Hub's log is kept."""
    module = request.node.nodeid.split("::")[0]
    SCENES[module] = (lab, [])
    seed = os.environ.get("GPUSPAWNER_CHAOS_SEED") or str(secrets.randbelow(1_000_000))
    say(f"GPUSPAWNER_CHAOS_SEED={seed}")
    yield Chaos(lab, engine, random.Random(seed), say)
    GpuState().write(engine.state_file)
    if not engine.is_up():
        engine.start_daemon()
    SCREENSHOTS.mkdir(exist_ok=True)
    (SCREENSHOTS / "chaos-hub.log").write_text(lab.log)
    (SCREENSHOTS / "chaos-hook.log").write_text(engine.hook_log.read_text())
    del SCENES[module]


@pytest.fixture
def students(lab: Lab, chaos: Chaos) -> list[Student]:
    """Eight, each with dice of their own, so that nobody's luck depends on another's timing."""
    lab.token = admin_token(lab)
    return [
        Student(
            lab,
            name,
            enrol(lab, name),
            random.Random(chaos.dice.random()),
            chaos.cut_off_since,
            lambda moment: chaos.servers_were_hit >= moment,
        )
        for name in NAMES
    ]


def left_over(engine: PrivateEngine) -> str:
    """Every container with a lease, as a person would read it."""
    form = '{{.Names}} {{.State}} {{.Label "gpuspawner.gpus"}}'
    return engine.docker("ps", "--all", "--format", form, "--filter", "label=gpuspawner.lease")


def figures(outcomes: list[Outcome]) -> str:
    """How the visits went, and how long those took that ended with a server."""
    counted = Counter(outcome.how for outcome in outcomes)
    took = [outcome.seconds for outcome in outcomes if outcome.how == "served"]
    median, last = (quantiles(took, n=20)[i] for i in (9, 18)) if len(took) > 1 else (0.0, 0.0)
    return f"{len(outcomes)} visits: {dict(counted)}; a server after {median:.1f} s (median), {last:.1f} s (95 %)"


def reasons(outcomes: list[Outcome]) -> str:
    """What was told instead of a server, by how often."""
    counted = Counter(f"{outcome.words[:70]}..." for outcome in outcomes if outcome.how == "told")
    return "".join(f"\n    {count} x {words}" for words, count in counted.most_common())


@pytest.mark.parametrize(
    ("shares", "is_too_much"),
    [
        ((None,), False),
        ((None, None), True),
        ((8192, None), True),
        ((8192, 8192), False),
        ((8192, 8192, 8192), True),
    ],
    ids=["one whole", "two wholes", "a share beside a whole", "two shares", "three shares"],
)
def test_the_watcher_would_notice(engine: PrivateEngine, shares: tuple[int | None, ...], *, is_too_much: bool) -> None:
    """Containers made by hand on one card: labels and hook, each alone, tell of the card that has too many."""
    card = DEFAULT_CARDS[0].uuid
    sweep(engine)
    engine.hook_log.unlink(missing_ok=True)
    with Watcher(engine) as watcher:
        for number, share in enumerate(shares):
            labels = {"lease": "1", "user": f"u{number}", "gpus": card, "vram": str(share * MIB) if share else ""}
            options = [word for key, value in labels.items() for word in ("--label", f"gpuspawner.{key}={value}")]
            if share:
                options += ["--env", f"NVIDIA_GPU_MEMORY_LIMIT={share}"]
            gpus = ("--gpus", f"device={card}", "--env", f"NVIDIA_VISIBLE_DEVICES={card}")
            engine.docker("run", "--detach", *options, *gpus, "gpuspawner/base", "sleep", "60")
        looked = watcher.samples + 2
        eventually(lambda: watcher.samples >= looked, "the watcher does not look")
        sweep(engine)
    assert bool(watcher.overbooked) is is_too_much
    assert bool(overlaps_in(engine.hook_log.read_text())) is is_too_much
    # The card is nobody's now: whoever comes next is alone on it.
    engine.docker("run", "--rm", *gpus, "gpuspawner/base", "true")
    assert json.loads(engine.hook_log.read_text().splitlines()[-1])["beside"] == []


@pytest.mark.parametrize(
    ("ends", "is_too_much"),
    [((), True), ((5.0,), True), ((15.0,), False), ((5.0, 15.0, 25.0), False), ((25.0,), True)],
    ids=["no end", "before both", "between them", "between them too", "after both"],
)
def test_what_the_engine_has_lost_is_nobodys_lease(ends: tuple[float, ...], *, is_too_much: bool) -> None:
    """Two whole leases of one card, at 10 and 20: too much, unless the engine ended between them."""
    first = {"id": "a" * 64, "cards": [DEFAULT_CARDS[0].uuid], "memory_mib": None}
    lines = [{**first, "beside": [], "at": 10.0}, {**first, "id": "b" * 64, "beside": [first], "at": 20.0}]
    assert bool(overlaps_in("\n".join(map(json.dumps, lines)), ends)) is is_too_much


def no_reservation_is_left(students: list[Student]) -> None:
    """Both cards are given at once to two who do not wait, and the third reads that both are taken."""
    first, second, third = students[:3]
    for each in (first, second):
        assert each.ask({"profile": "rtx4090"}) == ("asked", "")
    how, words = third.ask({"profile": "rtx4090"})
    assert how == "told"
    assert "all 2 are in use" in words
    for each in (first, second):
        each.leave()


@pytest.mark.fault(2, 14, 22, 33)
def test_no_card_is_lost_or_given_twice_whatever_fails(
    lab: Lab, engine: PrivateEngine, chaos: Chaos, students: list[Student], say: Callable[[str], None]
) -> None:
    """Hub, engine, hook, cards and containers fail at random: leases stay single, and in the end all are served."""
    seconds = float(os.environ.get("GPUSPAWNER_CHAOS_SECONDS", "90"))
    engine.hook_log.unlink(missing_ok=True)
    over = threading.Event()
    with Watcher(engine) as watcher, ThreadPoolExecutor(len(students)) as pool:
        lives = [pool.submit(student.live, over) for student in students]
        try:
            chaos.run(seconds)
        finally:
            over.set()
        for life in lives:
            life.result()
        outcomes = [outcome for student in students for outcome in student.outcomes]
        say(figures(outcomes) + reasons(outcomes))
        # Before anybody comes again, whose start would clear away what an earlier one has left.
        eventually(lambda: left_over(engine) == "", f"containers are left:\n{left_over(engine)}", 90)
        no_reservation_is_left(students)
        once_more = list(pool.map(lambda student: student.visit(student.dice.choice((WHOLE, SHARE))), students))
        say(f"once more, without faults: {figures(once_more)}")
        eventually(lambda: left_over(engine) == "", f"containers are left:\n{left_over(engine)}", 30)
    attached = len(engine.hook_log.read_text().splitlines())
    say(f"faults: {dict(chaos.done)}")
    say(
        f"{watcher.samples} looks at the labels ({watcher.misses} without an answer) saw {len(watcher.leases)} leases, "
        f"up to {watcher.most} at once; the hook has attached cards {attached} times; "
        f"{lab.log.count('Traceback')} tracebacks in the Hub's log"
    )
    assert watcher.overbooked == []
    assert overlaps_in(engine.hook_log.read_text(), chaos.engine_ends) == []
    assert [outcome for outcome in outcomes if outcome.how not in GOOD] == []
    assert [outcome.how for outcome in once_more] == ["served"] * len(NAMES)
    assert watcher.samples > 2 * seconds
    assert attached > len(DEFAULT_CARDS) * len(NAMES) / 4
