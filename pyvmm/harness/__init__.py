# SPDX-License-Identifier: Apache-2.0
"""Guests that a script runs: boot one from Python, run commands in it, resize its balloon.

    from pyvmm.harness import config_for_image, guest_session

    config = config_for_image(Path("guest.img"), ram_bytes=1 << 30, run="pattern")
    async with guest_session(config) as guest:
        await guest.wait_for_user_space()
        print(await guest.shell("cat /proc/meminfo"))
        await guest.command("alloc 64")
        result = await guest.resize_balloon(target_pages=1 << 16)
        guest.console.send_line("quit")
        exit_result = await guest.wait_for_exit()

The guest is a guest.img whose init runs `pattern`, a program that reads one command a line from the
serial console and answers it with one line. `command` sends it any command; `shell` has it run a
shell command. `expect` waits for any other output. The demonstration, the benchmarks and the tests
use guests this way.

Belongs here: `GuestSession` (`guest_session`), a guest of this process's virtual machine;
`ConsoleGuest` (`console_guest`), the part that needs nothing but the console and so serves other
VMMs too; `ScriptedConsole` (`scripted_console`), the far end of the serial line; and the
exceptions that a script sees (`errors`). This package exports what scripts use.
"""

from pyvmm.balloon.guest_requests import DriverUnavailable, GuestPaused
from pyvmm.balloon.safe_target import UnsafeTarget
from pyvmm.boot.image_config import config_for_image
from pyvmm.harness.errors import CommandFailed, ConsoleTimeout, GuestExited, SnapshotFailed
from pyvmm.harness.guest_session import (
    GuestSession,
    ResizeResult,
    guest_session,
    incoming_session,
    restored_session,
    start_session,
)
from pyvmm.machine.catalogue import CATALOGUE, CatalogueEntry, Ports

__all__ = [
    "CATALOGUE",
    "CatalogueEntry",
    "CommandFailed",
    "ConsoleTimeout",
    "DriverUnavailable",
    "GuestExited",
    "GuestPaused",
    "GuestSession",
    "Ports",
    "ResizeResult",
    "SnapshotFailed",
    "UnsafeTarget",
    "config_for_image",
    "guest_session",
    "incoming_session",
    "restored_session",
    "start_session",
]
