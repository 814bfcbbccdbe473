"""What is asked of the docker command line, and what the lowest image stands on."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from gpuspawner.builder import (
    Archive,
    Builder,
    BuildError,
    DockerProgram,
    Job,
    Kind,
    archive_from,
    certificates_in,
    extra_certificates,
    find_ground,
    find_program,
    network_arguments,
    step_of,
)
from gpuspawner.builder import ground as ground_module
from tests.unit.fakedocker import FakeDocker


def builder_on(fake: FakeDocker) -> Builder:
    return Builder(find_program(fake.environ), fake.environ)


@pytest.fixture
def fake(tmp_path: Path) -> FakeDocker:
    """A docker program from before version 23."""
    return FakeDocker.make(tmp_path / "bin")


# --- which program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("programs", "chosen", "kind"),
    [
        pytest.param([("28.2.2", True)], 0, Kind.BUILDX, id="new, with buildx"),
        pytest.param([("20.10.24", False)], 0, Kind.BUILDKIT, id="old"),
        pytest.param([("28.2.2", False)], 0, Kind.CLASSIC, id="new, without buildx"),
        pytest.param([("28.2.2", False), ("20.10.24", False)], 1, Kind.BUILDKIT, id="an old one further down PATH"),
        pytest.param([("20.10.24", False), ("28.2.2", True)], 1, Kind.BUILDX, id="buildx further down PATH"),
        pytest.param([("28.2.2", False), ("27.0.0", False)], 0, Kind.CLASSIC, id="two new ones"),
        pytest.param([("17.06.0", False)], 0, Kind.CLASSIC, id="too old for BuildKit"),
    ],
)
def test_the_docker_program_that_builds_best_is_chosen(
    tmp_path: Path, programs: list[tuple[str, bool]], chosen: int, kind: Kind
) -> None:
    """All docker programs on PATH are looked at, not only the first."""
    fakes = [FakeDocker.make(tmp_path / str(n), version=v, buildx=b) for n, (v, b) in enumerate(programs)]
    path = os.pathsep.join(["/nowhere", *(str(fake.root) for fake in fakes)])
    assert find_program({"PATH": path}) == DockerProgram(str(fakes[chosen].root / "docker"), kind)


def test_without_a_docker_program_the_package_is_named(tmp_path: Path) -> None:
    """The sentence has the command that helps."""
    (tmp_path / "docker").write_text("not executable")
    with pytest.raises(BuildError, match=r"no docker program on PATH.*apt-get install docker\.io"):
        find_program({"PATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("version", "buildx", "beginning", "buildkit"),
    [
        pytest.param("20.10.24", False, ["build", "--progress=plain"], "1", id="buildkit"),
        pytest.param("28.2.2", False, ["build", "--tag"], "0", id="classic"),
        pytest.param(
            "28.2.2", True, ["buildx", "build", "--builder", "default", "--load", "--progress=plain"], "1", id="buildx"
        ),
    ],
)
def test_a_build_is_asked_for_in_the_words_of_each_kind(
    tmp_path: Path, version: str, buildx: bool, beginning: list[str], buildkit: str
) -> None:
    """Same job, three ways to say it."""
    fake = FakeDocker.make(tmp_path, version=version, buildx=buildx)
    job = Job(tmp_path / "base", "gpuspawner/base:1", {"b": "2", "a": "x=y z"}, {"BASE": "debian"}, no_cache=True)
    lines: list[str] = []
    builder_on(fake).build(job, lines.append)
    (call,) = fake.builds()
    assert call.argv[: len(beginning)] == beginning
    assert call.values("--tag") == ["gpuspawner/base:1"]
    assert call.values("--label") == ["a=x=y z", "b=2"]
    assert call.values("--build-arg") == ["BASE=debian"]
    assert call.argv[-2:] == ["--no-cache", str(tmp_path / "base")]
    assert call.environment == {"DOCKER_BUILDKIT": buildkit, "DOCKER_HOST": "unix:///nowhere.sock"}
    assert lines == ["#5 [1/2] FROM x", "#6 [2/2] RUN   work"]


def test_an_engine_without_the_default_bridge_builds_in_the_hosts_network(tmp_path: Path) -> None:
    """Such an engine has no other network in which pip would work."""
    fake = FakeDocker.make(tmp_path, bridge=False)
    builder_on(fake).build(Job(tmp_path, "x:1"), lambda _: None)
    assert fake.builds()[0].values("--network") == ["host"]


def test_a_failed_build_is_an_error_and_its_output_is_handed_over(fake: FakeDocker, tmp_path: Path) -> None:
    """The last line says what went wrong."""
    fake.set(broken=["gpuspawner/base"])
    lines: list[str] = []
    with pytest.raises(BuildError, match="The build of gpuspawner/base:1 failed"):
        builder_on(fake).build(Job(tmp_path, "gpuspawner/base:1"), lines.append)
    assert lines[-1] == "#6 ERROR: exit code: 1"


def test_the_classic_builder_is_not_tried_with_what_it_cannot_do(tmp_path: Path) -> None:
    """Its own message would not say what to install."""
    fake = FakeDocker.make(tmp_path / "bin", version="28.2.2")
    with pytest.raises(BuildError, match=r"torch/Dockerfile uses RUN --mount .* docker-buildx"):
        builder_on(fake).build(Job(tmp_path / "torch", "x:1", needs_buildkit=True), lambda _: None)
    assert not fake.builds()


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        pytest.param(
            "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            "The Docker engine does not answer at unix:///nowhere.sock. Start it",
            id="down",
        ),
        pytest.param(
            "dial unix /var/run/docker.sock: connect: permission denied",
            "You may not use the Docker engine",
            id="denied",
        ),
        pytest.param(
            "Error response from daemon: no space left", "Docker said: Error response .* no space", id="other"
        ),
    ],
)
def test_trouble_with_the_engine_is_a_sentence(fake: FakeDocker, trouble: str, sentence: str) -> None:
    """And it says what to do where that is known."""
    builder = builder_on(fake)
    fake.set(trouble=trouble)
    with pytest.raises(BuildError, match=sentence):
        builder.check_engine()
    with pytest.raises(BuildError, match=sentence):
        builder.image("debian")


def test_an_image_is_known_by_its_labels_or_not_at_all(fake: FakeDocker) -> None:
    """A missing image is no error; one without labels has none."""
    fake.add_image("x:1", {"a": "b"})
    fake.add_image("y:latest")
    builder = builder_on(fake)
    assert builder.image("nope") is None
    assert (found := builder.image("x:1")) is not None
    assert (found.id, found.labels) == ("sha256:x:1", {"a": "b"})
    assert (bare := builder.image("y")) is not None
    assert bare.labels == {}


@pytest.mark.parametrize(("mode", "came"), [("works", True), ("refusal", False), ("silence", False)])
def test_a_pull_waits_for_an_answer_only_so_long(fake: FakeDocker, mode: str, came: bool) -> None:
    """A registry behind a closed door must not hold up everything."""
    fake.set(pull=mode)
    seconds = 0.3 if mode == "silence" else 30.0
    assert builder_on(fake).pull("debian:12-slim", lambda _: None, answer_within_seconds=seconds) is came


@pytest.mark.parametrize(
    ("line", "step"),
    [
        pytest.param("#8 [5/9] RUN pip  install x", "5/9 RUN pip install x", id="BuildKit"),
        pytest.param("#8 [ 5/12] COPY a b", "5/12 COPY a b", id="BuildKit, padded"),
        pytest.param("#8 [made 2/3] RUN make", "2/3 RUN make", id="BuildKit, named stage"),
        pytest.param("Step 3/9 : RUN pip install x", "3/9 RUN pip install x", id="classic"),
        pytest.param("#8 1.23 Collecting numpy", None, id="output"),
        pytest.param("#8 [internal] load metadata", None, id="internal"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_steps_are_recognised_in_the_output(line: str, step: str | None) -> None:
    """Both builders number their steps."""
    assert step_of(line) == step


# --- certificates -----------------------------------------------------------------------------------------------------


def pem(content: str, *, width: int = 64) -> str:
    body = base64.b64encode(content.encode() * 20).decode()
    lines = "\n".join(body[at : at + width] for at in range(0, len(body), width))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def test_the_same_certificate_is_the_same_however_it_is_wrapped() -> None:
    """Order, comments, line length and repetition do not count."""
    bundle = "# a comment\n" + pem("b", width=76) + pem("a").replace("\n", "\r\n") + pem("b")
    assert set(certificates_in(bundle)) == {pem("a"), pem("b")}
    assert certificates_in(bundle) == certificates_in(pem("a") + pem("b"))


def test_only_what_the_distribution_does_not_have_is_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images have the distribution's certificates anyway."""
    usual = tmp_path / "usual/mozilla"
    usual.mkdir(parents=True)
    (usual / "a.crt").write_text(pem("a"))
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(pem("a") + pem("school"))
    monkeypatch.setattr(ground_module, "DISTRIBUTION_CERTIFICATES", tmp_path / "usual")
    monkeypatch.setattr(ground_module, "HOST_BUNDLE", bundle)
    assert extra_certificates(bundle) == extra_certificates(None) == (pem("school"),)
    monkeypatch.setattr(ground_module, "HOST_BUNDLE", tmp_path / "none")
    assert extra_certificates(None) == ()


