"""The image shelf on a real engine: what is built, what is tried, what is published, and what a broken run leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.shelf import Shelf
from tests.standins.netns_engine import PrivateEngine

pytestmark = pytest.mark.engine

LEAF = "FROM gpuspawner/base\nCOPY note.txt /etc/note.txt\n"
TWIG = "FROM gpuspawner/t-leaf\nCOPY note.txt /etc/twig.txt\n"
SLOW = "FROM gpuspawner/base\nCOPY note.txt /etc/note.txt\nRUN echo now && sleep 60\n"
NAMES = ("t-leaf", "t-twig", "t-slow")


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Ask again and again until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} is still not so after {seconds:g} seconds"


def read_until(running: subprocess.Popen[str], words: str) -> None:
    """Read what a program prints until it has said something."""
    assert running.stdout is not None
    seen = []
    for line in running.stdout:
        seen.append(line)
        if words in line:
            return
    raise AssertionError(f"it ended before it said {words!r}: {seen}")


@pytest.fixture
def shelf(engine: PrivateEngine, tmp_path: Path) -> Iterator[Shelf]:
    """The project's base, which is built already, and a leaf and a twig that are not."""
    made = Shelf(tmp_path, engine)
    made.copy("base")
    assert made.run("--json").status == 0, "the project's base cannot be built"
    made.write("t-leaf", Dockerfile=LEAF, note_txt="one\n")
    made.sweep(NAMES)
    yield made
    made.sweep(NAMES)


@pytest.mark.parametrize(
    "builder",
    [
        pytest.param("buildkit", id="BuildKit"),
        pytest.param("classic", id="classic builder, no docker program at all"),
    ],
)
def test_base_and_scipy_are_built_tried_and_published(
    engine: PrivateEngine, tmp_path: Path, builder: str, request: pytest.FixtureRequest
) -> None:
    """Both builders make images that pass every check; the layers stay in the engine for the next time."""
    base, scipy = f"t-{builder}-base", f"t-{builder}-scipy"
    path = {"PATH": "/usr/sbin:/sbin:/nowhere"} if builder == "classic" else {}
    shelf = Shelf(tmp_path, engine, path)
    shelf.copy("base", base)
    shelf.copy("scipy", scipy)
    dockerfile = shelf.folder / scipy / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("FROM gpuspawner/base", f"FROM gpuspawner/{base}"))
    for name in (base, scipy):
        if shelf.id(f"gpuspawner/{name}:latest"):
            engine.docker("tag", f"gpuspawner/{name}:latest", f"gpuspawner-test/cache:{name}")
    shelf.sweep((base, scipy))
    request.addfinalizer(lambda: shelf.sweep((base, scipy)))

    done = shelf.run("--json", "--plain", seconds=580)

    assert done.status == 0, done
    assert done.results() == {base: "built", scipy: "built"}
    for name in (base, scipy):
        engine.docker("tag", f"gpuspawner/{name}:latest", f"gpuspawner-test/cache:{name}")
        image = done.image(name)
        assert image["findings"] == []
        assert image["boot"]["seconds"] > 0
        assert image["boot"]["resident_bytes"] > 10 << 20
        tags = shelf.tags(name)
        assert "latest" in tags
        assert not [tag for tag in tags if tag.startswith("candidate")]
        labels = shelf.labels(f"gpuspawner/{name}:latest")
        assert labels["gpuspawner.context-hash"][:12] in tags
        assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
        assert labels["org.opencontainers.image.created"]
    assert done.image(base)["yardstick"] is None
    assert done.image(scipy)["yardstick"]["cpu_seconds"] > 0
    again = shelf.run("--json")
    assert set(again.results().values()) == {"unchanged"}


