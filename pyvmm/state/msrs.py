# SPDX-License-Identifier: Apache-2.0
"""Model-specific registers: read and write all those that are state.

KVM lists the registers that it keeps for a guest (KVM_GET_MSR_INDEX_LIST). The list omits the
memory type ranges and the machine check banks, and has entries that are not state: aliases,
requests that KVM carries out when they are written, and Hyper-V's registers, as guests are not
shown Hyper-V. The TSC deadline is restored separately (see `pyvmm.state.kvm_vcpu`).

KVM API: KVM_GET_MSRS (4.18), KVM_SET_MSRS (4.19); Documentation/virt/kvm/x86/msr.rst; Intel SDM
vol. 4, tables 2-2 and 2-3.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from devices.state import StateError

if TYPE_CHECKING:
    from pykvm import Vcpu
    from pyvmm.state.capabilities import Capabilities

TSC, TSC_DEADLINE = 0x10, 0x6E0

_MCG_CAP, _FIRST_BANK, _BANK_MSRS = 0x179, 0x400, 4
_BANKS = 0xFF
_MTRRS = (0x2FF, *range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270))
_ALIASES = {0x11, 0x12}  # MSR_KVM_WALL_CLOCK and MSR_KVM_SYSTEM_TIME
_REQUESTS = {
    0x4B56_4D00,  # MSR_KVM_WALL_CLOCK_NEW: KVM writes the time into guest memory
    0x4B56_4D07,  # MSR_KVM_ASYNC_PF_ACK
}
_HYPER_V = range(0x4000_0000, 0x4000_0200)
_MAX_BATCH = 128  # KVM takes up to 255


def state_indices(vcpu: Vcpu, host: Capabilities) -> list[int]:
    """Return the indices of the registers that are state but the deadline, in writing order."""
    banks = vcpu.get_msrs([_MCG_CAP]).get(_MCG_CAP, 0) & _BANKS
    return [*_state_indices(tuple(host.msr_indices), banks)]


@functools.lru_cache(maxsize=8)
def _state_indices(listed: tuple[int, ...], banks: int) -> tuple[int, ...]:
    last = _FIRST_BANK + banks * _BANK_MSRS
    ours = [index for index in listed if index not in _HYPER_V]
    indices = dict.fromkeys([*ours, *_MTRRS, *range(_FIRST_BANK, last)])
    omitted = {TSC_DEADLINE, *_ALIASES, *_REQUESTS}
    return tuple(index for index in indices if index not in omitted)


def read(vcpu: Vcpu, indices: list[int]) -> dict[int, int]:
    """Return the values of those that this vCPU has: some do not exist in every guest."""
    values: dict[int, int] = {}
    position = 0
    while position < len(indices):
        batch = indices[position : position + _MAX_BATCH]
        known = vcpu.get_msrs(batch)
        values |= known
        position += len(known) + (len(known) < len(batch))  # past the one that it stopped at
    return values


def write(vcpu: Vcpu, values: Mapping[int, int], part: str) -> None:
    """Write `values` in order; StateError of `part` for a value that KVM refuses.

    A refused value is no error if the register has it already: some registers are read-only, or
    writable only if the guest is shown a feature.
    """
    pending = list(values.items())
    while pending:
        batch = pending[:_MAX_BATCH]
        done = vcpu.set_msrs(dict(batch))
        if done < len(batch):
            index, value = batch[done]
            if vcpu.get_msrs([index]) != {index: value}:
                raise StateError(part, f"MSR 0x{index:x} cannot be 0x{value:x} here")
            done += 1
        pending = pending[done:]
