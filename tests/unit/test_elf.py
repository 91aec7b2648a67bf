# SPDX-License-Identifier: Apache-2.0
"""Our reader of ELF tables against pyelftools, and against files that lie."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pyvmm.elf import Elf, ElfError, find_section, program_headers, read_header

INTERPRETER = Path(sys.executable).resolve()


def header(content: bytes) -> Elf:
    elf = read_header(io.BytesIO(content))
    assert elf is not None
    return elf


def elf_file(
    *, phoff: int = 64, phentsize: int = 56, phnum: int = 0, shoff: int = 64, shnum: int = 0
) -> bytes:
    """A file header with nothing after it."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    fields = (2, 62, 1, 0, phoff, shoff, 0, 64, phentsize, phnum, 64, shnum, 0)
    return ident + struct.pack("<HHIQQQIHHHHHH", *fields)


def test_a_real_program_reads_as_pyelftools_reads_it() -> None:
    with INTERPRETER.open("rb") as file:
        known = ELFFile(file)
        elf = read_header(file)
        assert elf is not None
        assert elf.entry == known["e_entry"]
        ours = [(p.p_offset, p.p_paddr, p.p_filesz, p.p_memsz) for p in program_headers(file, elf)]
        names = ("p_offset", "p_paddr", "p_filesz", "p_memsz")
        assert ours == [tuple(s[name] for name in names) for s in known.iter_segments()]
        for section in list(known.iter_sections())[1:]:
            place = (section["sh_offset"], section["sh_size"])
            assert find_section(file, elf, section.name.encode()) == place
        assert find_section(file, elf, b".tex") is None
        assert find_section(file, elf, b".pyvmm") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fEL", b"#!/bin/sh\n", b"\x7fELF\x01\x01".ljust(64), b"\x7fELF\x02\x02" * 20],
)
def test_other_files_and_other_elf_files_are_none(content: bytes) -> None:
    assert read_header(io.BytesIO(content)) is None


def test_a_cut_header_is_an_error() -> None:
    with pytest.raises(ElfError, match="ends within its header"):
        read_header(io.BytesIO(elf_file()[:63]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (elf_file(phnum=1), "ends before its headers"),
        (elf_file(phnum=1, phoff=1 << 40), "ends before its headers"),
        (elf_file(phnum=1, phoff=(1 << 64) - 1), "beyond any file"),
        (elf_file(phnum=1, phentsize=55), "a header has 55 bytes"),
        (elf_file(phnum=0xFFFF, phentsize=0xFFFF), "a header has 65535 bytes"),
    ],
)
def test_program_headers_that_are_not_there(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "elf"
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(ElfError, match=message):
        program_headers(file, header(content))


def test_sections_without_a_section_of_names_are_an_error() -> None:
    content = elf_file(shnum=1) + bytes(64)
    elf = header(content)._replace(section_names=1)
    with pytest.raises(ElfError, match="in none of them"):
        find_section(io.BytesIO(content), elf, b".text")


def test_a_name_beyond_the_file_is_no_name(tmp_path: Path) -> None:
    names_offset = struct.pack("<IIQQQQIIQQ", 7, 0, 0, 0, (1 << 64) - 64, 0, 0, 0, 0, 0)
    path = tmp_path / "elf"
    path.write_bytes(elf_file(shnum=1) + names_offset)
    with path.open("rb") as file, pytest.raises(ElfError, match="beyond any file"):
        find_section(file, header(path.read_bytes()), b".text")
