# SPDX-License-Identifier: Apache-2.0
"""Capabilities of this host's KVM for saving and restoring guests, queried once per machine.

Saving depends on the state that KVM has (its MSRs, the size of XSAVE state). Restoring depends on
the features that this host does not offer, which must be known before the guest runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm import abi
from pyvmm.cpuid.policy import guest_cpuid
from pyvmm.errors import UserError

if TYPE_CHECKING:
    from pykvm import System, Vm

MIN_XSAVE_BYTES = 4096
_NEEDED = (
    *("KVM_CAP_PIT_STATE2", "KVM_CAP_ADJUST_CLOCK", "KVM_CAP_VCPU_EVENTS", "KVM_CAP_DEBUGREGS"),
    *("KVM_CAP_XSAVE", "KVM_CAP_GET_TSC_KHZ", "KVM_CAP_SREGS2"),
)


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of KVM for one virtual machine."""

    cpuid: abi.kvm_cpuid2
    """CPUID of the boot processor of a guest started here."""
    msr_indices: list[int]
    xsave_bytes: int
    xcrs: bool
    """The CPU has XCR0, that is, XSAVE."""
    tsc_scaling: bool

    @classmethod
    def of(cls, system: System, vm: Vm) -> Capabilities:
        """Query KVM; UserError where it is too old to save a guest."""
        for name in _NEEDED:
            if not vm.check_extension(getattr(abi, name)):
                raise UserError(
                    f"this KVM cannot save or restore a guest: it has no {name} (Linux 5.14)"
                )
        return cls(
            cpuid=guest_cpuid(system, 0),
            msr_indices=system.get_msr_index_list(),
            xsave_bytes=max(MIN_XSAVE_BYTES, vm.check_extension(abi.KVM_CAP_XSAVE2)),
            xcrs=vm.check_extension(abi.KVM_CAP_XCRS) > 0,
            tsc_scaling=vm.check_extension(abi.KVM_CAP_TSC_CONTROL) > 0,
        )
