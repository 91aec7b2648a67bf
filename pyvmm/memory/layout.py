# SPDX-License-Identifier: Apache-2.0
"""The guest's physical memory map, I/O ports and interrupt inputs.

The guest is a PC as Linux expects it, without firmware. Guest-physical addresses:

    0x0_0000_0000  +-----------------------------+
                   | RAM: boot data (below)      |
    0x0_0009_FC00  | EBDA, VGA and option ROM    |  RAM in the memory slot, but not offered to
    0x0_000E_0000  | ACPI tables, MP table       |  the guest as usable memory
    0x0_0010_0000  | RAM: kernel, initramfs, ... |
                   +-----------------------------+  end of low RAM, at most:
    0x0_C000_0000  | PCI configuration (ECAM)    |
    0x0_C010_0000  | PCI memory window, 32 bit   |
    0x0_FEC0_0000  | IO-APIC                     |  in the kernel's KVM
    0x0_FEE0_0000  | local APICs                 |  in the kernel's KVM
    0x0_FFFB_C000  | KVM's identity map and TSS  |  pages reserved for KVM (Intel)
    0x1_0000_0000  +-----------------------------+
                   | RAM above the hole          |  present when there is more than 3 GiB
                   +-----------------------------+  end of high RAM, at most 17 GiB
    0x8_0000_0000  | PCI memory window, 64 bit   |  ends at 64 GiB: fits 36 address bits
    0x10_0000_0000 +-----------------------------+

Names ending in `_GPA` are guest-physical addresses, in `_PORT` I/O ports, in `_GSI` inputs of the
interrupt controllers as KVM numbers them, in `_BYTES` sizes.
"""

from __future__ import annotations

from pyvmm.units import MIB

# --- Boot data in the first 640 KiB -----------------------------------------------------------
GDT_GPA = 0x1000
ZERO_PAGE_GPA = 0x2000  # struct boot_params, one page
PAGE_TABLES_GPA = 0x9000  # PML4, PDPT and four page directories: the first 4 GiB, identity
PAGE_TABLES_BYTES = 6 * 0x1000
COMMAND_LINE_GPA = 0x20000
COMMAND_LINE_BYTES = 0x10000  # room; the kernel itself takes 2,048 bytes

# --- The legacy area below 1 MiB ----------------------------------------------------------------
EBDA_GPA = 0x9FC00  # end of the RAM Linux may use below 1 MiB
ACPI_GPA = 0xE0000  # where an operating system looks for the RSDP (ACPI 6.4, 5.2.5.1)
ACPI_BYTES = 0x10000
MP_TABLE_GPA = 0xF0000  # where it looks for the MP floating pointer (MP 1.4, 4)
MP_TABLE_BYTES = 0x1000
RESET_VECTOR_GPA = 0xFFFF0  # where a PC starts in real mode, here after reboot=bios
HIGH_MEMORY_GPA = 0x100000  # usable RAM again

# --- The hole below 4 GiB -------------------------------------------------------------------------
LOW_RAM_END_GPA = 0xC000_0000
PCI_ECAM_GPA = LOW_RAM_END_GPA
PCI_ECAM_BYTES = MIB  # the one bus
MMIO32_GPA = PCI_ECAM_GPA + PCI_ECAM_BYTES
MMIO32_BYTES = 0xFEC0_0000 - MMIO32_GPA
IOAPIC_GPA = 0xFEC0_0000
LAPIC_GPA = 0xFEE0_0000
KVM_IDENTITY_MAP_GPA = 0xFFFB_C000  # KVM_SET_IDENTITY_MAP_ADDR, one page
KVM_TSS_GPA = 0xFFFB_D000  # KVM_SET_TSS_ADDR, three pages

# --- Above 4 GiB ----------------------------------------------------------------------------------
HIGH_RAM_GPA = 0x1_0000_0000
MMIO64_GPA = 0x8_0000_0000
MMIO64_BYTES = 0x8_0000_0000

# The PCI memory windows that the ACPI tables announce: (gpa, size in bytes).
PCI_WINDOWS = ((MMIO32_GPA, MMIO32_BYTES), (MMIO64_GPA, MMIO64_BYTES))

# --- I/O ports ------------------------------------------------------------------------------------
# 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1 (8259, ELCR), 0x40-0x43 and 0x61 (8254) are served by KVM.
I8042_DATA_PORT = 0x60
I8042_COMMAND_PORT = 0x64
RTC_PORT = 0x70  # index, then data at 0x71
POST_PORT = 0x80  # written as a delay or progress code; no device
COM1_PORT = 0x3F8
COM1_PORTS = 8
PVPANIC_PORT = 0x505
ACPI_PM_PORT = 0x600  # registers: devices.legacy.acpi_pm
ACPI_PM_PORTS = 16
PCI_CONFIG_PORT = 0xCF8  # with the reset control register at 0xCF9
PCI_CONFIG_PORTS = 8

# --- Interrupts -----------------------------------------------------------------------------------
COM1_GSI = 4
ACPI_SCI_GSI = 9
# The PC wires the timer (ISA interrupt 0) to IO-APIC pin 2; the ACPI tables say so, and the
# interrupt routing given to KVM must agree: GSI 0 goes to pin 2, GSI 2 to no IO-APIC pin.
PIT_GSI = 0
PIT_IOAPIC_PIN = 2
# INTx uses interrupts that no ISA device has, and that a guest without APICs gets from the 8259s.
PCI_INTX_GSIS = (5, 10, 11)
FIRST_MSI_GSI = 24  # beyond the pins of the one IO-APIC


def ram_ranges(ram_bytes: int) -> tuple[tuple[int, int], ...]:
    """Return the (gpa, size in bytes) ranges that `ram_bytes` of guest RAM occupy, in order."""
    low_bytes = min(ram_bytes, LOW_RAM_END_GPA)
    if ram_bytes == low_bytes:
        return ((0, low_bytes),)
    return ((0, low_bytes), (HIGH_RAM_GPA, ram_bytes - low_bytes))


def usable_ranges(ram_bytes: int) -> tuple[tuple[int, int], ...]:
    """Return the (gpa, size in bytes) ranges of RAM the guest may use freely, for its e820 map."""
    (_, low_bytes), *high = ram_ranges(ram_bytes)
    return ((0, EBDA_GPA), (HIGH_MEMORY_GPA, low_bytes - HIGH_MEMORY_GPA), *high)


def pci_apertures(ram_bytes: int) -> tuple[tuple[int, int], ...]:
    """Return the (gpa, size in bytes) ranges in which PCI memory BARs may be placed.

    These are the windows and all that lies between RAM and them: a guest without ACPI does not know
    the windows, and places BARs right above RAM.
    """
    _, low_bytes = ram_ranges(ram_bytes)[0]
    last_gpa, last_bytes = ram_ranges(ram_bytes)[-1]
    above_gpa = max(HIGH_RAM_GPA, last_gpa + last_bytes)
    below_ecam = ((low_bytes, PCI_ECAM_GPA - low_bytes),) if low_bytes < PCI_ECAM_GPA else ()
    above_ram = (above_gpa, MMIO64_GPA + MMIO64_BYTES - above_gpa)
    return (*below_ecam, (MMIO32_GPA, MMIO32_BYTES), above_ram)


def intx_gsi(device: int) -> int:
    """Return the GSI, and ISA interrupt, that INTA# of PCI device number `device` is wired to."""
    return PCI_INTX_GSIS[device % len(PCI_INTX_GSIS)]
