# SPDX-License-Identifier: Apache-2.0
"""Two virtual machines that never run, which keep KVM's static keys in one state.

KVM enables a static key, a jump in the kernel's text, with the first virtual machine or vCPU of a
kind, and disables it with the last. The kernel patches such a jump through a breakpoint while other
processors run it, and QEMU's TCG can get that wrong. Seen with QEMU 7.2 after minutes of tests that
create and close virtual machines: a translation made while the breakpoint was in place outlived
it, and every processor that executed it, in the scheduler, hit the breakpoint endlessly. A lab
with one processor is not affected; `pyvmm lab --cpus` makes larger ones.

So the agent keeps these keys enabled for the lifetime of the lab (names as in Linux 6.1):

    preempt_notifier_key, in the scheduler      any virtual machine
    kvm_has_noapic_vcpu                         a vCPU without an in-kernel local APIC
    apic_hw_disabled, apic_sw_disabled          a vCPU whose local APIC was disabled

Numbers: Documentation/virt/kvm/api.rst. The agent does not use pykvm, whose import costs time.
"""

from __future__ import annotations

import fcntl
import os
import struct

_KVM_CREATE_VM = 0xAE01
_KVM_CREATE_VCPU = 0xAE41
_KVM_CREATE_IRQCHIP = 0xAE60
_KVM_GET_SREGS = 0x8138AE83
_KVM_SET_SREGS = 0x4138AE84
_SREGS_BYTES = 0x138
_APIC_BASE_OFFSET = 272
_APIC_ENABLE = 1 << 11


def pin_static_keys() -> None:
    """Create the virtual machines and leave them open; do nothing without /dev/kvm."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    without_apic = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    with_apic = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    fcntl.ioctl(with_apic, _KVM_CREATE_IRQCHIP, 0)
    fcntl.ioctl(without_apic, _KVM_CREATE_VCPU, 0)
    _disable_apic(fcntl.ioctl(with_apic, _KVM_CREATE_VCPU, 0))


def _disable_apic(vcpu: int) -> None:
    sregs = bytearray(_SREGS_BYTES)
    fcntl.ioctl(vcpu, _KVM_GET_SREGS, sregs)
    (base,) = struct.unpack_from("<Q", sregs, _APIC_BASE_OFFSET)
    struct.pack_into("<Q", sregs, _APIC_BASE_OFFSET, base & ~_APIC_ENABLE)
    fcntl.ioctl(vcpu, _KVM_SET_SREGS, sregs)
