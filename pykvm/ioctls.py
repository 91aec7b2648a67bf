# SPDX-License-Identifier: Apache-2.0
"""Request numbers of the KVM ioctls.

Numbers are computed as <asm-generic/ioctl.h> does it, from the direction, KVM's type byte, the
request's own number and the size of the structure it takes, so a wrong structure size shows as a
wrong request number. tests/pykvm compares each with the installed <linux/kvm.h>.
"""

from __future__ import annotations

from ctypes import Structure, c_uint64, sizeof

from pykvm import abi

_IOC_WRITE = 1
_IOC_READ = 2
_CData = type[Structure] | type[c_uint64]

KVMIO = 0xAE


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


# /dev/kvm
KVM_GET_API_VERSION = _IO(KVMIO, 0x00)
KVM_CREATE_VM = _IO(KVMIO, 0x01)
KVM_GET_MSR_INDEX_LIST = _IOWR(KVMIO, 0x02, abi.kvm_msr_list)
KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04)
KVM_GET_SUPPORTED_CPUID = _IOWR(KVMIO, 0x05, abi.kvm_cpuid2)

# a virtual machine
KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
KVM_GET_DIRTY_LOG = _IOW(KVMIO, 0x42, abi.kvm_dirty_log)
KVM_SET_USER_MEMORY_REGION = _IOW(KVMIO, 0x46, abi.kvm_userspace_memory_region)
KVM_SET_TSS_ADDR = _IO(KVMIO, 0x47)
KVM_SET_IDENTITY_MAP_ADDR = _IOW(KVMIO, 0x48, c_uint64)
KVM_CREATE_IRQCHIP = _IO(KVMIO, 0x60)
KVM_IRQ_LINE = _IOW(KVMIO, 0x61, abi.kvm_irq_level)
KVM_GET_IRQCHIP = _IOWR(KVMIO, 0x62, abi.kvm_irqchip)
KVM_SET_IRQCHIP = _IOR(KVMIO, 0x63, abi.kvm_irqchip)  # sic, though the kernel reads it
KVM_SET_GSI_ROUTING = _IOW(KVMIO, 0x6A, abi.kvm_irq_routing)
KVM_IRQFD = _IOW(KVMIO, 0x76, abi.kvm_irqfd)
KVM_CREATE_PIT2 = _IOW(KVMIO, 0x77, abi.kvm_pit_config)
KVM_IOEVENTFD = _IOW(KVMIO, 0x79, abi.kvm_ioeventfd)
KVM_SET_CLOCK = _IOW(KVMIO, 0x7B, abi.kvm_clock_data)
KVM_GET_CLOCK = _IOR(KVMIO, 0x7C, abi.kvm_clock_data)
KVM_GET_PIT2 = _IOR(KVMIO, 0x9F, abi.kvm_pit_state2)
KVM_SET_PIT2 = _IOW(KVMIO, 0xA0, abi.kvm_pit_state2)
KVM_ENABLE_CAP = _IOW(KVMIO, 0xA3, abi.kvm_enable_cap)
KVM_SIGNAL_MSI = _IOW(KVMIO, 0xA5, abi.kvm_msi)
KVM_CLEAR_DIRTY_LOG = _IOWR(KVMIO, 0xC0, abi.kvm_clear_dirty_log)

# a vCPU
KVM_RUN = _IO(KVMIO, 0x80)
KVM_GET_REGS = _IOR(KVMIO, 0x81, abi.kvm_regs)
KVM_SET_REGS = _IOW(KVMIO, 0x82, abi.kvm_regs)
KVM_GET_SREGS = _IOR(KVMIO, 0x83, abi.kvm_sregs)
KVM_SET_SREGS = _IOW(KVMIO, 0x84, abi.kvm_sregs)
KVM_GET_MSRS = _IOWR(KVMIO, 0x88, abi.kvm_msrs)
KVM_SET_MSRS = _IOW(KVMIO, 0x89, abi.kvm_msrs)
KVM_GET_FPU = _IOR(KVMIO, 0x8C, abi.kvm_fpu)
KVM_SET_FPU = _IOW(KVMIO, 0x8D, abi.kvm_fpu)
KVM_GET_LAPIC = _IOR(KVMIO, 0x8E, abi.kvm_lapic_state)
KVM_SET_LAPIC = _IOW(KVMIO, 0x8F, abi.kvm_lapic_state)
KVM_SET_CPUID2 = _IOW(KVMIO, 0x90, abi.kvm_cpuid2)
KVM_GET_CPUID2 = _IOWR(KVMIO, 0x91, abi.kvm_cpuid2)
KVM_GET_MP_STATE = _IOR(KVMIO, 0x98, abi.kvm_mp_state)
KVM_SET_MP_STATE = _IOW(KVMIO, 0x99, abi.kvm_mp_state)
KVM_GET_VCPU_EVENTS = _IOR(KVMIO, 0x9F, abi.kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = _IOW(KVMIO, 0xA0, abi.kvm_vcpu_events)
KVM_GET_DEBUGREGS = _IOR(KVMIO, 0xA1, abi.kvm_debugregs)
KVM_SET_DEBUGREGS = _IOW(KVMIO, 0xA2, abi.kvm_debugregs)
KVM_SET_TSC_KHZ = _IO(KVMIO, 0xA2)
KVM_GET_TSC_KHZ = _IO(KVMIO, 0xA3)
KVM_GET_XSAVE = _IOR(KVMIO, 0xA4, abi.kvm_xsave)
KVM_SET_XSAVE = _IOW(KVMIO, 0xA5, abi.kvm_xsave)
KVM_GET_XCRS = _IOR(KVMIO, 0xA6, abi.kvm_xcrs)
KVM_SET_XCRS = _IOW(KVMIO, 0xA7, abi.kvm_xcrs)
KVM_KVMCLOCK_CTRL = _IO(KVMIO, 0xAD)
KVM_GET_NESTED_STATE = _IOWR(KVMIO, 0xBE, abi.kvm_nested_state)
KVM_SET_NESTED_STATE = _IOW(KVMIO, 0xBF, abi.kvm_nested_state)
KVM_GET_SREGS2 = _IOR(KVMIO, 0xCC, abi.kvm_sregs2)
KVM_SET_SREGS2 = _IOW(KVMIO, 0xCD, abi.kvm_sregs2)
KVM_SET_DEVICE_ATTR = _IOW(KVMIO, 0xE1, abi.kvm_device_attr)
KVM_GET_DEVICE_ATTR = _IOW(KVMIO, 0xE2, abi.kvm_device_attr)  # sic, though the kernel writes it
KVM_HAS_DEVICE_ATTR = _IOW(KVMIO, 0xE3, abi.kvm_device_attr)
KVM_GET_XSAVE2 = _IOR(KVMIO, 0xCF, abi.kvm_xsave)

_NAMES = {value: name for name, value in list(globals().items()) if name.startswith("KVM_")}


def name_of(request: int) -> str:
    """Return the kernel's name of a request number, for messages."""
    return _NAMES.get(request, f"ioctl 0x{request:08x}")