def test_a_bundle_that_was_named_has_to_hold_certificates(tmp_path: Path) -> None:
    """A wrong file is not silently ignored."""
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(BuildError, match=r"key\.pem holds no certificate"):
        extra_certificates(tmp_path / "key.pem")
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        extra_certificates(tmp_path / "none.pem")


# --- this machine's archive -------------------------------------------------------------------------------------------

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
UBUNTU = 'NAME="Ubuntu"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n'
MIRROR = "http://mirror.example/debian"
NEW_FORM = f"""\
# The mirror of the school
Types: deb deb-src
URIs: {MIRROR}
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("release", "sources", "expected"),
    [
        pytest.param(
            DEBIAN,
            {"sources.list": "", "debian.sources": NEW_FORM},
            Archive(
                "debian",
                "12",
                "bookworm",
                MIRROR,
                "/usr/share/keyrings/debian-archive-keyring.gpg",
                ("main",),
                (
                    f"deb {MIRROR} bookworm main",
                    f"deb {MIRROR} bookworm-updates main",
                    "deb http://mirror.example/security bookworm-security main",
                ),
            ),
            id="Debian, new form",
        ),
        pytest.param(
            UBUNTU,
            {
                "sources.list": "# see below\ndeb-src http://u.example/u noble main\n"
                "deb [arch=amd64] http://u.example/u noble universe main restricted # all\n"
                "deb http://u.example/u noble-backports main\n"
            },
            Archive(
                "ubuntu",
                "24.04",
                "noble",
                "http://u.example/u",
                "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
                ("main", "universe"),
                ("deb http://u.example/u noble main universe",),
            ),
            id="Ubuntu, old form",
        ),
        pytest.param(
            DEBIAN,
            {
                "a.list": "deb cdrom:[Debian 12]/ bookworm main\n"
                "deb [signed-by=/usr/share/keyrings/other.gpg] https://other.example/deb bookworm main\n",
                "b.sources": "Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n",
                "c.sources": "Types: deb\nURIs: http://key.example\nSuites: bookworm\nComponents: main\n"
                "Signed-By:\n .\n  key\n",
                "d.list": f"deb {MIRROR} bookworm main\n",
                "e.list.save": "deb http://old.example bookworm main\n",
            },
            Archive(
                "debian",
                "12",
                "bookworm",
                MIRROR,
                "/usr/share/keyrings/debian-archive-keyring.gpg",
                ("main",),
                (f"deb {MIRROR} bookworm main",),
            ),
            id="other people's archives, discs, what is off",
        ),
    ],
)
def test_the_archive_is_read_from_the_apt_sources(release: str, sources: dict[str, str], expected: Archive) -> None:
    """Mirror, suite and keyring are this machine's own, in both forms that apt knows."""
    assert archive_from(release, sources) == expected


