# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from pyvmm.cli.boot_options import BY_NAME
from pyvmm.cli.errors import CommandError
from pyvmm.errors import UserError
from pyvmm.units import parse_size

if TYPE_CHECKING:
    from pyvmm.sockets.tls import Security

_Command = TypeVar("_Command", bound=Callable[..., Any])


MAX_SECONDS = 86400


def parse_seconds(text: str) -> float:
    """Convert a number of seconds, at most a day; a click type. Raises click's usage error."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:  # false for "nan", too
        raise click.BadParameter(f"{text!r} is not a number of seconds from 0 to {MAX_SECONDS}")
    return seconds


def parse_positive_seconds(text: str) -> float:
    """Convert as `parse_seconds`, but refuse 0."""
    seconds = parse_seconds(text)
    if not seconds:
        raise click.BadParameter("0 seconds are too few")
    return seconds


def parse_size_value(text: str) -> int:
    """Convert a size to bytes as `parse_size`; a click type. Raises click's usage error."""
    try:
        return parse_size(text)
    except UserError as error:
        raise click.BadParameter(str(error)) from error


QMP_VARIABLE = "PYVMM_QMP"
"""Environment variable with the default of `--qmp`; only for commands to a running guest."""


_NAME, _NAMED_ADDRESS = "pyvmm.name", "pyvmm.named_address"
"""The keys of the guest of `--vm` and of its address in the context of a command."""


def _find_named(context: click.Context, option: click.Parameter, name: str | None) -> None:
    """Find the control socket of the guest of `--vm`, before `_choose_address`."""
    if name is not None:
        # Late: saves 9 ms (the list of guests) without --vm.
        from pyvmm.runtime_directory.guests import find_guest
        from pyvmm.sockets.addresses import format_unix_address

        context.meta[_NAME] = name
        context.meta[_NAMED_ADDRESS] = format_unix_address(find_guest(name).socket)


def named_guest() -> str | None:
    """Return the name that the command has got with `--vm`; None without."""
    name: str | None = click.get_current_context().meta.get(_NAME)
    return name


def _choose_address(
    context: click.Context, option: click.Parameter, address: str | None
) -> str | None:
    """Return the address of the guest of `--vm`, or that of `--qmp`, of which one may be given.

    A name on the command line precedes an address in the environment.
    """
    named: str | None = context.meta.get(_NAMED_ADDRESS)
    if named is None:
        return address
    if context.get_parameter_source("address") is ParameterSource.COMMANDLINE:
        raise CommandError("--vm and --qmp both name a guest", "leave one out")
    context.set_parameter_source("address", ParameterSource.COMMANDLINE)
    return named


def _require_address(context: click.Context, option: click.Parameter, address: str | None) -> str:
    """Return as `_choose_address`; raise click's usage error without an address."""
    address = _choose_address(context, option, address)
    if address is None:
        raise click.MissingParameter(None, context, option, "'--qmp' or '--vm'")
    return address


def _guest_options(choose: Callable[..., str | None]) -> Callable[[_Command], _Command]:
    """Return the decorator that gives a command `--vm` and `--qmp` (parameter `address`)."""
    name = click.option(
        "--vm",
        "vm_name",
        is_eager=True,
        expose_value=False,
        callback=_find_named,
        metavar="NAME",
        help="Name of the guest, as 'pyvmm ps' lists it.",
    )
    address = click.option(
        "--qmp",
        "address",
        callback=choose,
        envvar=QMP_VARIABLE,
        show_envvar=True,
        metavar="unix:PATH",
        help="Control socket of the guest, instead of its name.",
    )
    return lambda command: name(address(command))


qmp_option = _guest_options(_require_address)
optional_qmp_option = _guest_options(_choose_address)
unused_option = click.option(
    "--unused/--no-unused",
    "query_unused",
    default=True,
    show_default=True,
    help="Ask the guest which pages it does not use, and leave them out.",
)


def timeout_option(default_s: float, help_text: str) -> Callable[[_Command], _Command]:
    """Return the decorator that gives a command `--timeout S` (parameter `timeout_s`)."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=parse_seconds,
        default=default_s,
        show_default=True,
        metavar="S",
        help=help_text,
    )


def boot_option(name: str) -> Callable[[_Command], _Command]:
    """Return the decorator that gives a command the option `name` of `BOOT_OPTIONS`."""
    option = BY_NAME[name]
    kind: Any = {Path: click.Path(path_type=Path), parse_size: parse_size_value, str: None}.get(
        option.parse, option.parse
    )
    return click.option(
        *option.names,
        option.parameter,
        type=click.Choice(option.choices) if option.choices else kind,
        default=False if option.flag else option.default,
        multiple=option.multiple,
        is_flag=option.flag,
        **option.shown,
    )


def given_parameters(names: Collection[str]) -> Iterator[str]:
    """Yield the parameters in `names` that are on the command line, in the form they have there."""
    context = click.get_current_context()
    for parameter in context.command.get_params(context):
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name in names:
            option = parameter.param_type_name == "option"
            yield parameter.opts[0] if option else parameter.human_readable_name


# --- Protection of a migration's connection, the same options at both ends ------------------------
SECURITY_PARAMETERS = ("tls_ca", "tls_cert", "tls_key", "insecure")
"""Names of the parameters that `security_options` adds."""

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_SECURITY_OPTIONS = (
    click.option(
        "--tls-ca",
        type=_FILE,
        metavar="FILE",
        help="TLS: certificate of the CA that signed the other side's certificate.",
    ),
    click.option("--tls-cert", type=_FILE, metavar="FILE", help="TLS: certificate of this side."),
    click.option("--tls-key", type=_FILE, metavar="FILE", help="TLS: private key of this side."),
    click.option(
        "--insecure", is_flag=True, help="Allow a connection to another host without TLS."
    ),
)


def security_options(command: _Command) -> _Command:
    """Give a command the options whose values `security` takes."""
    for option in reversed(_SECURITY_OPTIONS):
        command = option(command)
    return command


def security(
    tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, insecure: bool
) -> Security:
    """Return what the security options ask for. Raises `CommandError`."""
    # Late: saves 9 ms (ssl) in every command that is not a migration.
    from pyvmm.sockets.tls import Security, TlsFiles

    if tls_ca and tls_cert and tls_key:
        return Security(TlsFiles(*(path.absolute() for path in (tls_ca, tls_cert, tls_key))))
    if tls_ca or tls_cert or tls_key:
        raise CommandError(
            "TLS needs a CA, a certificate and a key", "give --tls-ca, --tls-cert and --tls-key"
        )
    return Security(insecure=insecure)
