# SPDX-License-Identifier: Apache-2.0
"""Structures needed only to save and restore a machine, by kernel name.

From <linux/kvm.h> and, for x86, <asm/kvm.h>: the rest of a vCPU's registers, the interrupt
controllers, the timer and the clock that KVM emulates. As in `pykvm.abi_vm`, structures without a
name in C have one with a leading underscore here, and flexible array members have a length of zero.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_char, c_int64, c_uint8, c_uint16, c_uint32, c_uint64

from pykvm.abi_constants import KVM_IOAPIC_NUM_PINS, KVM_MAX_XCRS
from pykvm.abi_vcpu import kvm_sregs

# --- vCPU -------------------------------------------------------------------------------------


class kvm_sregs2(Structure):
    """As kvm_sregs, with the page directory pointers of a 32-bit guest with PAE; no interrupt."""

    _fields_ = (
        *(field for field in kvm_sregs._fields_ if field[0] != "interrupt_bitmap"),
        ("flags", c_uint64),
        ("pdptrs", c_uint64 * 4),
    )


class kvm_xsave(Structure):
    """Floating point, vector and other extended state, in the layout of CPUID leaf 0xD."""

    _fields_ = (("region", c_uint32 * 1024), ("extra", c_uint32 * 0))


class kvm_xcr(Structure):
    """One extended control register."""

    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))


class kvm_xcrs(Structure):
    """The `nr_xcrs` extended control registers: today one, XCR0."""

    _fields_ = (
        ("nr_xcrs", c_uint32),
        ("flags", c_uint32),
        ("xcrs", kvm_xcr * KVM_MAX_XCRS),
        ("padding", c_uint64 * 16),
    )


class kvm_debugregs(Structure):
    """DR0 to DR3, DR6 and DR7."""

    _fields_ = (
        ("db", c_uint64 * 4),
        *((name, c_uint64) for name in ("dr6", "dr7", "flags")),
        ("reserved", c_uint64 * 9),
    )


class _kvm_vcpu_events_exception(Structure):
    """A pending exception."""

    _fields_ = (
        *((name, c_uint8) for name in ("injected", "nr", "has_error_code", "pending")),
        ("error_code", c_uint32),
    )


class _kvm_vcpu_events_interrupt(Structure):
    """A pending interrupt; `shadow` is KVM_X86_SHADOW_INT_*."""

    _fields_ = tuple((name, c_uint8) for name in ("injected", "nr", "soft", "shadow"))


class _kvm_vcpu_events_nmi(Structure):
    """A pending non-maskable interrupt."""

    _fields_ = tuple((name, c_uint8) for name in ("injected", "pending", "masked", "pad"))


class _kvm_vcpu_events_smi(Structure):
    """System management mode."""

    _fields_ = tuple(
        (name, c_uint8) for name in ("smm", "pending", "smm_inside_nmi", "latched_init")
    )


class _kvm_vcpu_events_triple_fault(Structure):
    """A pending triple fault."""

    _fields_ = (("pending", c_uint8),)


class kvm_vcpu_events(Structure):
    """Pending events of a vCPU; `flags`, KVM_VCPUEVENT_VALID_*, selects the parts that apply."""

    _fields_ = (
        ("exception", _kvm_vcpu_events_exception),
        ("interrupt", _kvm_vcpu_events_interrupt),
        ("nmi", _kvm_vcpu_events_nmi),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", _kvm_vcpu_events_smi),
        ("triple_fault", _kvm_vcpu_events_triple_fault),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


# --- nested virtualization: the vCPU of a guest that is a hypervisor itself --------------------


class kvm_vmx_nested_state_data(Structure):
    """The guest's control structures, on Intel."""

    _fields_ = (("vmcs12", c_uint8 * 4096), ("shadow_vmcs12", c_uint8 * 4096))


class _kvm_vmx_nested_state_hdr_smm(Structure):
    """System management mode, on Intel."""

    _fields_ = (("flags", c_uint16),)


