# SPDX-License-Identifier: Apache-2.0
"""Guests that a program runs: boot one from Python, run commands in it, resize its balloon.

    from pyvmm.harness import Guest

    with Guest("guest.img", ram_bytes=1 << 30) as guest:
        result = guest.run(["free", "-m"])
        print(result.stdout, result.status)
        guest.resize_balloon(target_pages=1 << 16)

`Guest` waits for every step. `GuestSession` is the same for asynchronous programs, and gives access
to all of the machine:

    from pyvmm.harness import config_with_agent, guest_session

    config, overlay = config_with_agent(Path("guest.img"), ram_bytes=1 << 30)
    async with guest_session(config, overlay=overlay) as guest:
        result = await guest.run(["free", "-m"])
        await guest.resize_balloon(target_pages=1 << 16)

Commands run through the guest agent, which is in the initramfs of a machine of `config_with_agent`.
A guest can be driven by its serial console as well, without the agent: with the configuration of
`config_for_image(run="pattern")`, the init of a guest.img runs `pattern`, a program that reads one
command a line from the console and answers it with one line. `command` sends it any command;
`shell` has it run a shell command. `expect` waits for any other output. The demonstration, the
benchmarks and many tests use guests this way.

Belongs here: `Guest` (`blocking_guest`) and `GuestSession` (`guest_session`), a guest of this
process's virtual machine; its configuration (`agent_config`) and its commands (`command_runner`,
`completed_command`); `ConsoleGuest` (`console_guest`), the part that needs nothing but the console
and so serves other VMMs too; `ScriptedConsole` (`scripted_console`), the far end of the serial
line; and the exceptions that a script sees (`errors`). This package exports what scripts use.
"""

from pyvmm.balloon.guest_requests import DriverUnavailable, GuestPaused
from pyvmm.balloon.safe_target import UnsafeTarget
from pyvmm.boot.image_config import config_for_image
from pyvmm.guest_agent.errors import AgentFailed, CommandNotStarted, CommandUnusable
from pyvmm.harness.agent_config import ConfigWithAgent, GuestOptions, config_with_agent
from pyvmm.harness.blocking_guest import Guest
from pyvmm.harness.completed_command import CompletedCommand
from pyvmm.harness.errors import (
    CommandFailed,
    CommandTimeout,
    ConsoleTimeout,
    GuestExited,
    OutputTooLong,
    SnapshotFailed,
)
from pyvmm.harness.guest_session import (
    GuestSession,
    ResizeResult,
    guest_session,
    incoming_session,
    restored_session,
    start_session,
)
from pyvmm.machine.catalogue import CATALOGUE, CatalogueEntry, Ports
from pyvmm.machine.errors import KvmUnusable

__all__ = [
    "CATALOGUE",
    "AgentFailed",
    "CatalogueEntry",
    "CommandFailed",
    "CommandNotStarted",
    "CommandTimeout",
    "CommandUnusable",
    "CompletedCommand",
    "ConfigWithAgent",
    "ConsoleTimeout",
    "DriverUnavailable",
    "Guest",
    "GuestExited",
    "GuestOptions",
    "GuestPaused",
    "GuestSession",
    "KvmUnusable",
    "OutputTooLong",
    "Ports",
    "ResizeResult",
    "SnapshotFailed",
    "UnsafeTarget",
    "config_for_image",
    "config_with_agent",
    "guest_session",
    "incoming_session",
    "restored_session",
    "start_session",
]