def test_a_line_in_a_leaf_touches_only_the_leaf_and_a_running_server_keeps_its_image(
    shelf: Shelf, engine: PrivateEngine
) -> None:
    """What is below is not built again; what runs is not touched; what stands on the leaf follows it."""
    base = shelf.id("gpuspawner/base:latest")
    shelf.write("t-twig", Dockerfile=TWIG, note_txt="twig\n")
    first = shelf.run("--json")
    assert first.results() == {"base": "unchanged", "t-leaf": "built", "t-twig": "built"}, first
    before = shelf.id("gpuspawner/t-leaf:latest")
    server = engine.docker("run", "--detach", "gpuspawner/t-leaf", "sleep", "600")
    shelf.write("t-twig", note_txt="another twig\n")

    plan = shelf.run("--dry-run", "--json")
    done = shelf.run("--json")

    assert [image["reasons"] for image in plan.answer["images"]] == [[], [], ["note.txt changed"]]
    assert done.results() == {"base": "unchanged", "t-leaf": "unchanged", "t-twig": "built"}
    shelf.write("t-leaf", note_txt="two\n")
    done = shelf.run("--json", "t-leaf")
    assert done.results() == {"base": "unchanged", "t-leaf": "built"}
    assert shelf.id("gpuspawner/base:latest") == base
    assert shelf.id("gpuspawner/t-leaf:latest") != before
    assert engine.docker("inspect", "--format", "{{.Image}}", server) == before
    assert engine.docker("exec", server, "cat", "/etc/note.txt") == "one"
    engine.docker("rm", "--force", server)
    assert shelf.run("--dry-run", "--json").image("t-twig")["reasons"] == ["parent t-leaf changed"]


def test_a_broken_leaf_is_not_published_and_says_what_is_wrong(shelf: Shelf) -> None:
    """Students go on starting the one before; the broken one can be looked at under a name of its own."""
    assert shelf.run("--json").status == 0
    before = shelf.id("gpuspawner/t-leaf:latest")
    shelf.write("t-twig", Dockerfile=TWIG, note_txt="twig\n")
    shelf.write("t-leaf", Dockerfile=LEAF + 'USER root\nCMD ["sh", "-c", "echo nothing works; exit 3"]\n')

    done = shelf.run()

    assert done.status == 1
    assert "t-leaf did not pass. New servers start from what was there before." in done.out
    assert "nothing works" in done.out
    assert "root" in done.out
    assert "t-leaf was not built" in done.out
    assert shelf.id("gpuspawner/t-leaf:latest") == before
    assert shelf.id("gpuspawner/t-leaf:failed") not in (None, before)
    assert shelf.id("gpuspawner/t-twig:latest") is None
    assert not [tag for tag in shelf.tags("t-leaf") if tag.startswith("candidate")]


def test_a_roll_back_brings_the_last_good_one_back_until_the_folder_changes(shelf: Shelf) -> None:
    """The bad content is remembered, also after its bytes were pruned."""
    shelf.run("--json")
    good = shelf.id("gpuspawner/t-leaf:latest")
    shelf.write("t-leaf", note_txt="bad idea\n")
    assert shelf.run("--json").results()["t-leaf"] == "built"

    done = shelf.run("--rollback", "t-leaf")

    assert done.status == 0
    assert shelf.id("gpuspawner/t-leaf:latest") == good
    assert "remembered as bad" in done.out
    assert shelf.run("--json").results()["t-leaf"] == "held"
    assert shelf.run("--rollback", "t-leaf").status == 2
    removed = shelf.run("--prune", "--keep", "1", "--json").answer["removed"]
    assert [reference for reference in removed if reference.startswith("gpuspawner/t-leaf:bad-")]
    assert shelf.run("--json").results()["t-leaf"] == "held"
    assert shelf.id("gpuspawner/t-leaf:latest") == good
    shelf.write("t-leaf", note_txt="better idea\n")
    assert shelf.run("--json").results()["t-leaf"] == "built"


def test_pruning_keeps_what_is_used(shelf: Shelf, engine: PrivateEngine) -> None:
    """By containers, by a profile that names a version, by the wish to go back."""
    ids = []
    for text in ("one", "two", "three", "four"):
        shelf.write("t-leaf", note_txt=text)
        assert shelf.run("--json").status == 0
        ids.append(shelf.id("gpuspawner/t-leaf:latest"))
    first, second, third, fourth = ids
    second_tag = shelf.labels(str(second))["gpuspawner.context-hash"][:12]
    (shelf.root / "jupyterhub_config.py").write_text(f'{{"image": "gpuspawner/t-leaf:{second_tag}"}}\n')
    container = engine.docker("create", str(first))

    done = shelf.run("--prune", "--keep", "1", "--json")

    assert done.status == 0
    assert {shelf.id(str(image)) for image in ids} == {first, second, None, fourth}
    assert shelf.id("gpuspawner/t-leaf:latest") == fourth
    assert shelf.id(str(third)) is None
    engine.docker("rm", container)
    (shelf.root / "jupyterhub_config.py").unlink()
    shelf.run("--prune", "--keep", "1")
    assert [shelf.id(str(image)) for image in ids] == [None, None, None, fourth]


