# SPDX-License-Identifier: Apache-2.0
"""The setup header: a bzImage describes itself in it, and the loader replies in the zero page.

Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

from typing import NamedTuple

HEADER_OFFSET = 0x1F1
MAGIC = b"HdrS"


class SetupHeader(NamedTuple):
    """The fields that the loader uses; `raw` is the whole header, from offset 0x1F1 on."""

    raw: bytes
    command_line_max_bytes: int
    initrd_end: int
    """First address beyond those that an initramfs may use."""


def is_bzimage(beginning: bytes) -> bool:
    """Return whether a file with this `beginning` (at least 518 bytes) has a setup header."""
    return beginning[0x202:0x206] == MAGIC
