# SPDX-License-Identifier: Apache-2.0
"""ELF tables: as pyelftools reads them, remembered, and never believed for another file."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pyvmm.elf import tables as elf_tables
from pyvmm.elf.tables import ElfError, ElfTables, read_elf_tables
from tests.pyvmm.boot.elf_kernel import elf_kernel

INTERPRETER = Path(sys.executable).resolve()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyvmm/elf"


def tables(path: Path) -> ElfTables | None:
    with path.open("rb") as file:
        return read_elf_tables(file)


def settled(path: Path, content: bytes) -> Path:
    """A file that was last changed long ago."""
    path.write_bytes(content)
    os.utime(path, (1, 1))
    return path


def test_a_real_program_reads_as_pyelftools_reads_it() -> None:
    found = tables(INTERPRETER)
    assert found is not None
    with INTERPRETER.open("rb") as file:
        known = ELFFile(file)
        assert (found.machine, found.entry) == (known["e_machine"], known["e_entry"])
        assert [one.p_offset for one in found.segments] == [
            one["p_offset"] for one in known.iter_segments("PT_LOAD")
        ]
        text = known.get_section_by_name(".text")
        assert text is not None
        assert found.sections[".text"] == (text["sh_offset"], text["sh_size"])


def test_the_second_time_nothing_is_parsed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = settled(tmp_path / "vmlinux", elf_kernel())
    first = tables(kernel)
    monkeypatch.setattr(elf_tables, "_parse", lambda file: pytest.fail("parsed again"))
    assert tables(kernel) == first
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_changed_is_another_file(tmp_path: Path) -> None:
    kernel = settled(tmp_path / "vmlinux", elf_kernel())
    before = tables(kernel)
    changed = bytearray(elf_kernel())
    struct.pack_into("<Q", changed, 24, 0x1234567)  # e_entry
    kernel.write_bytes(changed)
    after = tables(kernel)
    assert before is not None
    assert after is not None
    assert after.entry == 0x1234567 != before.entry


def test_nothing_is_kept_of_a_file_that_changed_just_now(tmp_path: Path, cache: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())
    assert tables(kernel) is not None
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("content", ["", "{}", "[1]", '["", 0, [[1]], {}]', "[0, 0, 0, 0]"])
def test_a_damaged_cache_is_no_harm(tmp_path: Path, cache: Path, content: str) -> None:
    kernel = settled(tmp_path / "vmlinux", elf_kernel())
    first = tables(kernel)
    (kept,) = cache.iterdir()
    kept.write_text(content)
    assert tables(kernel) == first


def test_without_a_cache_it_is_only_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tables(settled(tmp_path / "vmlinux", elf_kernel())) is not None


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n"])
def test_other_files_are_none(tmp_path: Path, content: bytes) -> None:
    assert tables(settled(tmp_path / "file", content)) is None


def test_of_a_32_bit_file_no_machine_is_known(tmp_path: Path) -> None:
    content = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, 3) + bytes(200)
    found = tables(settled(tmp_path / "file", content))
    assert found is not None
    assert found.machine == ""


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    for length in (5, 40, 63, 64, 100):
        with pytest.raises(ElfError):
            tables(settled(tmp_path / f"cut{length}", elf_kernel()[:length]))
