# SPDX-License-Identifier: Apache-2.0
"""Structures that the KVM ioctls of /dev/kvm and of a virtual machine take, by kernel name.

From <linux/kvm.h> and, for x86, <asm/kvm.h>. A union that has no name in C has one with a leading
underscore here; the members of an anonymous one are reached as in C. A structure that ends in a
flexible array member is declared with an array of length zero; `pykvm.abi` makes variants with
room for elements.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint8, c_uint32, c_uint64, c_void_p

# --- /dev/kvm ---------------------------------------------------------------------------------


class kvm_cpuid_entry2(Structure):
    """One CPUID leaf; `index` applies only with KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""

    _fields_ = (
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    )


class kvm_cpuid2(Structure):
    """CPUID leaves, for KVM_GET_SUPPORTED_CPUID and KVM_SET_CPUID2."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32), ("entries", kvm_cpuid_entry2 * 0))


class kvm_msr_list(Structure):
    """Indices of the MSRs that KVM_GET_MSRS and KVM_SET_MSRS know."""

    _fields_ = (("nmsrs", c_uint32), ("indices", c_uint32 * 0))


# --- virtual machine --------------------------------------------------------------------------


class kvm_userspace_memory_region(Structure):
    """One memory slot: guest-physical range → process address; a size of 0 removes it."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class _kvm_dirty_log_u(Union):
    """The bitmap's address in this process."""

    _fields_ = (("dirty_bitmap", c_void_p), ("padding2", c_uint64))


class kvm_dirty_log(Structure):
    """A buffer in which KVM_GET_DIRTY_LOG sets a bit for each written page of a slot."""

    _anonymous_ = ("_u",)
    _fields_ = (("slot", c_uint32), ("padding1", c_uint32), ("_u", _kvm_dirty_log_u))


class kvm_clear_dirty_log(Structure):
    """Pages of a slot to log again: those whose bits are set, from `first_page` on."""

    _anonymous_ = ("_u",)
    _fields_ = (
        ("slot", c_uint32),
        ("num_pages", c_uint32),
        ("first_page", c_uint64),
        ("_u", _kvm_dirty_log_u),
    )


class kvm_pit_config(Structure):
    """Options of the i8254 timer, for KVM_CREATE_PIT2."""

    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


class _kvm_irq_level_u(Union):
    """`irq` is the argument, `status` the result of KVM_IRQ_LINE_STATUS."""

    _fields_ = (("irq", c_uint32), ("status", c_int32))


class kvm_irq_level(Structure):
    """A level for one GSI of the in-kernel interrupt controllers."""

    _anonymous_ = ("_u",)
    _fields_ = (("_u", _kvm_irq_level_u), ("level", c_uint32))


class kvm_irq_routing_irqchip(Structure):
    """Route to a pin of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""

    _fields_ = (("irqchip", c_uint32), ("pin", c_uint32))


class _kvm_irq_routing_msi_u(Union):
    """`devid` applies only with KVM_MSI_VALID_DEVID, which x86 does not use."""

    _fields_ = (("pad", c_uint32), ("devid", c_uint32))


class kvm_irq_routing_msi(Structure):
    """Route to a message-signalled interrupt."""

    _anonymous_ = ("_u",)
    _fields_ = (
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("_u", _kvm_irq_routing_msi_u),
    )


class kvm_irq_routing_s390_adapter(Structure):
    """Unused on x86; its alignment is the union's."""

    _fields_ = (
        ("ind_addr", c_uint64),
        ("summary_addr", c_uint64),
        ("ind_offset", c_uint64),
        ("summary_offset", c_uint32),
        ("adapter_id", c_uint32),
    )


class _kvm_irq_routing_entry_u(Union):
    """Destination of an interrupt, selected by `kvm_irq_routing_entry.type`."""

    _fields_ = (
        ("irqchip", kvm_irq_routing_irqchip),
        ("msi", kvm_irq_routing_msi),
        ("adapter", kvm_irq_routing_s390_adapter),
        ("pad", c_uint32 * 8),
    )


class kvm_irq_routing_entry(Structure):
    """One destination of a GSI."""

    _fields_ = (
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("u", _kvm_irq_routing_entry_u),
    )


class kvm_irq_routing(Structure):
    """The whole routing table; setting it replaces the one before."""

    _fields_ = (("nr", c_uint32), ("flags", c_uint32), ("entries", kvm_irq_routing_entry * 0))


class kvm_irqfd(Structure):
    """An eventfd that, when signalled, raises a GSI."""

    _fields_ = (
        *((name, c_uint32) for name in ("fd", "gsi", "flags", "resamplefd")),
        ("pad", c_uint8 * 16),
    )


class kvm_ioeventfd(Structure):
    """An eventfd that is signalled when the guest writes to an address."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


class kvm_msi(Structure):
    """A message-signalled interrupt to send now."""

    _fields_ = (
        *((name, c_uint32) for name in ("address_lo", "address_hi", "data", "flags", "devid")),
        ("pad", c_uint8 * 12),
    )


class kvm_device_attr(Structure):
    """One attribute of a device or, here, of a vCPU; `addr` is the address of its value."""

    _fields_ = (
        ("flags", c_uint32),
        ("group", c_uint32),
        ("attr", c_uint64),
        ("addr", c_uint64),
    )


class kvm_enable_cap(Structure):
    """An optional capability to enable."""

    _fields_ = (
        ("cap", c_uint32),
        ("flags", c_uint32),
        ("args", c_uint64 * 4),
        ("pad", c_uint8 * 64),
    )
