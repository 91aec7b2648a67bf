# SPDX-License-Identifier: Apache-2.0
"""What a virtual processor looks like at its first instruction: CPUID, MSRs, LAPIC and registers.

The boot processor starts in long mode as the 64-bit boot protocol asks; the others wait for the
start-up interrupt that the in-kernel local APIC delivers, so for them only CPUID and the APIC
matter. CPUID is what KVM can give, with each processor's own APIC id, every one a package of its
own (no cores, no threads: the guest has nothing to schedule around).

Intel SDM vol. 3A 4.5 (paging), 3.4.5 (segment descriptors), 11.5.1 (local vector table); AMD APM
vol. 3 appendix E (CPUID 8000_0008h, 8000_001Eh).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm import abi
from pyvmm.boot.linux64 import BOOT_CS, BOOT_DS, BootInfo

if TYPE_CHECKING:
    from pykvm import System, Vcpu

CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_FIXED = 1 << 1

SEGMENT_TYPE_CODE = 0xB  # execute, read, accessed
SEGMENT_TYPE_DATA = 0x3  # read, write, accessed

CPUID_1_ECX_TSC_DEADLINE = 1 << 24
CPUID_1_ECX_HYPERVISOR = 1 << 31
CPUID_1_EDX_HTT = 1 << 28

MSR_IA32_MISC_ENABLE = 0x1A0
MISC_ENABLE_FAST_STRING = 1
MSR_MTRR_DEF_TYPE = 0x2FF
MTRR_ENABLED_WRITE_BACK = 1 << 11 | 6

APIC_LVT_LINT0 = 0x350
APIC_LVT_LINT1 = 0x360
LVT_EXTINT = 7 << 8
LVT_NMI = 4 << 8


def set_up_vcpu(system: System, vcpu: Vcpu, index: int, boot: BootInfo) -> None:
    """Give vCPU `index` its reset state; index 0 is the boot processor and starts at the kernel."""
    vcpu.set_cpuid2(cpuid_for(system, index))
    vcpu.set_msrs(
        {
            MSR_IA32_MISC_ENABLE: MISC_ENABLE_FAST_STRING,
            MSR_MTRR_DEF_TYPE: MTRR_ENABLED_WRITE_BACK,
        }
    )
    _wire_local_interrupts(vcpu)
    if index == 0:
        _enter_long_mode(vcpu, boot)


def cpuid_for(system: System, index: int) -> abi.kvm_cpuid2:
    """KVM's supported CPUID, with processor `index` as the only core of its package."""
    cpuid = system.get_supported_cpuid()
    for entry in cpuid.entries:
        if entry.function == 1:
            # EBX 31:24 is the APIC id, 23:16 the logical processors of the package, which count
            # only with HTT.
            entry.ebx = entry.ebx & 0x0000_FFFF | 1 << 16 | index << 24
            entry.edx &= ~CPUID_1_EDX_HTT
            # KVM leaves it to us to say that there is a hypervisor, without which no guest looks
            # for kvmclock, and that its local APIC knows deadlines.
            entry.ecx |= CPUID_1_ECX_HYPERVISOR
            if system.check_extension(abi.KVM_CAP_TSC_DEADLINE_TIMER):
                entry.ecx |= CPUID_1_ECX_TSC_DEADLINE
        elif entry.function == 4:
            entry.eax &= 0x3FFF  # 31:26 cores and 25:14 threads that share a cache, less one
        elif entry.function in (0xB, 0x1F):
            entry.eax = entry.ebx = 0  # no level of topology; EDX stays the x2APIC id
            entry.ecx &= 0xFF
            entry.edx = index
        elif entry.function == 0x8000_0008:
            entry.ecx = 0  # one core, and an APIC id without a core part
        elif entry.function == 0x8000_001E:
            entry.eax = index
            entry.ebx = index
            entry.ecx = 0
    return cpuid


def _wire_local_interrupts(vcpu: Vcpu) -> None:
    """LINT0 takes the 8259's interrupts, LINT1 non-maskable ones, as a PC's firmware sets them."""
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
