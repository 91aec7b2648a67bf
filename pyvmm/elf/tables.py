# SPDX-License-Identifier: Apache-2.0
"""Read the entry point, the loadable segments and the sections of a 64-bit ELF file.

pyelftools parses the file. Importing it takes as long as everything else between the command line
and the guest's first instruction, so the result is cached under the file's identity and its time of
modification; a kernel that was booted before needs no ELF library. A file modified within the last
two seconds is not cached: it may change again without a new time stamp.

A file is not trusted: any content results in tables or in `ElfError`. The numbers are those of the
file, unchecked.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

import contextlib
import os
import time
from typing import BinaryIO, NamedTuple

from pyvmm.cache.directory import cache_dir, keep_most_recent
from pyvmm.errors import UserError
from pyvmm.files.replacement import replace_file

MAGIC = b"\x7fELF"
MAX_SECTIONS = 4096
"""More than any kernel has."""
KEPT_FILES = 16
SETTLED_NS = 2_000_000_000


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

    machine: str
    """`e_machine` by its name in the specification, such as "EM_X86_64"; "" if not 64-bit."""
    entry: int
    segments: tuple[ElfSegment, ...]
    sections: dict[str, tuple[int, int]]
    """Offset and size in the file of the first section of each name."""


def read_elf_tables(file: BinaryIO) -> ElfTables | None:
    """Return the tables of an open file, None if it is not an ELF file. Raises `ElfError`."""
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        return None
    status = os.fstat(file.fileno())
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    name = "-".join(f"{number:x}" for number in numbers)
    # Without a usable cache the file is parsed every time.
    with contextlib.suppress(OSError, UserError, ValueError, TypeError, AttributeError):
        return _from_text((cache_dir("elf") / name).read_text())
    tables = _parse(file)
    if time.time_ns() - status.st_mtime_ns < SETTLED_NS:
        return tables
    with contextlib.suppress(OSError, UserError):
        kept = cache_dir("elf") / name
        replace_file(kept, _to_text(tables).encode())
        keep_most_recent("*", kept, KEPT_FILES)
    return tables


def _to_text(tables: ElfTables) -> str:
    """Return `tables` in lines; `json` would be one more import of a boot."""
    lines = [f"{tables.machine} {tables.entry} {len(tables.segments)} {len(tables.sections)}"]
    lines += [" ".join(map(str, segment)) for segment in tables.segments]
    lines += [f"{offset} {size} {name}" for name, (offset, size) in tables.sections.items()]
    return "\n".join(lines)


def _from_text(text: str) -> ElfTables:
    """Return what `_to_text` was given. Raises ValueError or TypeError for other text."""
    first, *lines = text.split("\n")
    machine, *numbers = first.split(" ")
    entry, segments, sections = map(int, numbers)
    if min(segments, sections) < 0 or len(lines) != segments + sections:
        raise ValueError
    places = {}
    for line in lines[segments:]:
        offset, size, name = line.split(" ", 2)
        places[name] = (int(offset), int(size))
    found = [ElfSegment(*map(int, line.split(" "))) for line in lines[:segments]]
    return ElfTables(machine, entry, tuple(found), places)


def _parse(file: BinaryIO) -> ElfTables:
    # Deferred: saves 29 ms where the tables are cached.
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(file)
        if elf.elfclass != 64:
            return ElfTables("", 0, (), {})
        segments = tuple(
            ElfSegment(*(segment[field] for field in ElfSegment._fields))
            for segment in elf.iter_segments("PT_LOAD")
        )
        sections: dict[str, tuple[int, int]] = {}
        if elf.num_sections() > MAX_SECTIONS:
            raise ElfError(f"it has {elf.num_sections()} sections")
        for section in elf.iter_sections():
            sections.setdefault(section.name, (section["sh_offset"], section["sh_size"]))
        return ElfTables(str(elf["e_machine"]), elf["e_entry"], segments, sections)
    except Exception as error:
        # pyelftools documents ELFError, but a damaged file makes it raise many other exceptions.
        raise ElfError(f"{type(error).__name__}: {error}") from error
