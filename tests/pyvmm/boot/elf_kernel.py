# SPDX-License-Identifier: Apache-2.0
"""Small ELF-64 kernels (ELF-64 object file format, sections 4 and 8)."""

import struct

LOAD_GPA = 0x10_0000
HEADER_BYTES, PROGRAM_HEADER_BYTES = 64, 56
CODE_OFFSET = HEADER_BYTES + PROGRAM_HEADER_BYTES


def elf_kernel(
    code: bytes = b"\xf4",
    *,
    gpa: int = LOAD_GPA,
    entry: int | None = None,
    memory_bytes: int | None = None,
    file_bytes: int | None = None,
    machine: int = 62,
    segments: int = 1,
) -> bytes:
    """Return an executable with one segment, `code` at `gpa`; every field can be invalid."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<HHIQQQIHHHHHH",
        *(2, machine, 1, gpa if entry is None else entry, HEADER_BYTES, 0, 0),
        *(HEADER_BYTES, PROGRAM_HEADER_BYTES, segments, 64, 0, 0),
    )
    size = len(code) if file_bytes is None else file_bytes
    memory = size if memory_bytes is None else memory_bytes
    program = struct.pack("<IIQQQQQQ", 1, 7, CODE_OFFSET, gpa, gpa, size, memory, 4096)
    return ident + header + program + code
