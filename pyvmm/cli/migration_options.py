# SPDX-License-Identifier: Apache-2.0
"""Options of both ends of a migration on the command line: how its connection is protected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyvmm.errors import UserError

if TYPE_CHECKING:
    from pyvmm.sockets.tls import Security

SECURITY_OPTIONS = ("tls_ca", "tls_cert", "tls_key", "insecure")
"""Names of their parameters."""

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OPTIONS = (
    click.option(
        "--tls-ca",
        type=_FILE,
        metavar="FILE",
        help="TLS: certificate of the CA that has signed the other side's.",
    ),
    click.option(
        "--tls-cert",
        type=_FILE,
        metavar="FILE",
        help="TLS: our certificate.",
    ),
    click.option("--tls-key", type=_FILE, metavar="FILE", help="TLS: its key."),
    click.option("--insecure", is_flag=True, help="Use a network without TLS."),
)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def security_options(command: _Command) -> _Command:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def security(
    tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, insecure: bool
) -> Security:
    """What the options mean. Raises `UserError`."""
    from pyvmm.sockets.tls import Security, TlsFiles

    if tls_ca and tls_cert and tls_key:
        return Security(TlsFiles(*(path.absolute() for path in (tls_ca, tls_cert, tls_key))))
    if tls_ca or tls_cert or tls_key:
        raise UserError(
            "TLS takes a CA, a certificate and a key", "give --tls-ca, --tls-cert and --tls-key"
        )
    return Security(insecure=insecure)
