# SPDX-License-Identifier: Apache-2.0
"""Save and restore the parts of a machine, everything but its memory, as records.

Memory is restored first, as the parts read it. Then come the vCPUs, then the state that KVM holds
of the machine as a whole (its interrupt controllers deliver to local APICs, its clock derives from
time stamp counters), and devices last: they assert their lines and send their messages again, which
needs the interrupt controllers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from devices.legacy.acpi_pm import AcpiPm
from devices.legacy.rtc import Rtc
from devices.legacy.uart import Uart16550
from devices.pci.config_space import PciFunction
from devices.pci.host_bridge import ConfigMechanism1
from devices.registers import RegisterTable
from devices.state import MAX_PAYLOAD_BYTES, Fields, StateError, Stateful, encode
from pyvmm.config import MAX_VCPUS
from pyvmm.state import kvm_vcpu, kvm_vm
from pyvmm.state.capabilities import Capabilities
from pyvmm.state.clock import read_clocks
from pyvmm.state.records import Kind, Record, record_fields

if TYPE_CHECKING:
    from pykvm import System, Vcpu, Vm

_DEVICES = {
    "acpi_pm": AcpiPm.STATE_VERSION,
    "host-bridge": PciFunction.STATE_VERSION,
    "pci_config_ports": ConfigMechanism1.STATE_VERSION,
    "post": RegisterTable.STATE_VERSION,
    "rtc": Rtc.STATE_VERSION,
    "uart": Uart16550.STATE_VERSION,
}
PLATFORM_KINDS = {
    kvm_vcpu.KIND: Kind(kvm_vcpu.VERSION, MAX_PAYLOAD_BYTES, MAX_VCPUS),
    kvm_vm.KIND: Kind(kvm_vm.VERSION, MAX_PAYLOAD_BYTES),
    **{name: Kind(version, MAX_PAYLOAD_BYTES) for name, version in _DEVICES.items()},
}
"""Kinds of record of the parts that every machine has; `pyvmm.machine.catalogue` adds devices."""


class Rehearsed(NamedTuple):
    """The result of a rehearsal, for all machines of the same VM."""

    capabilities: Capabilities
    fresh_vcpu: kvm_vcpu.FreshVcpu
    kinds: frozenset[str]
    """The kinds of the parts that have been restored."""


@dataclass(frozen=True)
class MachineParts:
    """Everything of one machine that has state, except its memory.

    Threads: event loop.
    """

    system: System
    vm: Vm
    vcpus: Sequence[Vcpu]
    devices: Sequence[Stateful]
    kinds: Mapping[str, Kind]
    """Every kind of record that the machine may have."""
    rehearsed: Rehearsed | None = None
    """The rehearsal of an earlier machine of `vm`."""

    @cached_property
    def capabilities(self) -> Capabilities:
        """Capabilities of KVM for the machine; UserError where it is too old."""
        if self.rehearsed is not None:
            return self.rehearsed.capabilities
        return Capabilities.of(self.system, self.vm)

    @cached_property
    def fresh_vcpu(self) -> kvm_vcpu.FreshVcpu:
        """A vCPU as it is in a machine of this kind before it is restored."""
        if self.rehearsed is not None:
            return self.rehearsed.fresh_vcpu
        return kvm_vcpu.fresh_vcpu(self.vcpus[0], self.capabilities)

    def prewarm(self) -> None:
        """Query `capabilities`, and save everything but the vCPUs once, which may be running.

        Both take longer than saving does afterwards. Raises UserError.
        """
        _ = self.capabilities
        self._save_platform(0, 0)

    def rehearse(self) -> Rehearsed:
        """Save and restore the state of a machine that was neither booted nor restored.

        Code and tables that have been used once are in memory and in the processor's caches; in the
        lab their first use takes three times as long as the next one. Parts of a kind that has been
        rehearsed are left out, and so are vCPUs then. Raises UserError where KVM is too old.
        """
        if self.rehearsed is None:
            fresh = self.fresh_vcpu
            for vcpu in self.vcpus:
                vcpu.set_cpuid2(self.capabilities.cpuid)
            self.restore(self.save())
            known = frozenset[str]()
        else:
            fresh, known = self.fresh_vcpu, self.rehearsed.kinds
            for device in self.devices:
                if device.STATE_KIND not in known:
                    saved = {(device.STATE_KIND, 0): self._save_device(device)}
                    device.restore_state(self._fields(saved, device.STATE_KIND))
        kinds = known | {device.STATE_KIND for device in self.devices}
        return Rehearsed(self.capabilities, fresh, kinds)

    def save(self) -> list[Record]:
        """Return the state of all parts; no vCPU may be in the guest."""
        host = self.capabilities
        clock_ns, counters = read_clocks(self.vm, self.vcpus)
        records = []
        for index, (vcpu, tsc) in enumerate(zip(self.vcpus, counters, strict=True)):
            payload = encode(kvm_vcpu.save_vcpu(vcpu, host, tsc))
            records.append(Record(kvm_vcpu.KIND, kvm_vcpu.VERSION, payload, index))
        return [*records, *self._save_platform(clock_ns, counters[0])]

    def _save_platform(self, clock_ns: int, tsc: int) -> list[Record]:
        """Return the state of all parts but the vCPUs."""
        vm = encode(kvm_vm.save_vm(self.vm, clock_ns, tsc))
        records = [Record(kvm_vm.KIND, kvm_vm.VERSION, vm)]
        return [*records, *(self._save_device(device) for device in self.devices)]

    def _save_device(self, device: Stateful) -> Record:
        payload = encode(device.save_state())
        return Record(device.STATE_KIND, device.STATE_VERSION, payload)

    def restore(self, records: Iterable[Record]) -> None:
        """Restore all parts; no vCPU has run yet, and none may run after a StateError."""
        host, fresh = self.capabilities, self.fresh_vcpu
        saved = {(record.kind, record.instance): record for record in records}
        counters = [
            kvm_vcpu.restore_vcpu(vcpu, self._fields(saved, kvm_vcpu.KIND, index), host, fresh)
            for index, vcpu in enumerate(self.vcpus)
        ]
        kvm_vm.restore_vm(self.vm, self._fields(saved, kvm_vm.KIND), self.vcpus, counters)
        for device in self.devices:
            device.restore_state(self._fields(saved, device.STATE_KIND))
        for kind, instance in saved:
            raise StateError(kind, f"number {instance} is not part of this machine")

    def _fields(self, saved: dict[tuple[str, int], Record], kind: str, instance: int = 0) -> Fields:
        """Remove a part from `saved` and return its fields."""
        record = saved.pop((kind, instance), None)
        if record is None:
            raise StateError(kind, f"number {instance} is missing")
        name = f"{kind} {instance}" if instance else kind
        return record_fields(record, self.kinds[kind], name)
