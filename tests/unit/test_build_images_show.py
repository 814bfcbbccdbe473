"""How a run is shown: live lines, plain lines, tables, and what is printed of failures."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from gpuspawner.build_images import show
from gpuspawner.build_images.plan import Step
from gpuspawner.build_images.refresh import Outcome
from gpuspawner.build_images.show import LiveShow, NoShow, PlainShow
from gpuspawner.candidates import Boot, Finding, Verdict
from gpuspawner.recipes import fingerprints
from gpuspawner.recipes.image import Image
from gpuspawner.recipes.versions import Cost
from tests.unit.folders import BASE, shelf_of

SHELF = shelf_of(base=BASE, scipy="FROM gpuspawner/base\n", vision="FROM gpuspawner/scipy\n", alone="FROM other:1\n")
PRINTS = fingerprints(SHELF)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)


def text_of(one: Console) -> str:
    assert isinstance(one.file, io.StringIO)
    return one.file.getvalue()


def step(name: str, *reasons: str, image: Image | None = None, made: bool = False, held: bool = False) -> Step:
    return Step(SHELF[name], PRINTS[name], image, Image("sha256:9") if made else None, reasons, held)


def lines_of(table: object) -> list[str]:
    one = console()
    one.print(table)
    return [line.rstrip() for line in text_of(one).splitlines()]


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_plain_lines_say_what_is_new() -> None:
    """Each beginning, step and end once; of the rest only what a person wants to read; nothing is cut or coloured."""
    one = console()
    with PlainShow(one) as shown:
        shown.begin("base", "never built")
        shown.begin("base", "never built")
        shown.line("base", "Pulling debian:12")
        shown.line("base", "#5 [1/2] FROM x")
        shown.line("base", "#5 [1/2] FROM x")
        shown.line("base", "#5 1.2 Collecting [bold]numpy")
        shown.line("base", f"#6 [2/2] RUN {'x' * 200}")
        shown.line("scipy", "PIP_INDEX_URL holds a password, which would stay in the images: it is not passed on.")
        shown.line("scipy", "x is not in the engine and cannot be pulled: no such host")
        shown.begin("base", "started as the Hub starts it", "checking")
        shown.line("base", "Trying its [smoke test]")
        shown.end(Outcome("base", "built", seconds=61.2))
        shown.end(Outcome("scipy", "unchanged"))
    assert text_of(one).splitlines() == [
        "base: building: never built",
        "base: Pulling debian:12",
        "base: 1/2 FROM x",
        f"base: 2/2 RUN {'x' * 91}…",
        "scipy: PIP_INDEX_URL holds a password, which would stay in the images: it is not passed on.",
        "scipy: x is not in the engine and cannot be pulled: no such host",
        "base: checking: started as the Hub starts it",
        "base: Trying its [smoke test]",
        "base: built in 1 min 1 s",
        "scipy: unchanged",
    ]


def test_live_lines_show_each_image_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of an image runs from its first beginning to its end; a path in the output is not a step."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with LiveShow(console(terminal=True), ["base", "scipy"]) as shown:
        assert lines_of(shown._table())[0].split() == ["base", "waiting"]
        shown.begin("base", "never built")
        assert lines_of(shown._table())[0].split() == ["base", "building", "0", "s", "never", "built"]
        shown.line("base", "#5 [1/2] FROM x")
        shown.line("base", "#5 1.2 /usr/bin/python")
        now[0] += 62
        assert lines_of(shown._table())[0].split() == ["base", "building", "1", "min", "2", "s", "1/2", "FROM", "x"]
        shown.begin("base", "started as the Hub starts it", "checking")
        shown.line("base", "Asking for its versions")
        assert lines_of(shown._table())[0].split()[:5] == ["base", "checking", "1", "min", "2"]
        assert lines_of(shown._table())[0].endswith("Asking for its versions")
        shown.end(Outcome("base", "built", "never built"))
        shown.end(Outcome("scipy", "stopped", "base was not built"))
        assert [line.split()[:2] for line in lines_of(shown._table())] == [["base", "built"], ["scipy", "stopped"]]


def test_live_lines_of_nothing() -> None:
    """A shelf without images."""
    with LiveShow(console(terminal=True), []) as shown:
        assert lines_of(shown._table()) == []


def test_for_programs_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever happens."""
    with NoShow() as shown:
        shown.begin("base", "never built")
        shown.line("base", "#5 [1/2] FROM x")
        shown.end(Outcome("base", "built"))
    assert capsys.readouterr() == ("", "")


