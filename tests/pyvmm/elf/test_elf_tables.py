# SPDX-License-Identifier: Apache-2.0
"""ELF tables: equal to those of pyelftools, cached, and never used for another file."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def old_file(path: Path, content: bytes) -> Path:
    """Write a file whose last modification is long ago."""
    path.write_bytes(content)
    os.utime(path, (1, 1))
    return path


def test_the_tables_of_a_program_equal_those_of_pyelftools() -> None:
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


def test_cached_tables_are_not_parsed_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = old_file(tmp_path / "vmlinux", elf_kernel())
    first = tables(kernel)
    monkeypatch.setattr(elf_tables, "_parse", lambda file: pytest.fail("parsed again"))
    assert tables(kernel) == first
    assert len(list(cache.iterdir())) == 1


def test_a_modified_file_is_parsed_again(tmp_path: Path) -> None:
    kernel = old_file(tmp_path / "vmlinux", elf_kernel())
    before = tables(kernel)
    changed = bytearray(elf_kernel())
    struct.pack_into("<Q", changed, 24, 0x1234567)  # e_entry
    kernel.write_bytes(changed)
    after = tables(kernel)
    assert before is not None
    assert after is not None
    assert after.entry == 0x1234567 != before.entry


def test_a_file_modified_just_now_is_not_cached(tmp_path: Path, cache: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())
    assert tables(kernel) is not None
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(
    "content",
    ["", "{}", "E 1", "E 1 0 1", "E 1 1 0\n1 2 3", "E 1 0 1\n1 x name", "E 1 -1 1", "E 1 1 -1"],
)
def test_a_damaged_cache_entry_is_ignored(tmp_path: Path, cache: Path, content: str) -> None:
    kernel = old_file(tmp_path / "vmlinux", elf_kernel())
    first = tables(kernel)
    (kept,) = cache.iterdir()
    kept.write_text(content)
    assert tables(kernel) == first


def test_tables_are_read_without_a_usable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tables(old_file(tmp_path / "vmlinux", elf_kernel())) is not None


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n"])
def test_other_files_have_no_tables(tmp_path: Path, content: bytes) -> None:
    assert tables(old_file(tmp_path / "file", content)) is None


def test_a_32_bit_file_has_no_machine(tmp_path: Path) -> None:
    content = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, 3) + bytes(200)
    found = tables(old_file(tmp_path / "file", content))
    assert found is not None
    assert found.machine == ""


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    for length in (5, 40, 63, 64, 100):
        with pytest.raises(ElfError):
            tables(old_file(tmp_path / f"cut{length}", elf_kernel()[:length]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # an empty cache
@given(st.integers(0, len(elf_kernel()) - 1), st.binary(min_size=1, max_size=8))
def test_any_change_leads_to_tables_or_an_error(offset: int, change: bytes) -> None:
    content = bytearray(elf_kernel())
    content[offset : offset + len(change)] = change
    with tempfile.TemporaryFile() as file, contextlib.suppress(ElfError):
        file.write(content)
        file.flush()
        read_elf_tables(file)
