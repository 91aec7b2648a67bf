# SPDX-License-Identifier: Apache-2.0
"""Load Linux into guest RAM as a `MachineConfig` describes it.

`read_boot_files` reads and checks every file, and the command line, before the machine is created;
`load_linux` then writes boot data, ACPI tables, MP table, kernel and initramfs.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

from typing import TYPE_CHECKING, NamedTuple

from pyvmm.boot import acpi, mp_table
from pyvmm.boot.errors import NotEnoughRam
from pyvmm.boot.image import KernelImage, read_initrd, read_kernel
from pyvmm.boot.linux64 import BootInfo, encode_command_line, place_initrd, write_boot_data
from pyvmm.memory import layout
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.memory.ram import Ram

BOOT_MARGIN_BYTES = 32 * MIB
"""Memory that Linux needs beside its image and its initramfs to unpack the latter."""


class BootFiles(NamedTuple):
    """A kernel and an optional initramfs, read, checked and known to fit into the guest's RAM.

    `command_line` is encoded for the kernel.
    """

    kernel: KernelImage
    command_line: bytes
    initrd: bytearray
    initrd_gpa: int


def read_boot_files(config: "MachineConfig", overlay: bytes | bytearray = b"") -> BootFiles:
    """Read the kernel and the initramfs of `config`; the archive `overlay` is added to the latter.

    Raises `KernelUnusable`, `CommandLineUnusable`, `InitramfsUnusable` and `NotEnoughRam`.
    """
    kernel = read_kernel(config.kernel)
    _, low_bytes = layout.ram_ranges(config.ram_bytes)[0]
    kernel.check_fits(low_bytes)
    command_line = encode_command_line(config.command_line, kernel.header)
    if config.initrd is None and not overlay:
        return BootFiles(kernel, command_line, bytearray(), 0)
    limit = min(low_bytes, kernel.header.initrd_end) if kernel.header else low_bytes
    initrd = bytearray() if config.initrd is None else bytearray(read_initrd(config.initrd))
    initrd += bytes(-len(initrd) % 4) + overlay
    check_unpacks(len(overlay), kernel.end + BOOT_MARGIN_BYTES, config.ram_bytes)
    initrd_gpa = place_initrd(len(initrd), kernel.end, limit)
    return BootFiles(kernel, command_line, initrd, initrd_gpa)


def check_unpacks(overlay_bytes: int, other_bytes: int, ram_bytes: int) -> None:
    """Raise `NotEnoughRam` if the guest cannot hold `overlay_bytes` twice, packed and unpacked.

    Linux unpacks into a file system that may use half of the RAM, and frees the archive afterwards.
    It needs `other_bytes` for itself meanwhile.
    """
    needed = other_bytes + 2 * overlay_bytes
    if needed > ram_bytes:
        raise NotEnoughRam(
            f"the files for the guest, {-(-overlay_bytes // MIB)} MiB, need at least"
            f" {-(-needed // MIB)} MiB of RAM, the guest has {ram_bytes // MIB} MiB",
            needed,
        )


def load_linux(files: BootFiles, config: "MachineConfig", ram: "Ram") -> BootInfo:
    """Write everything that Linux needs to `ram`."""
    tables, rsdp_gpa = acpi.build_tables(vcpus=config.vcpus)
    boot = write_boot_data(
        ram.memory,
        entry=files.kernel.entry,
        command_line=files.command_line,
        initrd=(files.initrd_gpa, len(files.initrd)) if files.initrd else None,
        rsdp_gpa=rsdp_gpa,
        header=files.kernel.header,
    )
    ram.memory.write(layout.ACPI_GPA, tables)
    ram.memory.write(layout.MP_TABLE_GPA, mp_table.build_table(vcpus=config.vcpus))
    files.kernel.load(ram.memory)
    if files.initrd:
        ram.memory.write(files.initrd_gpa, files.initrd)
    return boot
