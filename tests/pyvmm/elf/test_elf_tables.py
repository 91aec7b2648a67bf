# SPDX-License-Identifier: Apache-2.0
"""ELF tables: equal to those of pyelftools, and `ElfError` for any damage."""

from __future__ import annotations

import contextlib
import struct
import sys
import tempfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

import pyvmm_native
from pyvmm.elf.tables import (
    EM_X86_64,
    MAX_SECTION_NAMES_BYTES,
    MAX_SECTIONS,
    ElfError,
    ElfTables,
    read_elf_tables,
)
from tests.pyvmm.boot.elf_kernel import elf_kernel

INTERPRETER = Path(sys.executable).resolve()
NATIVE = sorted(Path(pyvmm_native.__file__).parent.glob("*.so"))[:2]


def tables(path: Path) -> ElfTables | None:
    with path.open("rb") as file:
        return read_elf_tables(file)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def elf_with_sections(
    names: bytes = b"\0.text\0.note\0.text\0",
    offsets: tuple[int, ...] = (0, 1, 7, 13),
    names_section: int = 0,
    names_bytes: int | None = None,
    count: int | None = None,
    entry_bytes: int = 64,
) -> bytes:
    """Return an ELF file whose section i has its name at `offsets[i]` and lies at i * 100.

    The names are in `names_section`, by default the last one, which has no name.
    """
    content = bytearray(elf_kernel())
    names_offset = len(content)
    content += names
    table_offset = len(content)
    for index, name in enumerate((*offsets, 0)):
        last = index == len(offsets)
        place = names_offset if last else index * 100
        size = (len(names) if names_bytes is None else names_bytes) if last else index
        content += struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, place, size, 0, 0, 1, 0)
    struct.pack_into("<Q", content, 40, table_offset)  # e_shoff
    sections = len(offsets) + 1 if count is None else count
    # e_shentsize, e_shnum, e_shstrndx
    struct.pack_into("<HHH", content, 58, entry_bytes, sections, names_section or len(offsets))
    return bytes(content)


@pytest.mark.parametrize("file", [INTERPRETER, *NATIVE])
def test_the_tables_equal_those_of_pyelftools(file: Path) -> None:
    found = tables(file)
    assert found is not None
    with file.open("rb") as opened:
        known = ELFFile(opened)
        assert found.machine == EM_X86_64
        assert known["e_machine"] == "EM_X86_64"
        assert found.entry == known["e_entry"]
        assert [tuple(one) for one in found.segments] == [
            (one["p_offset"], one["p_paddr"], one["p_filesz"], one["p_memsz"])
            for one in known.iter_segments("PT_LOAD")
        ]
        sections: dict[str, tuple[int, int]] = {}
        for section in known.iter_sections():
            sections.setdefault(section.name, (section["sh_offset"], section["sh_size"]))
        assert found.sections == sections


def test_the_first_section_of_a_name_counts(tmp_path: Path) -> None:
    found = tables(written(tmp_path / "file", elf_with_sections()))
    assert found is not None
    assert found.sections[".text"] == (100, 1)
    assert found.sections[".note"] == (200, 2)


@pytest.mark.parametrize(
    "damaged",
    [
        elf_with_sections(names_section=17),
        elf_with_sections(names=b"\0.text"),
        elf_with_sections(offsets=(0, 99999)),
        elf_with_sections(names_bytes=MAX_SECTION_NAMES_BYTES + 1),
        elf_with_sections(names_bytes=60000),
        elf_with_sections(count=MAX_SECTIONS + 1),
        elf_with_sections(count=MAX_SECTIONS),
        elf_with_sections(entry_bytes=40),
        elf_with_sections(names=b"\0" + b"n" * 1000 + b"\0", offsets=(0, 1)),
        elf_kernel(segments=2),
        elf_kernel()[:4] + b"\3" + elf_kernel()[5:],
        elf_kernel()[:32] + b"\xff" * 8 + elf_kernel()[40:],
    ],
)
def test_damaged_tables_are_an_error(tmp_path: Path, damaged: bytes) -> None:
    with pytest.raises(ElfError):
        tables(written(tmp_path / "file", damaged))


def test_a_file_without_section_names_has_no_sections(tmp_path: Path) -> None:
    content = bytearray(elf_with_sections())
    struct.pack_into("<H", content, 62, 0)  # e_shstrndx
    found = tables(written(tmp_path / "file", bytes(content)))
    assert found is not None
    assert found.sections == {}


def test_a_modified_file_is_read_again(tmp_path: Path) -> None:
    kernel = written(tmp_path / "vmlinux", elf_kernel())
    before = tables(kernel)
    changed = bytearray(elf_kernel())
    struct.pack_into("<Q", changed, 24, 0x1234567)  # e_entry
    kernel.write_bytes(changed)
    after = tables(kernel)
    assert before is not None
    assert after is not None
    assert after.entry == 0x1234567 != before.entry


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n"])
def test_other_files_have_no_tables(tmp_path: Path, content: bytes) -> None:
    assert tables(written(tmp_path / "file", content)) is None


@pytest.mark.parametrize("kind", [b"\1\1", b"\1\2", b"\2\2"])
def test_a_file_of_another_class_or_encoding_has_no_machine(tmp_path: Path, kind: bytes) -> None:
    content = (b"\x7fELF" + kind + b"\1").ljust(16, b"\0") + struct.pack("<HH", 2, 3) + bytes(200)
    found = tables(written(tmp_path / "file", content))
    assert found is not None
    assert found.machine == 0


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    for length in (5, 40, 63, 64, 100):
        with pytest.raises(ElfError):
            tables(written(tmp_path / f"cut{length}", elf_kernel()[:length]))


@given(st.integers(0, len(elf_with_sections()) - 1), st.binary(min_size=1, max_size=8))
def test_any_change_leads_to_tables_or_an_error(offset: int, change: bytes) -> None:
    content = bytearray(elf_with_sections())
    content[offset : offset + len(change)] = change
    with tempfile.TemporaryFile() as file, contextlib.suppress(ElfError):
        file.write(content)
        read_elf_tables(file)
