# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: memory slots, interrupt controllers, eventfds, and the creation of vCPUs.

Implements the VM ioctls of Documentation/virt/kvm/api.rst, section 4. Each method is one ioctl,
named after it in lower case; its arguments are the fields of the structure that the ioctl takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import c_uint64
from typing import Any

from pykvm import abi, ioctls
from pykvm.handle import KvmHandle
from pykvm.vcpu import Vcpu


def address_of(buffer: Any) -> int:
    """Return the address, in this process, of a writable buffer such as an mmap (the hva).

    The caller keeps the buffer alive and unmoved while the address is in use.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def irqchip_route(gsi: int, irqchip: int, pin: int) -> abi.kvm_irq_routing_entry:
    """Return a route from `gsi` to a pin of an in-kernel KVM_IRQCHIP_*."""
    entry = abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip.irqchip = irqchip
    entry.u.irqchip.pin = pin
    return entry


def msi_route(gsi: int, address: int, data: int) -> abi.kvm_irq_routing_entry:
    """Return a route from `gsi` to a message-signalled interrupt."""
    entry = abi.kvm_irq_routing_entry(gsi=gsi, type=abi.KVM_IRQ_ROUTING_MSI)
    entry.u.msi.address_lo = address & 0xFFFF_FFFF
    entry.u.msi.address_hi = address >> 32
    entry.u.msi.data = data
    return entry


class Vm(KvmHandle):
    """A virtual machine, created by `System.create_vm`."""

    def __init__(self, fd: int, vcpu_mmap_size_bytes: int) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size_bytes = vcpu_mmap_size_bytes

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION, for this VM: 0 if KVM_CAP_* `cap` is missing, else positive."""
        return self.ioctl(ioctls.KVM_CHECK_EXTENSION, cap)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP: enable an optional capability of this VM, with up to 4 arguments."""
        request = abi.kvm_enable_cap(cap=cap, flags=flags)
        request.args[: len(args)] = args
        self.ioctl(ioctls.KVM_ENABLE_CAP, request)

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        flags: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: map `memory_size` bytes of this process as guest memory.

        Addresses and size are multiples of the host's page size; `userspace_addr` is the
        result of `address_of` for an mmap, which must outlive the VM. A size of 0 removes the slot.
        With KVM_MEM_LOG_DIRTY_PAGES in `flags` KVM logs which pages are written to; flags may be
        changed while the guest runs.
        """
        region = abi.kvm_userspace_memory_region(
            slot=slot,
            flags=flags,
            guest_phys_addr=guest_phys_addr,
            memory_size=memory_size,
            userspace_addr=userspace_addr,
        )
        self.ioctl(ioctls.KVM_SET_USER_MEMORY_REGION, region)

    def get_dirty_log(self, slot: int, bitmap: Any) -> None:
        """KVM_GET_DIRTY_LOG (4.8): which pages of `slot` the guest has written to.

        The slot has KVM_MEM_LOG_DIRTY_PAGES. `bitmap` is a writable buffer with a bit for each of
        its pages, rounded up to 64; the lowest bit of the first byte is the first page. Bits are
        cleared and pages write-protected again at once, unless
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is enabled: then `clear_dirty_log` does both.
        """
        log = abi.kvm_dirty_log(slot=slot, dirty_bitmap=address_of(bitmap))
        self.ioctl(ioctls.KVM_GET_DIRTY_LOG, log)

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: Any) -> None:
        """KVM_CLEAR_DIRTY_LOG (4.117): clear and protect again the pages whose bits are set.

        Bit 0 of `bitmap`, a writable buffer as for `get_dirty_log`, is `first_page`, a multiple of
        64; so is `num_pages`, unless the range ends with the slot.
        """
        if len(bitmap) * 8 < num_pages:
            raise ValueError(f"a bitmap of {len(bitmap)} bytes for {num_pages} pages")
        log = abi.kvm_clear_dirty_log(
            slot=slot, num_pages=num_pages, first_page=first_page, dirty_bitmap=address_of(bitmap)
        )
        self.ioctl(ioctls.KVM_CLEAR_DIRTY_LOG, log)

    def set_tss_addr(self, addr: int) -> None:
        """KVM_SET_TSS_ADDR: three unused guest pages below 4 GiB, which Intel's VMX needs."""
        self.ioctl(ioctls.KVM_SET_TSS_ADDR, addr)

    def set_identity_map_addr(self, addr: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one more such page; before any vCPU is created."""
        self.ioctl(ioctls.KVM_SET_IDENTITY_MAP_ADDR, c_uint64(addr))

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: two 8259s, an IO-APIC and a local APIC for each vCPU created later.

        Routes GSI 0 to 15 to both, GSI 16 to 23 to the IO-APIC.
        """
        self.ioctl(ioctls.KVM_CREATE_IRQCHIP)

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2: an i8254 timer on ports 0x40-0x43; needs `create_irqchip` first.

        With KVM_PIT_SPEAKER_DUMMY in `flags` it also serves port 0x61.
        """
        self.ioctl(ioctls.KVM_CREATE_PIT2, abi.kvm_pit_config(flags=flags))

    def get_irqchip(self, chip_id: int) -> abi.kvm_irqchip:
        """KVM_GET_IRQCHIP (4.26): one of the in-kernel controllers, KVM_IRQCHIP_*."""
        chip = abi.kvm_irqchip(chip_id=chip_id)
        self.ioctl(ioctls.KVM_GET_IRQCHIP, chip)
        return chip

    def set_irqchip(self, chip: abi.kvm_irqchip) -> None:
        """KVM_SET_IRQCHIP (4.27): the one that `chip.chip_id` names."""
        self.ioctl(ioctls.KVM_SET_IRQCHIP, chip)

    def get_pit2(self) -> abi.kvm_pit_state2:
        """KVM_GET_PIT2 (4.72): the i8254 timer."""
        state = abi.kvm_pit_state2()
        self.ioctl(ioctls.KVM_GET_PIT2, state)
        return state

    def set_pit2(self, state: abi.kvm_pit_state2) -> None:
        """KVM_SET_PIT2 (4.73); counters restart from their counts."""
        self.ioctl(ioctls.KVM_SET_PIT2, state)

    def get_clock(self) -> abi.kvm_clock_data:
        """KVM_GET_CLOCK (4.29): the guest's kvmclock now, in ns; `flags` are KVM_CLOCK_*."""
        clock = abi.kvm_clock_data()
        self.ioctl(ioctls.KVM_GET_CLOCK, clock)
        return clock

    def set_clock(self, clock: abi.kvm_clock_data) -> None:
        """KVM_SET_CLOCK (4.30): kvmclock continues from `clock.clock`.

        With KVM_CLOCK_REALTIME in `flags`, plus the time that has passed since `realtime`.
        """
        self.ioctl(ioctls.KVM_SET_CLOCK, clock)

    def irq_line(self, irq: int, level: int) -> None:
        """KVM_IRQ_LINE: set the level (0 or 1) of a GSI; an edge needs 1, then 0."""
        self.ioctl(ioctls.KVM_IRQ_LINE, abi.kvm_irq_level(irq=irq, level=level))

    def set_gsi_routing(self, entries: Iterable[abi.kvm_irq_routing_entry]) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole table (see `irqchip_route`, `msi_route`)."""
        self.ioctl(ioctls.KVM_SET_GSI_ROUTING, abi.irq_routing(entries))

    def irqfd(self, fd: int, gsi: int, flags: int = 0, resamplefd: int | None = None) -> None:
        """KVM_IRQFD: raise `gsi` whenever the eventfd `fd` is signalled.

        With `resamplefd` (an eventfd too) the GSI is level-triggered: signalling `fd` asserts it,
        the guest's end-of-interrupt deasserts it and signals `resamplefd`. KVM_IRQFD_FLAG_DEASSIGN
        in `flags` removes the assignment of the same `fd` and `gsi`.
        """
        request = abi.kvm_irqfd(fd=fd, gsi=gsi, flags=flags)
        if resamplefd is not None:
            request.flags |= abi.KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = resamplefd
        self.ioctl(ioctls.KVM_IRQFD, request)

    def ioeventfd(
        self, fd: int, addr: int, len: int, datamatch: int | None = None, flags: int = 0
    ) -> None:
        """KVM_IOEVENTFD: signal the eventfd `fd` when the guest writes `len` bytes to `addr`.

        The write then causes no exit. `len` is 1, 2, 4 or 8, or 0 for any; with `datamatch` only
        a write of that value counts. KVM_IOEVENTFD_FLAG_PIO in `flags` makes `addr` a port,
        KVM_IOEVENTFD_FLAG_DEASSIGN removes the assignment of the same arguments.
        """
        request = abi.kvm_ioeventfd(addr=addr, len=len, fd=fd, flags=flags)
        if datamatch is not None:
            request.flags |= abi.KVM_IOEVENTFD_FLAG_DATAMATCH
            request.datamatch = datamatch
        self.ioctl(ioctls.KVM_IOEVENTFD, request)

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: send a message-signalled interrupt; False if the guest blocked it."""
        message = abi.kvm_msi(address_lo=address & 0xFFFF_FFFF, address_hi=address >> 32, data=data)
        return self.ioctl(ioctls.KVM_SIGNAL_MSI, message) > 0

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU: a vCPU, whose local APIC ID is `vcpu_id`.

        With an in-kernel irqchip, vCPU 0 is the bootstrap processor and the others wait for its
        start-up IPI.
        """
        return Vcpu(self.ioctl(ioctls.KVM_CREATE_VCPU, vcpu_id), self._vcpu_mmap_size_bytes)
