# SPDX-License-Identifier: Apache-2.0
"""The CPUID of a guest: what KVM supports and is usable, with a topology of our own.

It is the CPUID of every new guest, and what a saved one or one that migrates here may have at most
(`pyvmm.state`). Features that lack another that they require are hidden (`dependencies`). So are
those that need more than a processor: guests cannot run guests of their own (VMX, SVM), as their
state would be neither saved nor tested, and have no memory for enclaves (SGX).

Each vCPU is a package with one core and one thread, numbered by its APIC id: the guest's scheduler
has no topology to take into account.

Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E (CPUID 8000_0008h, 8000_001Eh).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm import abi
from pyvmm.cpuid.dependencies import hide_unusable
from pyvmm.cpuid.features import by_leaf

if TYPE_CHECKING:
    from pykvm import System

NEVER_OFFERED = frozenset({"vmx", "svm", "sgx"})
CPUID_1_ECX_TSC_DEADLINE = 1 << 24
CPUID_1_ECX_HYPERVISOR = 1 << 31
CPUID_1_EDX_HTT = 1 << 28


def guest_cpuid(system: System, index: int) -> abi.kvm_cpuid2:
    """Return the CPUID of vCPU `index`: what KVM supports and the policy does not hide."""
    cpuid = system.get_supported_cpuid()
    for entry in cpuid.entries:
        if entry.function == 1:
            # EBX 31:24 is the APIC id, 23:16 the number of logical processors in the package,
            # which is valid only with HTT.
            entry.ebx = entry.ebx & 0x0000_FFFF | 1 << 16 | index << 24
            entry.edx &= ~CPUID_1_EDX_HTT
            # KVM leaves two bits to the VMM: the hypervisor bit, without which no guest looks for
            # kvmclock, and the TSC-deadline timer of the local APIC.
            entry.ecx |= CPUID_1_ECX_HYPERVISOR
            if system.check_extension(abi.KVM_CAP_TSC_DEADLINE_TIMER):
                entry.ecx |= CPUID_1_ECX_TSC_DEADLINE
        elif entry.function == 4:
            entry.eax &= 0x3FFF  # 31:26 cores and 25:14 threads sharing a cache, minus one
        elif entry.function in (0xB, 0x1F):
            entry.eax = entry.ebx = 0  # no topology level; EDX is the x2APIC id
            entry.ecx &= 0xFF
            entry.edx = index
        elif entry.function == 0x8000_0008:
            entry.ecx = 0  # one core; no bits of the APIC id number a core
        elif entry.function == 0x8000_001E:
            entry.eax = index
            entry.ebx = index
            entry.ecx = 0
    hide_unusable(by_leaf(cpuid.entries), NEVER_OFFERED)
    return cpuid