class kvm_vmx_nested_state_hdr(Structure):
    """Addresses of the guest's control structures, on Intel."""

    _fields_ = (
        ("vmxon_pa", c_uint64),
        ("vmcs12_pa", c_uint64),
        ("smm", _kvm_vmx_nested_state_hdr_smm),
        ("pad", c_uint16),
        ("flags", c_uint32),
        ("preemption_timer_deadline", c_uint64),
    )


class kvm_svm_nested_state_data(Structure):
    """The guest's control block, on AMD."""

    _fields_ = (("vmcb12", c_uint8 * 4096),)


class kvm_svm_nested_state_hdr(Structure):
    """Address of the guest's control block, on AMD."""

    _fields_ = (("vmcb_pa", c_uint64),)


class _kvm_nested_state_hdr(Union):
    """Header, selected by `kvm_nested_state.format`."""

    _fields_ = (
        ("vmx", kvm_vmx_nested_state_hdr),
        ("svm", kvm_svm_nested_state_hdr),
        ("pad", c_uint8 * 120),
    )


class _kvm_nested_state_data(Union):
    """Data after the header; its length follows from `kvm_nested_state.size`."""

    _fields_ = (("vmx", kvm_vmx_nested_state_data * 0), ("svm", kvm_svm_nested_state_data * 0))


class kvm_nested_state(Structure):
    """Nested virtualization; `size` is in bytes, this header included."""

    _fields_ = (
        ("flags", c_uint16),
        ("format", c_uint16),
        ("size", c_uint32),
        ("hdr", _kvm_nested_state_hdr),
        ("data", _kvm_nested_state_data),
    )


# --- virtual machine --------------------------------------------------------------------------


class kvm_pic_state(Structure):
    """One 8259 interrupt controller."""

    _fields_ = tuple(
        (name, c_uint8)
        for name in (
            *("last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_reg_select"),
            *("poll", "special_mask", "init_state", "auto_eoi", "rotate_on_auto_eoi"),
            *("special_fully_nested_mode", "init4", "elcr", "elcr_mask"),
        )
    )


class _kvm_ioapic_state_redirtbl(Union):
    """One entry of the redirection table."""

    _fields_ = (("bits", c_uint64),)


class kvm_ioapic_state(Structure):
    """The IO-APIC."""

    _fields_ = (
        ("base_address", c_uint64),
        *((name, c_uint32) for name in ("ioregsel", "id", "irr", "pad")),
        ("redirtbl", _kvm_ioapic_state_redirtbl * KVM_IOAPIC_NUM_PINS),
    )


class _kvm_irqchip_chip(Union):
    """Registers, selected by `kvm_irqchip.chip_id`."""

    _fields_ = (("dummy", c_char * 512), ("pic", kvm_pic_state), ("ioapic", kvm_ioapic_state))


class kvm_irqchip(Structure):
    """An in-kernel interrupt controller; `chip_id` is KVM_IRQCHIP_*."""

    _fields_ = (("chip_id", c_uint32), ("pad", c_uint32), ("chip", _kvm_irqchip_chip))


class kvm_pit_channel_state(Structure):
    """One counter of the i8254; `count_load_time` is in ns of the host's CLOCK_MONOTONIC."""

    _fields_ = (
        ("count", c_uint32),
        ("latched_count", c_uint16),
        *(
            (name, c_uint8)
            for name in (
                *("count_latched", "status_latched", "status", "read_state", "write_state"),
                *("write_latch", "rw_mode", "mode", "bcd", "gate"),
            )
        ),
        ("count_load_time", c_int64),
    )


class kvm_pit_state2(Structure):
    """The i8254 timer."""

    _fields_ = (
        ("channels", kvm_pit_channel_state * 3),
        ("flags", c_uint32),
        ("reserved", c_uint32 * 9),
    )


class kvm_clock_data(Structure):
    """The guest's kvmclock in ns; the flags KVM_CLOCK_* select the other valid fields."""

    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    )