@pytest.mark.parametrize(
    ("release", "sources", "message"),
    [
        pytest.param(
            'ID=fedora\nPRETTY_NAME="Fedora 42"\n', {}, "'Fedora 42'.*--base IMAGE", id="another distribution"
        ),
        pytest.param("", {}, "'unknown'", id="no os-release"),
        pytest.param(
            DEBIAN, {"a.list": "deb http://m.example trixie main"}, "no archive for 'bookworm main'", id="suite"
        ),
    ],
)
def test_a_machine_without_such_an_archive_is_told_to_name_a_base(
    release: str, sources: dict[str, str], message: str
) -> None:
    """There is always a way on."""
    with pytest.raises(BuildError, match=message):
        archive_from(release, sources)


# --- the ground -------------------------------------------------------------------------------------------------------


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """The /etc of a Debian 12 machine with a mirror of its own."""
    folder = tmp_path / "etc"
    (folder / "apt/sources.list.d").mkdir(parents=True)
    (folder / "apt/sources.list.d/debian.sources").write_text(NEW_FORM)
    (folder / "os-release").write_text(DEBIAN)
    return folder


def debootstrap_in(folder: Path, *, status: int = 0) -> None:
    """A debootstrap that makes next to nothing."""
    program = folder / "debootstrap"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" > {folder}/debootstrap.asked\n'
        f"[ {status} = 0 ] || {{ echo E: no mirror; exit {status}; }}\n"
        "while [ $# -gt 2 ]; do shift; done\n"
        "mkdir -p $1/etc/apt $1/etc/dpkg/dpkg.cfg.d $1/usr/share/doc/x $1/usr/share/man\n"
        "echo me > $1/etc/hostname; echo text > $1/usr/share/doc/x/README; echo law > $1/usr/share/doc/x/copyright\n"
    )
    program.chmod(0o755)


