# SPDX-License-Identifier: Apache-2.0
"""Two virtual machines that never run, so that the lab's kernel need not rewrite its own code.

KVM has parts of the kernel switched on with the first virtual machine (or vCPU) of a kind and off
with the last: static keys, jumps in the kernel's text that are patched while other processors run
it, by way of a breakpoint. Under QEMU's TCG that can go wrong. Seen with version 7.2 after minutes
of tests that make and close machines: a translation made while the breakpoint was there outlived
it, and every processor that came by (the place is in the scheduler) took the breakpoint for ever.

A lab of one processor is safe from that; `pyvmm lab --cpus` makes larger ones.

So the agent holds what keeps these keys on for as long as the lab lives (names as in Linux 6.1):

    preempt_notifier_key, in the scheduler      any machine
    kvm_has_noapic_vcpu                         a vCPU without interrupt controllers
    apic_hw_disabled, apic_sw_disabled          a vCPU whose local APIC was turned off

Numbers: Documentation/virt/kvm/api.rst; the agent does without pykvm, whose import costs time.
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


def hold() -> None:
    """Make them and leave them open; nothing where there is no /dev/kvm."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    bare = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    with_apic = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    fcntl.ioctl(with_apic, _KVM_CREATE_IRQCHIP, 0)
    fcntl.ioctl(bare, _KVM_CREATE_VCPU, 0)
    _turn_apic_off(fcntl.ioctl(with_apic, _KVM_CREATE_VCPU, 0))


def _turn_apic_off(vcpu: int) -> None:
    sregs = bytearray(_SREGS_BYTES)
    fcntl.ioctl(vcpu, _KVM_GET_SREGS, sregs)
    (base,) = struct.unpack_from("<Q", sregs, _APIC_BASE_OFFSET)
    struct.pack_into("<Q", sregs, _APIC_BASE_OFFSET, base & ~_APIC_ENABLE)
    fcntl.ioctl(vcpu, _KVM_SET_SREGS, sregs)
