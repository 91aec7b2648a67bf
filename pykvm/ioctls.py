# SPDX-License-Identifier: Apache-2.0
"""Request numbers of the KVM ioctls.

Numbers are computed as <asm-generic/ioctl.h> does it, from the direction, KVM's type byte, the
request's own number and the size of the structure it takes, so a wrong structure size shows as a
wrong request number. tests/pykvm compares each with the installed <linux/kvm.h>.

The string below each request names its section in Documentation/virt/kvm/api.rst (Linux 6.12) and
the capability that it requires (KVM_CHECK_EXTENSION); requests without one exist on every KVM.
"""

from __future__ import annotations

from ctypes import Structure, c_uint64, sizeof

from pykvm import abi

_IOC_WRITE = 1
_IOC_READ = 2
_CData = type[Structure] | type[c_uint64]

KVMIO = 0xAE
"""KVM's type byte in request numbers."""


def _IOC(direction: int, type_: int, number: int, size_bytes: int) -> int:
    return direction << 30 | size_bytes << 16 | type_ << 8 | number


def _IO(type_: int, number: int) -> int:
    """Return the number of a request without a structure; its argument, if any, is an integer."""
    return _IOC(0, type_, number, 0)


def _IOW(type_: int, number: int, argument: _CData) -> int:
    """Return the number of a request whose `argument` the kernel reads."""
    return _IOC(_IOC_WRITE, type_, number, sizeof(argument))


def _IOR(type_: int, number: int, argument: _CData) -> int:
    """Return the number of a request whose `argument` the kernel writes."""
    return _IOC(_IOC_READ, type_, number, sizeof(argument))


def _IOWR(type_: int, number: int, argument: _CData) -> int:
    """Return the number of a request whose `argument` the kernel reads and writes."""
    return _IOC(_IOC_READ | _IOC_WRITE, type_, number, sizeof(argument))


# Requests to /dev/kvm
KVM_GET_API_VERSION = _IO(KVMIO, 0x00)
"""Section 4.1."""
KVM_CREATE_VM = _IO(KVMIO, 0x01)
"""Section 4.2."""
KVM_GET_MSR_INDEX_LIST = _IOWR(KVMIO, 0x02, abi.kvm_msr_list)
"""Section 4.3."""
KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03)
"""Section 4.4; for a VM, requires KVM_CAP_CHECK_EXTENSION_VM."""
KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04)
"""Section 4.5."""
KVM_GET_SUPPORTED_CPUID = _IOWR(KVMIO, 0x05, abi.kvm_cpuid2)
"""Section 4.46; requires KVM_CAP_EXT_CPUID."""

