# SPDX-License-Identifier: Apache-2.0
"""The Linux 64-bit boot protocol: guest memory before the first instruction.

The kernel is entered in long mode at its ELF entry point with paging on, the first 4 GiB mapped
one to one, RSI pointing to the "zero page" (`struct boot_params`), and interrupts off. The zero
page's setup header is that of the bzImage, with the fields that a loader fills in; a vmlinux has
none, so a minimal one is written.

Documentation/arch/x86/boot.rst, "64-bit boot protocol", and arch/x86/zero-page.rst for offsets.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.boot.errors import CommandLineUnusable, NotEnoughRam
from pyvmm.boot.setup_header import HEADER_OFFSET, SetupHeader
from pyvmm.memory import layout
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm_native.memory import GuestMemory

INITRD_MARGIN_BYTES = 2 * MIB
"""Kept free after the kernel's image, where it puts its early page tables."""
COMMAND_LINE_MAX_BYTES = 2047
"""COMMAND_LINE_SIZE of the x86 kernel is 2048 with the final NUL."""

# struct boot_params, by offset (arch/x86/zero-page.rst).
ZP_ACPI_RSDP_ADDR = 0x070
ZP_E820_ENTRIES = 0x1E8
ZP_BOOT_FLAG = 0x1FE
ZP_HEADER = 0x202
ZP_TYPE_OF_LOADER = 0x210
ZP_LOADFLAGS = 0x211
ZP_RAMDISK_IMAGE = 0x218  # and its size after it
ZP_CMD_LINE_PTR = 0x228
ZP_SETUP_DATA = 0x250
ZP_E820_TABLE = 0x2D0

E820_RAM = 1
E820_RESERVED = 2
LOADED_HIGH = 1
LOADER_UNDEFINED = 0xFF

# Flat 64-bit code and data segments at the protocol's selectors __BOOT_CS and __BOOT_DS.
GDT = struct.pack("<4Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
BOOT_CS = 0x10
BOOT_DS = 0x18

# Real-mode code at the reset vector, for reboot=bios: mov al, 6; mov dx, 0xCF9; out dx, al; hlt. It
# requests a full reset (6) from the reset control register.
RESET_CODE = bytes.fromhex("b006 baf90c ee f4")

PTE_PRESENT_WRITABLE = 0x3
PTE_HUGE = 0x80


class BootInfo(NamedTuple):
    """The register values that the boot processor starts with."""

    entry: int
    zero_page_gpa: int
    page_table_gpa: int
    gdt_gpa: int
    gdt_limit: int


def place_initrd(initrd_bytes: int, kernel_end: int, limit_gpa: int) -> int:
    """Return the highest page-aligned address below `limit_gpa` at which an initramfs fits.

    Raises `NotEnoughRam` when it would come within `INITRD_MARGIN_BYTES` of the kernel.
    """
    gpa = (limit_gpa - initrd_bytes) & ~(PAGE_BYTES - 1)
    if gpa < kernel_end + INITRD_MARGIN_BYTES:
        needed = -(-(kernel_end + INITRD_MARGIN_BYTES) // PAGE_BYTES) * PAGE_BYTES + initrd_bytes
        raise NotEnoughRam(
            f"kernel and initramfs need at least {-(-needed // MIB)} MiB of RAM,"
            f" the guest has {limit_gpa // MIB} MiB",
            needed,
        )
    return gpa


def write_boot_data(
    memory: "GuestMemory",
    *,
    entry: int,
    command_line: bytes,
    initrd: tuple[int, int] | None,
    rsdp_gpa: int,
    header: SetupHeader | None = None,
) -> BootInfo:
    """Write page tables, GDT, reset vector, command line and zero page.

    `command_line` is that of `encode_command_line`; `initrd` is (gpa, bytes) or None.
    """
    _write_page_tables(memory)
    memory.write(layout.GDT_GPA, GDT)
    memory.write(layout.RESET_VECTOR_GPA, RESET_CODE)
    memory.write(layout.COMMAND_LINE_GPA, command_line)
    page = _zero_page(header, e820_map(memory.size_bytes), initrd, rsdp_gpa)
    memory.write(layout.ZERO_PAGE_GPA, page)
    return BootInfo(entry, layout.ZERO_PAGE_GPA, layout.PAGE_TABLES_GPA, layout.GDT_GPA, 31)


def e820_map(ram_bytes: int) -> list[tuple[int, int, int]]:
    """Return the guest's e820 map as (gpa, bytes, type): its RAM without the BIOS area."""
    usable = [(gpa, length, E820_RAM) for gpa, length in layout.usable_ranges(ram_bytes)]
    legacy = (layout.EBDA_GPA, layout.HIGH_MEMORY_GPA - layout.EBDA_GPA, E820_RESERVED)
    return sorted([*usable, legacy])


def encode_command_line(command_line: str, header: SetupHeader | None) -> bytes:
    """Return the command line as the kernel reads it. Raises `CommandLineUnusable`."""
    line = command_line.encode("utf-8", "surrogateescape")
    longest = COMMAND_LINE_MAX_BYTES
    if header is not None:
        longest = min(header.command_line_max_bytes, layout.COMMAND_LINE_BYTES - 1)
    if len(line) > longest:
        raise CommandLineUnusable(
            f"the kernel command line is {len(line)} bytes long, the kernel takes {longest}"
        )
    if b"\0" in line:
        raise CommandLineUnusable("the kernel command line holds a NUL byte")
    return line + b"\0"


def _write_page_tables(memory: "GuestMemory") -> None:
    """Map the first 4 GiB one to one: a PML4, a PDPT and four directories of 2 MiB pages."""
    pml4 = layout.PAGE_TABLES_GPA
    pdpt = pml4 + PAGE_BYTES
    directories = [pdpt + PAGE_BYTES * (1 + i) for i in range(4)]
    memory.write(pml4, struct.pack("<Q", pdpt | PTE_PRESENT_WRITABLE))
    memory.write(pdpt, struct.pack("<4Q", *(pd | PTE_PRESENT_WRITABLE for pd in directories)))
    pages = range(0, 1 << 32, 2 * MIB)
    entries = (gpa | PTE_PRESENT_WRITABLE | PTE_HUGE for gpa in pages)
    memory.write(directories[0], struct.pack(f"<{len(pages)}Q", *entries))


def _zero_page(
    header: SetupHeader | None,
    e820: list[tuple[int, int, int]],
    initrd: tuple[int, int] | None,
    rsdp: int,
) -> bytes:
    page = bytearray(PAGE_BYTES)
    struct.pack_into("<Q", page, ZP_ACPI_RSDP_ADDR, rsdp)
    if header is None:
        struct.pack_into("<H", page, ZP_BOOT_FLAG, 0xAA55)
        struct.pack_into("<4sH", page, ZP_HEADER, b"HdrS", 0x020F)
    else:
        page[HEADER_OFFSET : HEADER_OFFSET + len(header.raw)] = header.raw
    page[ZP_TYPE_OF_LOADER] = LOADER_UNDEFINED
    page[ZP_LOADFLAGS] = LOADED_HIGH
    struct.pack_into("<I", page, ZP_CMD_LINE_PTR, layout.COMMAND_LINE_GPA)
    struct.pack_into("<II", page, ZP_RAMDISK_IMAGE, *(initrd or (0, 0)))
    struct.pack_into("<Q", page, ZP_SETUP_DATA, 0)
    page[ZP_E820_ENTRIES] = len(e820)
    for index, entry in enumerate(e820):
        struct.pack_into("<QQI", page, ZP_E820_TABLE + 20 * index, *entry)
    return bytes(page)
