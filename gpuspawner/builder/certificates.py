"""The certificates that this machine trusts beyond its distribution's: those of a TLS-inspecting proxy, for example."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpuspawner.errors import BuildError

HOST_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
DISTRIBUTION_CERTIFICATES = Path("/usr/share/ca-certificates")

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----([^-]+)-----END CERTIFICATE-----")


def certificates_in(text: str) -> tuple[str, ...]:
    """The certificates of a PEM bundle, each once and spelled the same way, in a fixed order."""
    bodies = {"".join(match[1].split()) for match in _PEM.finditer(text)}
    return tuple(
        "-----BEGIN CERTIFICATE-----\n"
        + "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
        + "\n-----END CERTIFICATE-----\n"
        for body in sorted(bodies)
    )


def extra_certificates(bundle: Path | None) -> tuple[str, ...]:
    """What a bundle (by default this machine's) holds beyond the distribution's own certificates, which images have.

    Raises:
        BuildError: a bundle was named that cannot be read or holds no certificate.
    """
    try:
        found = certificates_in((bundle or HOST_BUNDLE).read_text(errors="replace"))
    except OSError as error:
        if bundle is None:
            return ()
        raise BuildError(f"The certificates in {bundle} cannot be read: {error.strerror}.") from error
    if bundle and not found:
        raise BuildError(f"{bundle} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----).")
    usual: set[str] = set()
    for folder, _, names in os.walk(DISTRIBUTION_CERTIFICATES):
        for name in (name for name in names if name.endswith(".crt")):
            usual.update(certificates_in(Path(folder, name).read_text(errors="replace")))
    return tuple(certificate for certificate in found if certificate not in usual)
