# SPDX-License-Identifier: Apache-2.0
"""Boot a VM and run it to its end: start its guest, then import the modules that serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cli.vm_start import VmStart
from pyvmm.console.writer import ConsoleWriter
from pyvmm.standard_streams.text import print_message

if TYPE_CHECKING:
    from pyvmm.cli.command_request import CommandOptions
    from pyvmm.cli.console.ports import PortOption
    from pyvmm.cli.record_options import RecordOptions
    from pyvmm.machine.early_boot import EarlyBoot
    from pyvmm.runtime_directory.announcement import ListeningSocket


def boot_on_terminal(
    boot: EarlyBoot,
    sockets: Sequence[Path],
    ports: Sequence[PortOption] = (),
    record: RecordOptions | None = None,
    announce: Callable[[], ListeningSocket | None] = lambda: None,
) -> int:
    """Run the VM of `boot` to its end, with its console on this terminal.

    `announce`, called once the guest runs, returns the socket by which it is announced, if it is.
    Returns the exit status.
    """
    with ExitStack() as stack:
        start = VmStart(stack, sockets, ports, record)
        writer = ConsoleWriter(1)
        stack.callback(writer.close, 0)
        start.boot(boot, writer)
        start.announced = announce()
        # Late: 0.2 ms, while the guest runs.
        from pyvmm.cli.deferred_modules import deferred_modules

        with deferred_modules():
            # Late: 5 ms, while the guest runs; first, because the guest may cause a warning.
            from pyvmm.standard_streams.log import set_up_log

        set_up_log()
        # Late: 30 ms, while the guest runs.
        from pyvmm.cli.terminal_run import serve_booted

        return serve_booted(start, writer)


def boot_with_command(
    boot: EarlyBoot,
    command: CommandOptions,
    sockets: Sequence[Path],
    ports: Sequence[PortOption] = (),
    record: RecordOptions | None = None,
    announce: Callable[[], ListeningSocket | None] = lambda: None,
) -> int:
    """Run the VM of `boot`, and `command` in it.

    `announce` is as for `boot_on_terminal`. Returns the exit status.
    """
    # Late: saves 2 ms without a command.
    from pyvmm.cli.command_status import write_status
    from pyvmm.cli.console.kernel_log import KernelLog

    with ExitStack() as stack:
        start = VmStart(stack, sockets, ports, record)
        log = KernelLog(start.loop, command.log)
        stack.callback(log.close)
        start.boot(boot, log)
        start.announced = announce()
        # Late: 50 ms, while the guest runs.
        from pyvmm.cli.command_run import serve_command

        end = serve_command(start, command, log)
    if end.message:
        print_message(end.message)
    if command.status_file is not None:
        write_status(command.status_file, end)
    return end.status
