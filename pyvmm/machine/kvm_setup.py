# SPDX-License-Identifier: Apache-2.0
"""A VM of KVM with its RAM, interrupt controllers and timer, and vCPUs as they are needed.

KVM_CREATE_PIT2, KVM_SET_GSI_ROUTING and KVM_SET_USER_MEMORY_REGION each replace a table that vCPUs
read without a lock, and wait until nothing can be reading the former one (`synchronize_srcu` in the
kernel), for milliseconds in all. So `pyvmm.machine.early_boot` makes these requests in a thread,
and a destination of migrations before a guest arrives: none of them depends on the guest but the
memory slots, which can be replaced while no vCPU has run (`remove_ram`, `add_ram`).

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
    from pykvm import Vcpu
    from pyvmm.config import MachineConfig
    from pyvmm.state.parts import Rehearsed


class KvmSetup:
    """A new VM whose memory slots are `ram`.

    Raises `PlatformNotCreated` if KVM refuses a request.

    Threads: any creates it; then as `Machine`.
    """

    @host_errors_reported(PlatformNotCreated)
    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.rehearsed: Rehearsed | None = None
        """The result of the rehearsal with a machine of this VM, if there was one."""
        self._vcpus: list[Vcpu] = []
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

    def vcpus(self, count: int) -> list[Vcpu]:
        """Return the first `count` vCPUs; create those that do not exist, or none if one fails."""
        with ExitStack() as refused:
            created = [
                refused.enter_context(self.vm.create_vcpu(index))
                for index in range(len(self._vcpus), count)
            ]
            refused.pop_all()
        self._vcpus += created
        return self._vcpus[:count]

    @host_errors_reported(PlatformNotCreated)
    def remove_ram(self) -> None:
        """Release the RAM of a VM that has not run, and forget its interrupt routes."""
        self.ram.detach(self.vm)
        self.ram.close()
        self.router = InterruptRouter(self.vm)

    @host_errors_reported(PlatformNotCreated)
    def add_ram(self, ram: Ram) -> None:
        """Make `ram` the memory slots, after `remove_ram`."""
        self.ram = ram
        ram.attach(self.vm)

    def close(self) -> None:
        """Release the VM, its vCPUs and its RAM."""
        for vcpu in self._vcpus:
            vcpu.close()
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