# Requests to a virtual machine
KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
"""Section 4.7."""
KVM_GET_DIRTY_LOG = _IOW(KVMIO, 0x42, abi.kvm_dirty_log)
"""Section 4.8."""
KVM_SET_USER_MEMORY_REGION = _IOW(KVMIO, 0x46, abi.kvm_userspace_memory_region)
"""Section 4.35; requires KVM_CAP_USER_MEMORY."""
KVM_SET_TSS_ADDR = _IO(KVMIO, 0x47)
"""Section 4.36; requires KVM_CAP_SET_TSS_ADDR."""
KVM_SET_IDENTITY_MAP_ADDR = _IOW(KVMIO, 0x48, c_uint64)
"""Section 4.40; requires KVM_CAP_SET_IDENTITY_MAP_ADDR."""
KVM_CREATE_IRQCHIP = _IO(KVMIO, 0x60)
"""Section 4.24; requires KVM_CAP_IRQCHIP."""
KVM_IRQ_LINE = _IOW(KVMIO, 0x61, abi.kvm_irq_level)
"""Section 4.25; requires KVM_CAP_IRQCHIP."""
KVM_GET_IRQCHIP = _IOWR(KVMIO, 0x62, abi.kvm_irqchip)
"""Section 4.26; requires KVM_CAP_IRQCHIP."""
KVM_SET_IRQCHIP = _IOR(KVMIO, 0x63, abi.kvm_irqchip)  # sic, though the kernel reads it
"""Section 4.27; requires KVM_CAP_IRQCHIP."""
KVM_SET_GSI_ROUTING = _IOW(KVMIO, 0x6A, abi.kvm_irq_routing)
"""Section 4.52; requires KVM_CAP_IRQ_ROUTING."""
KVM_IRQFD = _IOW(KVMIO, 0x76, abi.kvm_irqfd)
"""Section 4.75; requires KVM_CAP_IRQFD."""
KVM_CREATE_PIT2 = _IOW(KVMIO, 0x77, abi.kvm_pit_config)
"""Section 4.71; requires KVM_CAP_PIT2."""
KVM_IOEVENTFD = _IOW(KVMIO, 0x79, abi.kvm_ioeventfd)
"""Section 4.59; requires KVM_CAP_IOEVENTFD."""
KVM_SET_CLOCK = _IOW(KVMIO, 0x7B, abi.kvm_clock_data)
"""Section 4.30; requires KVM_CAP_ADJUST_CLOCK."""
KVM_GET_CLOCK = _IOR(KVMIO, 0x7C, abi.kvm_clock_data)
"""Section 4.29; requires KVM_CAP_ADJUST_CLOCK."""
KVM_GET_PIT2 = _IOR(KVMIO, 0x9F, abi.kvm_pit_state2)
"""Section 4.72; requires KVM_CAP_PIT_STATE2."""
KVM_SET_PIT2 = _IOW(KVMIO, 0xA0, abi.kvm_pit_state2)
"""Section 4.73; requires KVM_CAP_PIT_STATE2."""
KVM_ENABLE_CAP = _IOW(KVMIO, 0xA3, abi.kvm_enable_cap)
"""Section 4.37; for a VM, requires KVM_CAP_ENABLE_CAP_VM."""
KVM_SIGNAL_MSI = _IOW(KVMIO, 0xA5, abi.kvm_msi)
"""Section 4.71; requires KVM_CAP_SIGNAL_MSI."""
KVM_CLEAR_DIRTY_LOG = _IOWR(KVMIO, 0xC0, abi.kvm_clear_dirty_log)
"""Section 4.117; requires KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2."""

