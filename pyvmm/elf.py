# SPDX-License-Identifier: Apache-2.0
"""The two tables of a 64-bit ELF file that booting a kernel needs: program headers and sections.

Two structures and a loop. A library for all of ELF and DWARF would do this as well, but importing
one takes longer than everything else between the command line and the guest's first instruction.
A file is hostile: every number in it may be anything, and `ElfError` is all that comes of it.

ELF-64 object file format, version 1.5: file header (4), sections (5), program header table (8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAGIC = b"\x7fELF"
CLASS_64, LITTLE_ENDIAN = 2, 1
EM_X86_64 = 62
PT_LOAD = 1
MAX_ENTRY_BYTES = 256  # 56 and 64 in this version; bounds a table of 65,535 entries to 16 MiB

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")


class ElfError(Exception):
    """The file is not what its headers say; says why."""


class Elf(NamedTuple):
    """What the file header says; tables are (offset in the file, size of an entry, entries)."""

    machine: int
    entry: int
    program_headers: tuple[int, int, int]
    sections: tuple[int, int, int]
    section_names: int
    """Number of the section with the sections' names."""


class ProgramHeader(NamedTuple):
    """A program header, its fields named as in the specification."""

    p_type: int
    p_flags: int
    p_offset: int
    p_vaddr: int
    p_paddr: int
    p_filesz: int
    p_memsz: int
    p_align: int


def read_header(file: BinaryIO) -> Elf | None:
    """The file header; None for anything but a 64-bit little-endian ELF. Raises `ElfError`."""
    file.seek(0)
    raw = file.read(_HEADER.size)
    if not raw.startswith(MAGIC):
        return None
    if len(raw) < _HEADER.size:
        raise ElfError("it ends within its header")
    if raw[4:6] != bytes((CLASS_64, LITTLE_ENDIAN)):
        return None
    _, _, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, names = (
        _HEADER.unpack(raw)
    )
    return Elf(machine, entry, (phoff, phentsize, phnum), (shoff, shentsize, shnum), names)


def program_headers(file: BinaryIO, elf: Elf) -> list[ProgramHeader]:
    """All program headers; raises `ElfError`."""
    return [ProgramHeader(*entry) for entry in _table(file, elf.program_headers, _PROGRAM_HEADER)]


def find_section(file: BinaryIO, elf: Elf, name: bytes) -> tuple[int, int] | None:
    """Offset and size in the file of the first section called `name`; raises `ElfError`."""
    sections = list(_table(file, elf.sections, _SECTION_HEADER))
    if not sections:
        return None
    if elf.section_names >= len(sections):
        raise ElfError("the names of its sections are in none of them")
    names_offset = sections[elf.section_names][4]
    for sh_name, _, _, _, sh_offset, sh_size, *_ in sections:
        if _read(file, names_offset + sh_name, len(name) + 1) == name + b"\0":
            return sh_offset, sh_size
    return None


def _table(
    file: BinaryIO, table: tuple[int, int, int], entry: struct.Struct
) -> Iterator[tuple[int, ...]]:
    """The entries of a table; they may be longer than what is known of them."""
    offset, size, count = table
    if count and not entry.size <= size <= MAX_ENTRY_BYTES:
        raise ElfError(f"it says that a header has {size} bytes")
    raw = _read(file, offset, size * count)
    if len(raw) < size * count:
        raise ElfError("it ends before its headers do")
    return (entry.unpack_from(raw, size * index) for index in range(count))


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    try:
        file.seek(offset)
    except (OSError, OverflowError, ValueError) as error:
        raise ElfError(f"an offset {offset:#x} is beyond any file") from error
    return file.read(length)
