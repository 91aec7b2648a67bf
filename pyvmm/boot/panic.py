# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters that make a panic of any Linux end the VM, recognizable as a panic.

Linux halts after a panic, unless `panic=-1` has it reboot at once. The init of Debian's initramfs
reads the same parameter and then gives no shell on a failure or for its break=; so it is quoted,
which Linux undoes and a shell that splits the line at blanks does not. A kernel with a pvpanic
driver has reported the panic by then. A stock kernel has that driver as a module at best, and its
reboot would look like one of its user. So `reboot=panic_warm` has it mark this one: before any
reboot Linux stores the mode in the BIOS data area, where firmware would look for it (0x1234 is
warm, arch/x86/kernel/reboot.c), and this option sets that mode for the reboot after a panic only
(Linux 5.2 and later; an older one ignores it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm_native.memory import GuestMemory

_REBOOT_OPTION = "reboot="
_MARK_PANICS = f"{_REBOOT_OPTION}panic_warm"
PANIC_PARAMETERS = f'"panic=-1" {_MARK_PANICS}'
"""For the beginning of a command line: what follows takes precedence."""

REBOOT_MODE_GPA = 0x472
"""The reset flag of the BIOS data area, 16 bits."""
WARM_REBOOT = 0x1234


def rebooted_after_panic(memory: GuestMemory, command_line: str) -> bool:
    """Return whether a guest booted with `command_line`, which now reboots, has panicked.

    False if the command line has another option `reboot=`, as that may set the mode of every
    reboot.
    """
    options = {word for word in command_line.split() if word.startswith(_REBOOT_OPTION)}
    if options != {_MARK_PANICS}:
        return False
    return memory.read(REBOOT_MODE_GPA, 2) == WARM_REBOOT.to_bytes(2, "little")