def test_a_second_run_says_who_is_at_it_and_ctrl_c_leaves_all_as_it_was(shelf: Shelf) -> None:
    """The lock names process and command; after Ctrl-C nothing is left and nothing has moved."""
    shelf.write("t-slow", Dockerfile=SLOW, note_txt=f"{time.time()}\n")
    with shelf.start("--plain", "t-slow") as running:
        read_until(running, "sleep 60")

        second = shelf.run("t-slow")
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=20)

    assert second.status == 2
    assert f"process {running.pid} of" in second.err
    assert "--plain t-slow" in second.err
    assert running.returncode == 130
    assert "Stopped." in output
    assert shelf.tags("t-slow") == set()
    shelf.write("t-slow", Dockerfile=LEAF)
    assert shelf.run("--json", "t-slow").results()["t-slow"] == "built"


@pytest.mark.parametrize("moment", ["building", "checking"])
def test_a_killed_run_leaves_the_shelf_as_it_was(shelf: Shelf, engine: PrivateEngine, moment: str) -> None:
    """kill -9 in the middle of a build and of a trial: servers start from the same image, the next run clears up."""
    shelf.run("--json", "t-leaf")
    before = shelf.id("gpuspawner/t-leaf:latest")
    slow = f"RUN echo {time.time()} && sleep 5\n" if moment == "building" else ""
    shelf.write("t-leaf", Dockerfile=LEAF + slow, note_txt=f"{moment}\n")
    with shelf.start("--plain", "t-leaf") as running:
        read_until(running, "sleep 5" if moment == "building" else "checking")
        if moment == "checking":
            wait_until(lambda: engine.docker("ps", "--quiet", "--filter", "label=gpuspawner.trial"))
        running.kill()
        running.communicate()

    assert shelf.id("gpuspawner/t-leaf:latest") == before
    done = shelf.run("--json", "t-leaf")

    assert done.results()["t-leaf"] == "built", done
    assert shelf.id("gpuspawner/t-leaf:latest") != before
    assert engine.docker("ps", "--all", "--quiet", "--filter", "label=gpuspawner.trial") == ""
    assert not [tag for tag in shelf.tags("t-leaf") if tag.startswith("candidate")]


def test_a_start_during_a_build_gets_the_image_of_before(shelf: Shelf, engine: PrivateEngine) -> None:
    """`latest` moves once, at the end."""
    shelf.run("--json", "t-leaf")
    before = shelf.id("gpuspawner/t-leaf:latest")
    shelf.write("t-leaf", note_txt="newer\n")
    seen = set()
    with shelf.start("--json", "t-leaf") as running:
        while running.poll() is None:
            seen.add(shelf.id("gpuspawner/t-leaf:latest"))
        running.communicate()
    assert running.returncode == 0
    assert seen <= {before, shelf.id("gpuspawner/t-leaf:latest")}
    assert before in seen


def test_what_docker_would_leave_out_of_a_build_is_left_out(engine: PrivateEngine, tmp_path: Path) -> None:
    """Our reading of .dockerignore against the real builder's: the same files get in."""
    from gpuspawner.build_images.plan import read_folders
    from gpuspawner.recipes import visible

    names = ["a.txt", "b.md", "README.md", "x/a.txt", "x/y/README.md", "x/y/z/deep.txt", "[z].txt", "data/keep/two.csv"]
    cases = [
        "*.md\n!README.md",
        "**/*.md\n!x/y/README.md",
        "x/**",
        "data\n!data/keep",
        "[^a].txt",
        "\\[z].txt",
        "*/*/z",
    ]
    for case in cases:
        folder = tmp_path / "context/one"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        (folder / ".dockerignore").write_text(case)
        (folder / "Dockerfile").write_text("FROM gpuspawner/base\nCOPY . /ctx/\nRUN cd /ctx && find . -type f\n")
        environment = {**os.environ, "DOCKER_BUILDKIT": "0", "DOCKER_HOST": engine.host}
        built = subprocess.run(
            ["docker", "build", "--no-cache", str(folder)], env=environment, capture_output=True, text=True, check=True
        )
        seen = {line[2:] for line in built.stdout.splitlines() if line.startswith("./")}
        ours = set(visible(read_folders(tmp_path / "context")["one"]))
        assert seen - {"Dockerfile", ".dockerignore"} == ours - {"Dockerfile", ".dockerignore"}, case
