# SPDX-License-Identifier: Apache-2.0
"""The mark by which a reboot after a panic is told from any other."""

from __future__ import annotations

import struct

import pytest

from devices.testing.ram import AnonymousRam
from pyvmm.boot.panic import PANIC_PARAMETERS, REBOOT_MODE_GPA, rebooted_after_panic


@pytest.mark.parametrize(
    ("mode", "command_line", "panicked"),
    [
        (0x1234, f"console=ttyS0 {PANIC_PARAMETERS} quiet", True),
        (0x0000, f"console=ttyS0 {PANIC_PARAMETERS} quiet", False),
        (0xFFFF, f"console=ttyS0 {PANIC_PARAMETERS} quiet", False),
        (0x1234, f"{PANIC_PARAMETERS} reboot=w", False),
        (0x1234, "console=ttyS0 panic=-1", False),
        (0x1234, "", False),
    ],
)
def test_only_a_warm_reboot_that_nothing_else_asks_for_is_a_panic(
    mode: int, command_line: str, panicked: bool
) -> None:
    ram = AnonymousRam()
    ram.memory.write(REBOOT_MODE_GPA, struct.pack("<H", mode))
    assert rebooted_after_panic(ram.memory, command_line) is panicked


def test_the_init_of_an_initramfs_does_not_see_the_parameter_panic() -> None:
    """Debian's reboots on a failure, and for break=, if a word begins with panic=."""
    assert '"panic=-1"' in PANIC_PARAMETERS
    assert not any(word.startswith("panic=") for word in PANIC_PARAMETERS.split())
