# SPDX-License-Identifier: Apache-2.0
"""The command line: one group that imports a subcommand only when it is called.

`COMMANDS` gives the module of each subcommand and its line in `pyvmm --help`, so that no command
pays for importing the others. `LazyGroup.main` leaves the exit status to `pyvmm.cli.exit_status`,
after it has reported click's own errors.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from pyvmm.cli.exit_status import EXIT_INTERRUPTED, EXIT_USER_ERROR, exit_with, print_error
from pyvmm.version import VERSION

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


class LazyGroup(click.Group):
    """The click group of `COMMANDS`, with our errors and exit statuses."""

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

        def run() -> Any:
            try:
                return super(LazyGroup, self).main(
                    args, prog_name or "pyvmm", complete_var, False, **extra
                )
            except click.exceptions.NoArgsIsHelpError as error:
                error.show()
                return EXIT_USER_ERROR
            except click.ClickException as error:
                print_error(_describe(error))
                return max(error.exit_code, EXIT_USER_ERROR)
            except click.Abort:
                return EXIT_INTERRUPTED

        return exit_with(run)


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
