# SPDX-License-Identifier: Apache-2.0
"""The setup header: where a bzImage says what it is, and what a loader answers in the zero page.

Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

from typing import NamedTuple

HEADER_OFFSET = 0x1F1
MAGIC = b"HdrS"


class SetupHeader(NamedTuple):
    """What the loader takes from the header; `raw` are its bytes, from offset 0x1F1 on."""

    raw: bytes
    command_line_max_bytes: int
    initrd_end: int
    """First address that an initramfs may no longer use."""


def is_bzimage(beginning: bytes) -> bool:
    """Whether a file that begins so (518 bytes or more) has a setup header."""
    return beginning[0x202:0x206] == MAGIC