# Requests to a vCPU
KVM_RUN = _IO(KVMIO, 0x80)
"""Section 4.10."""
KVM_GET_REGS = _IOR(KVMIO, 0x81, abi.kvm_regs)
"""Section 4.11."""
KVM_SET_REGS = _IOW(KVMIO, 0x82, abi.kvm_regs)
"""Section 4.12."""
KVM_GET_SREGS = _IOR(KVMIO, 0x83, abi.kvm_sregs)
"""Section 4.13."""
KVM_SET_SREGS = _IOW(KVMIO, 0x84, abi.kvm_sregs)
"""Section 4.14."""
KVM_GET_MSRS = _IOWR(KVMIO, 0x88, abi.kvm_msrs)
"""Section 4.18."""
KVM_SET_MSRS = _IOW(KVMIO, 0x89, abi.kvm_msrs)
"""Section 4.19."""
KVM_GET_FPU = _IOR(KVMIO, 0x8C, abi.kvm_fpu)
"""Section 4.22."""
KVM_SET_FPU = _IOW(KVMIO, 0x8D, abi.kvm_fpu)
"""Section 4.23."""
KVM_GET_LAPIC = _IOR(KVMIO, 0x8E, abi.kvm_lapic_state)
"""Section 4.57; requires KVM_CAP_IRQCHIP."""
KVM_SET_LAPIC = _IOW(KVMIO, 0x8F, abi.kvm_lapic_state)
"""Section 4.58; requires KVM_CAP_IRQCHIP."""
KVM_SET_CPUID2 = _IOW(KVMIO, 0x90, abi.kvm_cpuid2)
"""In section 4.20; requires KVM_CAP_EXT_CPUID."""
KVM_GET_CPUID2 = _IOWR(KVMIO, 0x91, abi.kvm_cpuid2)
"""In section 4.20; requires KVM_CAP_EXT_CPUID."""
KVM_GET_MP_STATE = _IOR(KVMIO, 0x98, abi.kvm_mp_state)
"""Section 4.38; requires KVM_CAP_MP_STATE."""
KVM_SET_MP_STATE = _IOW(KVMIO, 0x99, abi.kvm_mp_state)
"""Section 4.39; requires KVM_CAP_MP_STATE."""
KVM_GET_VCPU_EVENTS = _IOR(KVMIO, 0x9F, abi.kvm_vcpu_events)
"""Section 4.31; requires KVM_CAP_VCPU_EVENTS."""
KVM_SET_VCPU_EVENTS = _IOW(KVMIO, 0xA0, abi.kvm_vcpu_events)
"""Section 4.32; requires KVM_CAP_VCPU_EVENTS."""
KVM_GET_DEBUGREGS = _IOR(KVMIO, 0xA1, abi.kvm_debugregs)
"""Section 4.33; requires KVM_CAP_DEBUGREGS."""
KVM_SET_DEBUGREGS = _IOW(KVMIO, 0xA2, abi.kvm_debugregs)
"""Section 4.34; requires KVM_CAP_DEBUGREGS."""
KVM_SET_TSC_KHZ = _IO(KVMIO, 0xA2)
"""Section 4.55; requires KVM_CAP_TSC_CONTROL."""
KVM_GET_TSC_KHZ = _IO(KVMIO, 0xA3)
"""Section 4.56; requires KVM_CAP_GET_TSC_KHZ."""
KVM_GET_XSAVE = _IOR(KVMIO, 0xA4, abi.kvm_xsave)
"""Section 4.42; requires KVM_CAP_XSAVE."""
KVM_SET_XSAVE = _IOW(KVMIO, 0xA5, abi.kvm_xsave)
"""Section 4.43; requires KVM_CAP_XSAVE."""
KVM_GET_XCRS = _IOR(KVMIO, 0xA6, abi.kvm_xcrs)
"""Section 4.44; requires KVM_CAP_XCRS."""
KVM_SET_XCRS = _IOW(KVMIO, 0xA7, abi.kvm_xcrs)
"""Section 4.45; requires KVM_CAP_XCRS."""
KVM_KVMCLOCK_CTRL = _IO(KVMIO, 0xAD)
"""Section 4.70; requires KVM_CAP_KVMCLOCK_CTRL."""
KVM_GET_NESTED_STATE = _IOWR(KVMIO, 0xBE, abi.kvm_nested_state)
"""Section 4.114; requires KVM_CAP_NESTED_STATE."""
KVM_SET_NESTED_STATE = _IOW(KVMIO, 0xBF, abi.kvm_nested_state)
"""Section 4.115; requires KVM_CAP_NESTED_STATE."""
KVM_GET_SREGS2 = _IOR(KVMIO, 0xCC, abi.kvm_sregs2)
"""Section 4.131; requires KVM_CAP_SREGS2."""
KVM_SET_SREGS2 = _IOW(KVMIO, 0xCD, abi.kvm_sregs2)
"""Section 4.132; requires KVM_CAP_SREGS2."""
KVM_SET_DEVICE_ATTR = _IOW(KVMIO, 0xE1, abi.kvm_device_attr)
"""Section 4.80; for a vCPU, requires KVM_CAP_VCPU_ATTRIBUTES."""
KVM_GET_DEVICE_ATTR = _IOW(KVMIO, 0xE2, abi.kvm_device_attr)  # sic, though the kernel writes it
"""Section 4.80; for a vCPU, requires KVM_CAP_VCPU_ATTRIBUTES."""
KVM_HAS_DEVICE_ATTR = _IOW(KVMIO, 0xE3, abi.kvm_device_attr)
"""Section 4.81; for a vCPU, requires KVM_CAP_VCPU_ATTRIBUTES."""
KVM_GET_XSAVE2 = _IOR(KVMIO, 0xCF, abi.kvm_xsave)
"""Section 4.134; requires KVM_CAP_XSAVE2."""

_NAMES = {value: name for name, value in list(globals().items()) if name.startswith("KVM_")}


def name_of(request: int) -> str:
    """Return the kernel's name of a request number, for messages."""
    return _NAMES.get(request, f"ioctl 0x{request:08x}")
