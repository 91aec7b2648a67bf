# SPDX-License-Identifier: Apache-2.0
"""The command of `pyvmm run IMAGE -- COMMAND`, and the options for it and for files of the guest.

Everything after `--` is the command; click sees only what is in front of it, so that a COMMAND is
never taken for IMAGE.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from pyvmm.cli.options import parse_positive_seconds
from pyvmm.errors import UserError

HOME = "/root"
"""The guest's directory for files, and the working directory of commands."""
FAILED_STATUS = 125
"""Exit status of pyvmm's own failures when it runs a COMMAND, as that of env(1)."""
COMMAND_KEY = "pyvmm.command"
"""Key of the words after `--` in click's context."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


class CommandUsageError(click.UsageError):
    """Invalid options of a run with a COMMAND."""

    exit_code = FAILED_STATUS


class RunCommand(click.Command):
    """A click command that keeps the words after `--` apart."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            index = args.index("--")
            ctx.meta[COMMAND_KEY] = tuple(args[index + 1 :])
            args = args[:index]
            if not ctx.meta[COMMAND_KEY]:
                raise click.UsageError("there is no command after --", ctx)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if COMMAND_KEY not in ctx.meta:
                raise
            raise CommandUsageError(error.format_message(), ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        if COMMAND_KEY not in ctx.meta:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except UserError as error:
            error.exit_status = FAILED_STATUS
            if status_file := ctx.params["status_file"]:
                # Late: saves 3 ms without a failure.
                from pyvmm.cli.command_status import CommandEnd, write_status

                with suppress(UserError):  # the first error is the one to report
                    write_status(status_file, CommandEnd("failed", FAILED_STATUS, str(error)))
            raise

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND [ARG]...]"]


_OPTIONS = (
    click.option(
        "--put",
        "put_values",
        multiple=True,
        metavar="PATH[::WHERE]",
        help="Copy a file or directory into the guest before it boots, by default to /root.",
    ),
    click.option(
        "--modules",
        "modules_value",
        default="auto",
        show_default=True,
        metavar="auto|DIR|DEB|no",
        help=(
            "virtio drivers to add for a kernel of --kernel: those installed for its release, of a"
            " directory or a Debian package, or none."
        ),
    ),
    click.option(
        "--get",
        "get_values",
        multiple=True,
        metavar="WHERE::PATH",
        help="After COMMAND, copy a file or directory of the guest to PATH.",
    ),
    click.option(
        "--env",
        "variables",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Set a variable for COMMAND, or pass on that of this environment.",
    ),
    click.option(
        "--directory",
        metavar="DIR",
        default=HOME,
        show_default=True,
        help="Working directory of COMMAND in the guest.",
    ),
    click.option(
        "--log",
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE",
        help="With COMMAND, write the kernel's log there; - is standard error output.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=parse_positive_seconds,
        metavar="S",
        help="End COMMAND and the guest after this many seconds, with status 124.",
    ),
    click.option(
        "--status-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write there as JSON how COMMAND ended.",
    ),
)
ONLY_WITH_COMMAND = ("get_values", "variables", "directory", "log", "timeout_s", "status_file")
"""Parameters that need a COMMAND."""


def command_options(command: _Command) -> _Command:
    """Give a command the options of this module."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
