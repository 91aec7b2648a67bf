# SPDX-License-Identifier: Apache-2.0
"""Read the entry point, the loadable segments and the sections of a 64-bit ELF file.

Three tables are read: the ELF header, the program headers, and the section headers with their
names. Their entries have the sizes of the specification, so `struct` decodes each table at once;
that takes less time than a cache of the result would, and no library stays in the memory of a VMM.
Extended numbering, of files with 65,280 sections or more, is not followed.

A file is not trusted: any content results in tables or in `ElfError`. The numbers are those of the
file, unchecked.

ELF-64 object file format, sections 3 to 5 and 8.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAGIC = b"\x7fELF"
EM_X86_64 = 62
MAX_SECTIONS = 4096
MAX_SECTION_NAMES_BYTES = 1 << 16
"""Both more than any kernel has."""
MAX_NAME_BYTES = 256

_ELFCLASS32, _ELFCLASS64, _ELFDATA2LSB = 1, 2, 1
_PT_LOAD = 1
_HEADER = struct.Struct("<16s 2x H 4x QQQ 6x HHHHH")
_PROGRAM_HEADER = struct.Struct("<I 4x Q 8x QQQ 8x")
_SECTION_HEADER = struct.Struct("<I 20x QQ 24x")


class ElfError(Exception):
    """The ELF headers are invalid; the message gives the reason."""


class ElfSegment(NamedTuple):
    """A program header of type PT_LOAD, its fields named as in the specification."""

    p_offset: int
    p_paddr: int
    p_filesz: int
    p_memsz: int


class ElfTables(NamedTuple):
    """The headers of a file."""

    machine: int
    """`e_machine`, such as `EM_X86_64`; 0 if the file is not 64-bit and little-endian."""
    entry: int
    segments: tuple[ElfSegment, ...]
    sections: dict[str, tuple[int, int]]
    """Offset and size in the file of the first section of each name."""


def read_elf_tables(file: BinaryIO) -> ElfTables | None:
    """Return the tables of an open file, None if it is not an ELF file. Raises `ElfError`."""
    file.seek(0)
    header = file.read(_HEADER.size)
    if not header.startswith(MAGIC):
        return None
    if len(header) < _HEADER.size:
        raise ElfError("its header is truncated")
    ident, machine, entry, phoff, shoff, phentsize, phnum, shentsize, shnum, shstrndx = (
        _HEADER.unpack(header)
    )
    elf_class, encoding = ident[4], ident[5]
    if elf_class not in (_ELFCLASS32, _ELFCLASS64):
        raise ElfError(f"it is of class {elf_class}")
    if (elf_class, encoding) != (_ELFCLASS64, _ELFDATA2LSB):
        return ElfTables(0, 0, (), {})
    segments = tuple(
        ElfSegment(*segment)
        for kind, *segment in _read_table(file, _PROGRAM_HEADER, phoff, phnum, phentsize)
        if kind == _PT_LOAD
    )
    if shnum > MAX_SECTIONS:
        raise ElfError(f"it has {shnum} sections")
    sections = list(_read_table(file, _SECTION_HEADER, shoff, shnum, shentsize))
    return ElfTables(machine, entry, segments, _by_name(file, sections, shstrndx))


def _read_table(
    file: BinaryIO, entry: struct.Struct, offset: int, count: int, entry_bytes: int
) -> Iterator[tuple[int, ...]]:
    """Return the entries of a table of headers, of which the header has the last three numbers."""
    if count == 0:
        return iter(())
    if entry_bytes != entry.size:
        raise ElfError(f"its headers have {entry_bytes} bytes, not {entry.size}")
    return entry.iter_unpack(_read(file, offset, count * entry.size))


def _by_name(
    file: BinaryIO, sections: list[tuple[int, ...]], names_index: int
) -> dict[str, tuple[int, int]]:
    """Return offset and size of the first of `sections` of each name; 0 stands for no names."""
    if not sections or names_index == 0:
        return {}
    if names_index >= len(sections):
        raise ElfError("its section names are in no section")
    _, offset, size = sections[names_index]
    if size > MAX_SECTION_NAMES_BYTES:
        raise ElfError(f"its section names have {size} bytes")
    names = _read(file, offset, size)
    found: dict[str, tuple[int, int]] = {}
    for name_offset, *place in sections:
        end = names.find(b"\0", name_offset, name_offset + MAX_NAME_BYTES)
        if end < 0:
            raise ElfError("the name of a section does not end")
        found.setdefault(names[name_offset:end].decode(errors="replace"), (place[0], place[1]))
    return found


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return `size` bytes of the file, of which the file may have fewer."""
    if offset + size > os.fstat(file.fileno()).st_size:
        raise ElfError("a table does not lie inside the file")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ElfError("it was truncated while it was read")
    return data
