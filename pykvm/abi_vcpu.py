# SPDX-License-Identifier: Apache-2.0
"""Structures of a vCPU: its registers, and `kvm_run`, the page shared with the kernel.

From <linux/kvm.h> and, for x86, <asm/kvm.h>. After KVM_RUN returns, `kvm_run.exit_reason` says
which member of its unnamed union is meaningful (Documentation/virt/kvm/api.rst, section 5, "The
kvm_run structure"). The members for exits that x86 cannot produce are left out; the union's
`padding` still gives it its size. Types without a name in C have one with a leading underscore
here.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_char, c_uint8, c_uint16, c_uint32, c_uint64

from pykvm.abi_constants import KVM_APIC_REG_SIZE, KVM_NR_INTERRUPTS

_LEGACY_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")
_GENERAL_REGISTERS = (*_LEGACY_REGISTERS, *(f"r{n}" for n in range(8, 16)), "rip", "rflags")
_SEGMENT_REGISTERS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_SEGMENT_FLAGS = ("present", "dpl", "db", "s", "l", "g", "avl")
_CONTROL_REGISTERS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


class kvm_regs(Structure):
    """General registers, for KVM_GET_REGS and KVM_SET_REGS."""

    _fields_ = tuple((name, c_uint64) for name in _GENERAL_REGISTERS)


class kvm_segment(Structure):
    """A segment register with its hidden descriptor part; `limit` is in bytes."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in ("type", *_SEGMENT_FLAGS, "unusable", "padding")),
    )


class kvm_dtable(Structure):
    """GDTR or IDTR."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class kvm_sregs(Structure):
    """Segment, table and control registers, for KVM_GET_SREGS and KVM_SET_SREGS."""

    _fields_ = (
        *((name, kvm_segment) for name in _SEGMENT_REGISTERS),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        *((name, c_uint64) for name in _CONTROL_REGISTERS),
        ("interrupt_bitmap", c_uint64 * ((KVM_NR_INTERRUPTS + 63) // 64)),
    )


class kvm_fpu(Structure):
    """x87 and SSE state, for KVM_GET_FPU and KVM_SET_FPU."""

    _fields_ = (
        ("fpr", (c_uint8 * 16) * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", (c_uint8 * 16) * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    )


class kvm_msr_entry(Structure):
    """One model-specific register."""

    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class kvm_msrs(Structure):
    """Model-specific registers, for KVM_GET_MSRS and KVM_SET_MSRS."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32), ("entries", kvm_msr_entry * 0))


class kvm_lapic_state(Structure):
    """The local APIC's register page."""

    _fields_ = (("regs", c_uint8 * KVM_APIC_REG_SIZE),)


class kvm_mp_state(Structure):
    """Run state of a vCPU: running, waiting to be started, or halted (KVM_MP_STATE_*)."""

    _fields_ = (("mp_state", c_uint32),)


# --- kvm_run and the members of its union -----------------------------------------------------


class _kvm_run_hw(Structure):
    """KVM_EXIT_UNKNOWN."""

    _fields_ = (("hardware_exit_reason", c_uint64),)


class _kvm_run_fail_entry(Structure):
    """KVM_EXIT_FAIL_ENTRY."""

    _fields_ = (("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32))


class _kvm_run_ex(Structure):
    """KVM_EXIT_EXCEPTION."""

    _fields_ = (("exception", c_uint32), ("error_code", c_uint32))


class _kvm_run_io(Structure):
    """KVM_EXIT_IO: `count` items of `size` bytes lie `data_offset` bytes after kvm_run's start."""

    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class kvm_debug_exit_arch(Structure):
    """Details of KVM_EXIT_DEBUG on x86."""

    _fields_ = (
        ("exception", c_uint32),
        ("pad", c_uint32),
        ("pc", c_uint64),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
    )


class _kvm_run_debug(Structure):
    """KVM_EXIT_DEBUG."""

    _fields_ = (("arch", kvm_debug_exit_arch),)


class _kvm_run_mmio(Structure):
    """KVM_EXIT_MMIO: an access of `len` bytes; `data` is filled in by the source."""

    _fields_ = (
        ("phys_addr", c_uint64),
        ("data", c_uint8 * 8),
        ("len", c_uint32),
        ("is_write", c_uint8),
    )


class _kvm_run_internal(Structure):
    """KVM_EXIT_INTERNAL_ERROR: KVM_INTERNAL_ERROR_* and `ndata` words about it."""

    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class _kvm_run_emulation_failure(Structure):
    """KVM_EXIT_INTERNAL_ERROR with suberror KVM_INTERNAL_ERROR_EMULATION."""

    _fields_ = (
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    )


class _kvm_run_system_event_u(Union):
    """`flags` is the older name of the first word of `data`."""

    _fields_ = (("flags", c_uint64), ("data", c_uint64 * 16))


class _kvm_run_system_event(Structure):
    """KVM_EXIT_SYSTEM_EVENT."""

    _anonymous_ = ("_u",)
    _fields_ = (("type", c_uint32), ("ndata", c_uint32), ("_u", _kvm_run_system_event_u))


class _kvm_run_eoi(Structure):
    """KVM_EXIT_IOAPIC_EOI."""

    _fields_ = (("vector", c_uint8),)


class _kvm_run_msr(Structure):
    """KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR."""

    _fields_ = (
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    )


class _kvm_run_u(Union):
    """Details of an exit; `kvm_run.exit_reason` selects the member."""

    _fields_ = (
        ("hw", _kvm_run_hw),
        ("fail_entry", _kvm_run_fail_entry),
        ("ex", _kvm_run_ex),
        ("io", _kvm_run_io),
        ("debug", _kvm_run_debug),
        ("mmio", _kvm_run_mmio),
        ("internal", _kvm_run_internal),
        ("emulation_failure", _kvm_run_emulation_failure),
        ("system_event", _kvm_run_system_event),
        ("eoi", _kvm_run_eoi),
        ("msr", _kvm_run_msr),
        ("padding", c_char * 256),
    )


class _kvm_run_s(Union):
    """Registers shared with the kernel under KVM_CAP_SYNC_REGS, which is not used here."""

    _fields_ = (("padding", c_char * 2048),)


class kvm_run(Structure):
    """Start of the area that mmap() of a vCPU's file descriptor maps."""

    _anonymous_ = ("_u",)
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("_u", _kvm_run_u),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", _kvm_run_s),
    )
