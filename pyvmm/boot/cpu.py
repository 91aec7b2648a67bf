# SPDX-License-Identifier: Apache-2.0
"""The initial state of a vCPU: CPUID, MSRs, local APIC and registers.

The boot processor starts in long mode, as the 64-bit boot protocol requires. The others wait for
the start-up interrupt, which the in-kernel local APIC delivers, so they need only CPUID (see
`pyvmm.cpuid.policy`) and the APIC.

Intel SDM vol. 3A 4.5 (paging), 3.4.5 (segment descriptors), 11.5.1 (local vector table).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm import abi
from pyvmm.boot.linux64 import BOOT_CS, BOOT_DS, BootInfo
from pyvmm.cpuid.policy import guest_cpuid

if TYPE_CHECKING:
    from pykvm import System, Vcpu

CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_FIXED = 1 << 1

SEGMENT_TYPE_CODE = 0xB  # execute, read, accessed
SEGMENT_TYPE_DATA = 0x3  # read, write, accessed

MSR_IA32_MISC_ENABLE = 0x1A0
MISC_ENABLE_FAST_STRING = 1
MSR_MTRR_DEF_TYPE = 0x2FF
MTRR_ENABLED_WRITE_BACK = 1 << 11 | 6

APIC_LVT_LINT0 = 0x350
APIC_LVT_LINT1 = 0x360
LVT_EXTINT = 7 << 8
LVT_NMI = 4 << 8


def set_up_vcpu(system: System, vcpu: Vcpu, index: int, boot: BootInfo) -> None:
    """Set up `vcpu` to start; index 0 is the boot processor and starts at the kernel's entry."""
    vcpu.set_cpuid2(guest_cpuid(system, index))
    vcpu.set_msrs(
        {
            MSR_IA32_MISC_ENABLE: MISC_ENABLE_FAST_STRING,
            MSR_MTRR_DEF_TYPE: MTRR_ENABLED_WRITE_BACK,
        }
    )
    _wire_local_interrupts(vcpu)
    if index == 0:
        _enter_long_mode(vcpu, boot)


def _wire_local_interrupts(vcpu: Vcpu) -> None:
    """Route the 8259's interrupts to LINT0 and NMIs to LINT1, as PC firmware does."""
    lapic = vcpu.get_lapic()
    for register, mode in ((APIC_LVT_LINT0, LVT_EXTINT), (APIC_LVT_LINT1, LVT_NMI)):
        lapic.regs[register : register + 4] = list(mode.to_bytes(4, "little"))
    vcpu.set_lapic(lapic)


def _enter_long_mode(vcpu: Vcpu, boot: BootInfo) -> None:
    sregs = vcpu.get_sregs()
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG
    sregs.cr3 = boot.page_table_gpa
    sregs.cr4 = CR4_PAE
    sregs.efer = EFER_LME | EFER_LMA
    sregs.gdt.base = boot.gdt_gpa
    sregs.gdt.limit = boot.gdt_limit
    _load_segment(sregs.cs, BOOT_CS, SEGMENT_TYPE_CODE, long_mode=True)
    for segment in (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs):
        _load_segment(segment, BOOT_DS, SEGMENT_TYPE_DATA, long_mode=False)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(abi.kvm_regs(rip=boot.entry, rsi=boot.zero_page_gpa, rflags=RFLAGS_FIXED))


def _load_segment(segment: abi.kvm_segment, selector: int, kind: int, *, long_mode: bool) -> None:
    segment.selector = selector
    segment.base = 0
    segment.limit = 0xFFFF_FFFF
    segment.type = kind
    segment.s = segment.present = segment.g = 1
    segment.dpl = segment.unusable = segment.avl = 0
    segment.l = int(long_mode)
    segment.db = int(not long_mode)
