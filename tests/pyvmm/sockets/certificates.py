# SPDX-License-Identifier: Apache-2.0
"""Certificates for migrations, created with the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyvmm.sockets.tls import TlsFiles

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def certificate(place: Path, ca: str, name: str) -> TlsFiles:
    """Issue a certificate for `name` at 127.0.0.1 by the named CA; all files are in `place`."""
    files = TlsFiles(*(place / file for file in (f"{ca}.pem", f"{name}.pem", f"{name}.key")))
    if not files.ca.exists():
        _openssl(
            *("req", "-x509", *_KEY, "-keyout", place / f"{ca}.key", "-out", files.ca),
            *("-subj", f"/CN={ca}", "-days", 2),
        )
    _openssl(
        *("req", "-x509", *_KEY, "-keyout", files.key, "-out", files.certificate),
        *("-subj", f"/CN={name}", "-days", 2, "-CA", files.ca, "-CAkey", place / f"{ca}.key"),
        *("-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
        *("-addext", "basicConstraints=CA:FALSE"),
    )
    return files


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
