# SPDX-License-Identifier: Apache-2.0
"""The command line: one group that imports a subcommand only when it is called.

`COMMANDS` gives the module of each subcommand and its line in `pyvmm --help`, so that no command
pays for importing the others. `LazyGroup.main` is the only place that turns exceptions into exit
statuses: 0 for success (or the int that a subcommand returns); 2, with one line on standard error,
for everything that the user can correct (125 when the lab failed); 1 when standard output cannot be
written; 130 after Ctrl-C. Any other exception is a bug in pyvmm and keeps its traceback.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from pyvmm.errors import UserError
from pyvmm.standard_streams.descriptors import (
    discard_output,
    open_missing_descriptors,
    wait_for_readers,
)
from pyvmm.standard_streams.text import print_message
from pyvmm.version import VERSION

EXIT_USER_ERROR = UserError.exit_status
EXIT_OUTPUT_LOST = 1
EXIT_INTERRUPTED = 130
MIN_DESCRIPTORS = 16
"""With fewer descriptors no command works; a guest needs more."""
_MORE_DESCRIPTORS = "raise the limit, for example: ulimit -n 256"
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


THEMES = (
    "Run a guest",
    "Control a running guest",
    "Save and migrate a running guest",
    "Tools",
)
"""The sections of the list of commands."""
RUN, CONTROL, MOVE, TOOLS = THEMES


class LazyCommand(NamedTuple):
    """The location of a subcommand, its line in the list of commands, and its section of it."""

    module: str
    attribute: str
    short_help: str
    theme: str


COMMANDS = {
    "run": LazyCommand(
        "pyvmm.cli.run", "run", "Run a Linux guest with its console on this terminal.", RUN
    ),
    "demo": LazyCommand(
        "pyvmm.cli.demo.command",
        "demo",
        "Inflate and deflate a real guest's balloon, and report.",
        RUN,
    ),
    "status": LazyCommand(
        "pyvmm.cli.status",
        "status",
        "Show the state of a running guest and of its balloon.",
        CONTROL,
    ),
    "ps": LazyCommand("pyvmm.cli.ps", "ps", "List the running guests.", CONTROL),
    "top": LazyCommand(
        "pyvmm.cli.top", "top", "Show the running guests with their activity, live.", CONTROL
    ),
    "stop": LazyCommand("pyvmm.cli.run_state", "stop", "Pause a running guest.", CONTROL),
    "cont": LazyCommand("pyvmm.cli.run_state", "cont", "Resume a paused guest.", CONTROL),
    "quit": LazyCommand("pyvmm.cli.run_state", "quit_guest", "End a guest at once.", CONTROL),
    "balloon": LazyCommand(
        "pyvmm.cli.balloon",
        "balloon",
        "Show or change how much RAM a running guest has.",
        CONTROL,
    ),
    "stats": LazyCommand(
        "pyvmm.cli.stats",
        "stats",
        "Show the memory statistics that a running guest reports.",
        CONTROL,
    ),
    "recording": LazyCommand(
        "pyvmm.cli.recording",
        "recording",
        "Show or export what --record has recorded.",
        TOOLS,
    ),
    "scope": LazyCommand(
        "pyvmm.cli.scope",
        "scope",
        "Show the events of a running guest or a recording in a browser.",
        TOOLS,
    ),
    "unused": LazyCommand(
        "pyvmm.cli.unused",
        "unused",
        "Show which memory a running guest does not use.",
        CONTROL,
    ),
    "snapshot": LazyCommand(
        "pyvmm.cli.snapshot", "snapshot", "Write a running guest to a file.", MOVE
    ),
    "migrate": LazyCommand(
        "pyvmm.cli.migrate", "migrate", "Migrate a running guest to another pyvmm.", MOVE
    ),
    "learn": LazyCommand(
        "pyvmm.cli.learn", "learn", "Learn virtio in chapters with guests and exercises.", TOOLS
    ),
    "image": LazyCommand("pyvmm.cli.image", "image", "Build and inspect guest images.", TOOLS),
    "cache": LazyCommand(
        "pyvmm.cli.cache", "cache", "Show, prune or limit the cache of images and kernels.", TOOLS
    ),
    "doctor": LazyCommand(
        "pyvmm.cli.doctor",
        "doctor",
        "Report where guests will run, why, and what to install.",
        TOOLS,
    ),
    "lab": LazyCommand("pyvmm.cli.lab", "lab", "Run a command where KVM works.", TOOLS),
    "bench": LazyCommand(
        "bench.cli",
        "bench",
        "Measure pyvmm beside QEMU and beside the limits of the machine.",
        TOOLS,
    ),
}

OPTIONAL_PACKAGES = {
    "bench": "the benchmarks are not installed; run them in a checkout of pyvmm",
    "pyvmm_native": "the native modules are not built; run 'make native'",
}
"""Packages that an installation or a checkout may lack, and the error to print then."""


class LazyGroup(click.Group):
    """The click group of `COMMANDS`, with one policy for errors and exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(entry.module)
        command = getattr(module, entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for theme in THEMES:
            with formatter.section(theme):
                formatter.write_dl(
                    [
                        (name.ljust(width), entry.short_help)
                        for name, entry in COMMANDS.items()
                        if entry.theme == theme
                    ]
                )

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; with `standalone_mode` (the default) it ends in `SystemExit`."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        open_missing_descriptors()
        wait_for_readers()
        if 0 < (limit := os.sysconf("SC_OPEN_MAX")) < MIN_DESCRIPTORS:
            _print_error(f"at most {limit} files may be open, too few; {_MORE_DESCRIPTORS}")
            sys.exit(EXIT_USER_ERROR)
        try:
            result = super().main(args, prog_name or "pyvmm", complete_var, False, **extra)
            sys.stdout.flush()
        except ImportError as error:
            if not (explanation := _explain_import(error)):
                raise
            _print_error(explanation)
            sys.exit(EXIT_USER_ERROR)
        except UserError as error:
            # Late: saves 14 ms (the errors of every package) without an error.
            from pyvmm.cli.remedies import with_remedy

            _print_error(with_remedy(error))
            sys.exit(error.exit_status)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(EXIT_USER_ERROR)
        except click.ClickException as error:
            _print_error(_describe(error))
            sys.exit(max(error.exit_code, EXIT_USER_ERROR))
        except (click.Abort, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            discard_output(sys.stdout.fileno())  # its reader is gone
            sys.exit(EXIT_OUTPUT_LOST)
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                _print_error(f"too many open files; {_MORE_DESCRIPTORS}")
                sys.exit(EXIT_USER_ERROR)
            if error.errno not in _DISK_FULL or error.filename is not None:
                raise
            discard_output(sys.stdout.fileno())
            _print_error(f"standard output cannot be written: {error.strerror}")
            sys.exit(EXIT_OUTPUT_LOST)
        sys.exit(result if isinstance(result, int) else 0)


def _explain_import(error: ImportError) -> str:
    """Return the reason that a package is missing or not ours, with its remedy; "" if unknown."""
    # Late: saves 9 ms (package metadata) without an error.
    from pyvmm.cli.installation import find_conflicts

    if conflicts := find_conflicts():
        return f"{conflicts[0].fact}; run: {conflicts[0].remedy}"
    if isinstance(error, ModuleNotFoundError):
        return OPTIONAL_PACKAGES.get((error.name or "").partition(".")[0], "")
    return ""


def _print_error(text: str) -> None:
    """Print `text` on standard error as one line, without its line breaks."""
    print_message(" ".join(text.split()))


def _describe(error: click.ClickException) -> str:
    """Return the message of `error` and the help page to see."""
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message}; see '{context.command_path} --help'" if context else message


@click.group(
    cls=LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(VERSION, prog_name="pyvmm")
def main() -> None:
    """Run, measure and study memory ballooning with a minimal virtual machine monitor.

    \b
    Boot a guest, then return most of its memory to the host:
      pyvmm run guest.img --memory 1G --qmp unix:/tmp/vm.sock
      pyvmm balloon 256M --qmp unix:/tmp/vm.sock

    \b
    When something is missing:
      pyvmm doctor

    A SIZE is a number of bytes, or a number with K, M, G or T, which are powers of 1024: 64K, 1.5G.
    """