# --- afterwards -------------------------------------------------------------------------------------------------------


def test_the_table_of_what_became_of_each_image() -> None:
    """Size, time and first answer where they are known; a failure has more to say than a cell holds."""
    verdict = Verdict((), (), Boot(0.6123, 0.5, 7))
    table = show.outcome_table(
        [
            Outcome("base", "built", "never built", 90.0, 3 << 20, verdict=verdict),
            Outcome("scipy", "failed", "a long story", 0.2),
            Outcome("vision", "stopped", "scipy was not built", size_bytes=0),
        ]
    )
    head, base, scipy, vision = lines_of(table)
    assert head.split() == ["image", "result", "size", "time", "first", "answer", "why"]
    assert base.split() == ["base", "built", "3", "MiB", "1", "min", "30", "s", "0.6", "s", "never", "built"]
    assert scipy.split() == ["scipy", "failed", "see", "below"]
    assert vision.split() == ["vision", "stopped", "0", "B", "scipy", "was", "not", "built"]


def test_the_table_of_what_would_be_done() -> None:
    """In order, with the reason."""
    steps = [
        step("base"),
        step("scipy", "a.txt changed", made=True),
        step("vision", "parent scipy changed"),
        step("alone", "Dockerfile changed", held=True),
    ]
    _, base, scipy, vision, alone = lines_of(show.plan_table(steps))
    assert base.split() == ["base", "debian:12-slim", "left", "as", "it", "is"]
    assert scipy.split() == ["scipy", "gpuspawner/base", "tagged", "a.txt", "changed"]
    assert vision.split() == ["vision", "gpuspawner/scipy", "built", "parent", "scipy", "changed"]
    assert " ".join(alone.split()).endswith("left as it is its content was rolled back")


def test_the_table_of_what_there_is() -> None:
    """Each below what it stands on; the sum that sharing saves."""
    labels = {"org.opencontainers.image.created": "2026-11-24T08:00:00+00:00"}
    image = Image("sha256:1", 9, labels)
    steps = [
        step("base", image=image),
        step("scipy", "a.txt changed", image=image),
        step("vision", "never built"),
        step("alone", "x", image=Image("sha256:2", 5), held=True),
    ]
    table = show.shelf_table(steps, {"base": Cost(1 << 20, 0), "scipy": Cost(3 << 20, 2 << 20), "alone": Cost(5, 5)}, 7)
    _, base, scipy, vision, alone, *_, total = lines_of(table)
    assert base.split() == ["base", "1", "MiB", "1", "MiB", "0", "B", "2026-11-24", "up", "to", "date"]
    assert scipy.startswith("  scipy")
    assert scipy.endswith("a.txt changed")
    assert vision.split() == ["vision", "never", "built"]
    assert vision.startswith("    vision")
    assert alone.split() == ["alone", "5", "B", "0", "B", "5", "B", "rolled", "back"]
    assert total.split() == ["on", "disk", "7", "B", "4", "MiB", "without", "sharing"]


def test_a_failure_is_told_with_its_last_lines_or_its_findings(tmp_path: Path) -> None:
    """Markup in the output of a build is output; a log that is gone is no second failure."""
    (tmp_path / "base.log").write_text("".join(f"line {number} [red]\n" for number in range(20)))
    verdict = Verdict((Finding("user", "It runs as root."),), ("user",))
    one = console()
    show.print_failures(
        one,
        [
            Outcome("alone", "built"),
            Outcome("base", "failed", "The build failed.", log=tmp_path / "base.log"),
            Outcome("scipy", "failed", "It runs as root.", log=tmp_path / "none.log", verdict=verdict),
            Outcome("vision", "failed", "never built"),
            Outcome("torch", "failed", "gone", log=tmp_path / "none.log"),
        ],
    )
    lines = text_of(one).splitlines()
    assert lines[:3] == ["", "base: The build failed.", "  line 5 [red]"]
    assert lines[16:18] == ["  line 19 [red]", f"The whole output is in {tmp_path}/base.log"]
    assert lines[18:] == [
        "",
        "scipy did not pass. New servers start from what was there before.",
        "  user: It runs as root.",
        f"The whole output is in {tmp_path}/none.log",
        "",
        "vision: never built",
        "",
        "torch: gone",
        f"The whole output is in {tmp_path}/none.log",
    ]
