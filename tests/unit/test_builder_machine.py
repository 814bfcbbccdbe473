"""What a build has to know of this machine: its certificates, its package archive, its way to the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuspawner.builder import certificates
from gpuspawner.builder.archive import Archive, archive_from
from gpuspawner.builder.certificates import certificates_in, extra_certificates
from gpuspawner.builder.settings import network_arguments
from gpuspawner.errors import BuildError
from tests.unit.machine import DEBIAN, MIRROR, NEW_FORM, UBUNTU, pem

# --- certificates -----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(certificates, "DISTRIBUTION_CERTIFICATES", tmp_path / "usual")
    monkeypatch.setattr(certificates, "HOST_BUNDLE", bundle)
    assert extra_certificates(bundle) == extra_certificates(None) == (pem("school"),)
    monkeypatch.setattr(certificates, "HOST_BUNDLE", tmp_path / "none")
    assert extra_certificates(None) == ()


def test_a_bundle_that_was_named_has_to_hold_certificates(tmp_path: Path) -> None:
    """A wrong file is not silently ignored."""
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(BuildError, match=r"key\.pem holds no certificate"):
        extra_certificates(tmp_path / "key.pem")
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        extra_certificates(tmp_path / "none.pem")


# --- this machine's archive -------------------------------------------------------------------------------------------


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
                "c.sources": "what is this\nTypes: deb\nURIs: http://key.example\nSuites: bookworm\nComponents: main\n"
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
