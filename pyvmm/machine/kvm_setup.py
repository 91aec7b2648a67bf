# SPDX-License-Identifier: Apache-2.0
"""A VM of KVM with its RAM, interrupt controllers and timer, before it has vCPUs.

KVM_CREATE_PIT2, KVM_SET_GSI_ROUTING and KVM_SET_USER_MEMORY_REGION each replace a table that vCPUs
read without a lock, and wait until nothing can be reading the former one (`synchronize_srcu` in the
kernel), for milliseconds in all. So `pyvmm.machine.early_boot` makes these requests in a thread.

KVM API: KVM_CREATE_VM, KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2 (Documentation/virt/kvm/api.rst,
section 4).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from pykvm import System, abi
from pyvmm.machine.errors import PlatformNotCreated, host_errors_reported
from pyvmm.machine.interrupts import InterruptRouter, set_pci_levels
from pyvmm.memory import layout
from pyvmm.memory.ram import Ram

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig


class KvmSetup:
    """A new VM whose memory slots are `ram`.

    Raises `PlatformNotCreated` if KVM refuses a request.

    Threads: any creates it; then as `Machine`.
    """

    @host_errors_reported(PlatformNotCreated)
    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        # A VM keeps the processor's virtualization enabled, and a lab may run for hours instead.
        with ExitStack() as refused:
            self.system = refused.enter_context(System())
            self.vm = refused.enter_context(self.system.create_vm())
            self.vm.set_tss_addr(layout.KVM_TSS_GPA)
            self.vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
            self.vm.create_irqchip()
            self.vm.create_pit2(abi.KVM_PIT_SPEAKER_DUMMY)
            set_pci_levels(self.vm)
            self.router = InterruptRouter(self.vm)
            ram.attach(self.vm)
            refused.pop_all()

    def close(self) -> None:
        """Release the VM, whose vCPUs are closed, and its RAM."""
        self.vm.close()
        self.system.close()
        self.ram.close()


def make_ram(config: MachineConfig) -> Ram:
    """Return RAM as `config` describes it. Raises `HostMemoryUnavailable`."""
    if config.hugepages != "hugetlbfs":
        return Ram(config.ram_bytes, transparent=config.hugepages == "transparent")
    # 4 modules, for RAM in huge pages of hugetlbfs.
    from pyvmm.memory.hugetlb_ram import HugetlbRam

    return HugetlbRam(config.ram_bytes)
