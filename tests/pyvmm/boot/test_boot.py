# SPDX-License-Identifier: Apache-2.0
"""Loading kernels and initramfs archives: files that are refused, and guest memory at boot."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import linux64
from pyvmm.boot.errors import CommandLineUnusable, InitramfsUnusable, NotEnoughRam
from pyvmm.boot.image import read_kernel
from pyvmm.boot.loader import load_linux, read_boot_files
from pyvmm.cli.remedies import remedy
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.memory import layout
from pyvmm.memory.ram import Ram
from pyvmm.units import GIB, MIB
from pyvmm_native.memory import GuestMemory
from tests.pyvmm.boot.elf_kernel import CODE_OFFSET, LOAD_GPA, elf_kernel


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vmlinux"


def config(path: Path, **changes: Any) -> MachineConfig:
    given = {"initrd": None, "command_line": "", "ram_bytes": 64 * MIB, "vcpus": 1}
    return MachineConfig(kernel=path, dialect="standard", **{**given, **changes})


def test_a_kernel_is_loaded_at_its_addresses_and_bss_is_zero(path: Path) -> None:
    path.write_bytes(elf_kernel(b"kernel", memory_bytes=0x9000))
    kernel = read_kernel(path)
    assert (kernel.entry, kernel.end) == (LOAD_GPA, LOAD_GPA + 0x9000)
    memory = GuestMemory([(0, mmap.mmap(-1, 2 * MIB, flags=mmap.MAP_PRIVATE))])
    kernel.load(memory)
    assert memory.read(LOAD_GPA, 8) == b"kernel\0\0"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "neither ELF nor bzImage"),
        (b"\x7fEL", "neither ELF nor bzImage"),
        (b"#!/bin/sh\n", "neither ELF nor bzImage"),
        (b"\x7fELF", "cannot be read"),
        (elf_kernel()[:40], "cannot be read"),
        (elf_kernel()[: CODE_OFFSET - 1], "cannot be read"),
        (elf_kernel(machine=40), "not for x86-64"),
        (elf_kernel(segments=0), "no loadable segment"),
        (elf_kernel(file_bytes=4097), "truncated"),
        (elf_kernel(file_bytes=1 << 63), "truncated"),
        (elf_kernel(b"\xf4" * 9, memory_bytes=8), "longer in the file"),
        (elf_kernel(gpa=0), "overlaps another or lies outside RAM"),
        (elf_kernel(gpa=LOAD_GPA - 1), "overlaps another or lies outside RAM"),
        (elf_kernel(gpa=4 * GIB), "overlaps another or lies outside RAM"),
        (elf_kernel(memory_bytes=(1 << 64) - 1), "overlaps another or lies outside RAM"),
        (elf_kernel(entry=0x20_0000), "entry point 0x200000 is outside"),
        (elf_kernel(entry=LOAD_GPA - 1), "is outside its segments"),
    ],
)
def test_an_unusable_kernel_is_refused_in_one_line(
    path: Path, content: bytes, complaint: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_kernel(path)
    assert "\n" not in str(caught.value)
    assert remedy(caught.value)


@given(position=st.integers(0, CODE_OFFSET - 1), value=st.integers(0, 255))
def test_a_kernel_with_a_damaged_byte_is_refused_or_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("elf") / "vmlinux"
    content = bytearray(elf_kernel(b"\xf4" * 64))
    content[position] = value
    path.write_bytes(content)
    try:
        kernel = read_kernel(path)
    except UserError:
        return
    for segment in kernel.segments:
        assert segment.p_offset + segment.p_filesz <= len(content)
        end = segment.p_paddr + segment.p_memsz
        assert layout.HIGH_MEMORY_GPA <= segment.p_paddr <= end <= layout.LOW_RAM_END_GPA


def test_a_kernel_too_large_for_the_guest_is_refused(path: Path) -> None:
    path.write_bytes(elf_kernel(memory_bytes=64 * MIB))
    with pytest.raises(NotEnoughRam, match="needs at least 65 MiB of RAM") as caught:
        read_boot_files(config(path))
    assert remedy(caught.value) == "give the guest more with --memory, at least 65M"


def test_an_initramfs_goes_to_the_top_of_low_ram(path: Path) -> None:
    initrd = path.with_name("initrd")
    initrd.write_bytes(b"cpio" * 2000)
    path.write_bytes(elf_kernel())
    low = read_boot_files(config(path, initrd=initrd))
    assert low.initrd_gpa == 64 * MIB - 8192
    high = read_boot_files(config(path, initrd=initrd, ram_bytes=8 * GIB))
    assert high.initrd_gpa == 3 * GIB - 8192


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file or directory"), (b"", "is empty")]
)
def test_an_unusable_initramfs_is_refused(path: Path, content: bytes | None, message: str) -> None:
    initrd = path.with_name("initrd")
    if content is not None:
        initrd.write_bytes(content)
    path.write_bytes(elf_kernel())
    with pytest.raises(InitramfsUnusable, match=message):
        read_boot_files(config(path, initrd=initrd))


def test_an_initramfs_too_large_for_the_guest_is_refused(path: Path) -> None:
    initrd = path.with_name("initrd")
    initrd.write_bytes(bytes(62 * MIB))
    path.write_bytes(elf_kernel())
    with pytest.raises(
        NotEnoughRam, match="need at least 66 MiB of RAM, the guest has 64"
    ) as caught:
        read_boot_files(config(path, initrd=initrd))
    enough = -(-caught.value.needed_bytes // MIB) * MIB
    assert read_boot_files(config(path, initrd=initrd, ram_bytes=enough)).initrd


def test_the_zero_page_describes_memory_command_line_and_initramfs(path: Path) -> None:
    initrd = path.with_name("initrd")
    initrd.write_bytes(b"x" * 100)
    path.write_bytes(elf_kernel())
    machine = config(path, initrd=initrd, ram_bytes=4 * GIB, command_line="console=ttyS0")
    ram = Ram(machine.ram_bytes)
    boot = load_linux(read_boot_files(machine), machine, ram)
    page = ram.memory.read(boot.zero_page_gpa, 4096)
    assert page[0x1FE:0x206] == b"\x55\xaa" + page[0x200:0x202] + b"HdrS"
    (line_gpa,) = struct.unpack_from("<I", page, 0x228)
    assert ram.memory.read(line_gpa, 14) == b"console=ttyS0\0"
    initrd_gpa, initrd_bytes = struct.unpack_from("<II", page, 0x218)
    assert ram.memory.read(initrd_gpa, initrd_bytes) == b"x" * 100
    (rsdp_gpa,) = struct.unpack_from("<Q", page, 0x70)
    assert ram.memory.read(rsdp_gpa, 8) == b"RSD PTR "
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x60400, 2),
        (MIB, 3 * GIB - MIB, 1),
        (4 * GIB, GIB, 1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [("x" * 2048, "is 2048 bytes long, the kernel takes 2047"), ("a\0b", "NUL")],
)
def test_a_command_line_that_the_kernel_cannot_take_is_refused(
    path: Path, line: str, message: str
) -> None:
    path.write_bytes(elf_kernel())
    machine = config(path, command_line=line)
    with pytest.raises(CommandLineUnusable, match=message):
        read_boot_files(machine)


def test_the_first_four_gib_are_mapped_one_to_one() -> None:
    ram = Ram(64 * MIB)
    linux64.write_boot_data(ram.memory, entry=0, command_line=b"\0", initrd=None, rsdp_gpa=0)

    def entry(table: int, index: int) -> int:
        return int.from_bytes(ram.memory.read(table + 8 * index, 8), "little")

    for gpa in (0, 2 * MIB, 3 * GIB + 6 * MIB, 4 * GIB - 1):
        pdpt = entry(layout.PAGE_TABLES_GPA, gpa >> 39) & ~0xFFF
        directory = entry(pdpt, gpa >> 30) & ~0xFFF
        leaf = entry(directory, gpa >> 21 & 511)
        assert leaf & 0x83 == 0x83
        assert leaf & ~(2 * MIB - 1) == gpa & ~(2 * MIB - 1)