def ground_of(fake: FakeDocker, etc: Path, *, wanted: str | None = None, certificates: tuple[str, ...] = ()) -> str:
    # sh and coreutils for the programs above.
    fake_environ = {**fake.environ, "PATH": f"{fake.root}:/usr/bin:/bin"}
    builder = Builder(DockerProgram(str(fake.root / "docker"), Kind.BUILDKIT), fake_environ)
    said: list[str] = []
    ground = find_ground(
        builder, wanted=wanted, default="debian:12-slim", certificates=certificates, say=said.append, etc=etc
    )
    return f"{ground.name} as {ground.reference}"


def test_the_base_is_pulled_once(fake: FakeDocker, etc: Path) -> None:
    """The second run finds it in the engine."""
    for _ in range(2):
        assert ground_of(fake, etc) == "debian:12-slim as debian:12-slim"
    assert [call.argv for call in fake.asked if call.argv[0] == "pull"] == [["pull", "debian:12-slim"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap is only tried by root")
def test_where_no_registry_answers_the_base_is_made_from_the_archive_once(fake: FakeDocker, etc: Path) -> None:
    """Made with this machine's mirror, kept, and used from then on even if a registry answers later."""
    fake.set(pull="refusal")
    debootstrap_in(fake.root)
    assert ground_of(fake, etc) == "gpuspawner/debian:12 as gpuspawner/debian:12"
    asked = (fake.root / "debootstrap.asked").read_text().split()
    assert asked[-3] == "bookworm"
    assert asked[-1] == MIRROR
    fake.set(pull="works")
    (fake.root / "debootstrap").unlink()
    assert ground_of(fake, etc) == "gpuspawner/debian:12 as gpuspawner/debian:12"
    assert len([call for call in fake.asked if call.argv[0] == "import"]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap is only tried by root")
def test_a_debootstrap_that_fails_says_its_last_line(fake: FakeDocker, etc: Path) -> None:
    """And nothing is imported."""
    fake.set(pull="refusal")
    debootstrap_in(fake.root, status=1)
    with pytest.raises(BuildError, match="debootstrap failed: E: no mirror"):
        ground_of(fake, etc)
    assert not fake.images


def test_a_base_that_was_named_is_never_replaced_by_another(fake: FakeDocker, etc: Path) -> None:
    """Asked for by name means that one or none."""
    fake.set(pull="refusal")
    debootstrap_in(fake.root)
    with pytest.raises(BuildError, match=r"school/debian:1 is not in the engine and cannot be pulled: .*no such host"):
        ground_of(fake, etc, wanted="school/debian:1")
    fake.add_image("school/debian:1")
    assert ground_of(fake, etc, wanted="school/debian:1") == "school/debian:1 as school/debian:1"
    assert not (fake.root / "debootstrap.asked").exists()


def test_further_certificates_go_into_a_layer_that_is_made_once(fake: FakeDocker, etc: Path) -> None:
    """The name stays that of the base: the layer is how it gets to trust a proxy."""
    first = ground_of(fake, etc, certificates=(pem("school"),))
    assert ground_of(fake, etc, certificates=(pem("school"),)) == first
    assert first.startswith("debian:12-slim as gpuspawner/ground:")
    assert len(fake.builds()) == 1
    assert ground_of(fake, etc, certificates=(pem("other"),)) != first


# --- the way to the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "pip_conf", "expected"),
    [
        pytest.param({}, "", {}, id="nothing is set"),
        pytest.param(
            {"PIP_INDEX_URL": "https://m.example/simple"},
            "",
            {"PIP_INDEX_URL": "https://m.example/simple"},
            id="variable",
        ),
        pytest.param(
            {},
            "[global]\nindex-url = https://m.example/simple\ntrusted-host = m.example\n",
            {"PIP_INDEX_URL": "https://m.example/simple", "PIP_TRUSTED_HOST": "m.example"},
            id="pip.conf",
        ),
        pytest.param(
            {"PIP_EXTRA_INDEX_URL": "http://localhost:80/ file:///opt/x https://m.example/x"},
            "",
            {"PIP_EXTRA_INDEX_URL": "https://m.example/x"},
            id="this machine's own",
        ),
        pytest.param(
            {"HTTPS_PROXY": "http://p.example:80", "no_proxy": "localhost"},
            "",
            {
                "https_proxy": "http://p.example:80",
                "HTTPS_PROXY": "http://p.example:80",
                "no_proxy": "localhost",
                "NO_PROXY": "localhost",
            },
            id="proxy",
        ),
        pytest.param({"http_proxy": "127.0.0.1:80"}, "", {}, id="proxy on this machine"),
        pytest.param({}, "no section", {}, id="broken pip.conf"),
    ],
)
def test_mirrors_and_proxies_that_a_build_can_reach_are_passed_on(
    tmp_path: Path, environ: dict[str, str], pip_conf: str, expected: dict[str, str]
) -> None:
    """From the environment first, then from pip's own file."""
    (tmp_path / "pip.conf").write_text(pip_conf)
    assert network_arguments(environ, lambda _: None, [tmp_path / "pip.conf", tmp_path / "none"]) == expected


def test_a_password_is_not_passed_on_and_that_is_said_without_it(tmp_path: Path) -> None:
    """Build arguments stay in the history of an image."""
    said: list[str] = []
    environ = {"PIP_INDEX_URL": "https://me:secret@m.example/simple", "HTTPS_PROXY": "http://me:secret@p.example"}
    assert network_arguments(environ, said.append, [tmp_path / "none"]) == {}
    assert [line.split()[0] for line in said] == ["PIP_INDEX_URL", "https_proxy"]
    assert not any("secret" in line for line in said)
