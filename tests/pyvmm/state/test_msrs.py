# SPDX-License-Identifier: Apache-2.0
"""The choice of registers that are state; reading and writing them past those that KVM lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from devices.state import StateError
from pykvm import Vcpu
from pyvmm.state import msrs
from pyvmm.state.capabilities import Capabilities

MCG_CAP = 0x179
MTRRS = {
    *range(0x200, 0x210),  # IA32_MTRR_PHYSBASE0 to IA32_MTRR_PHYSMASK7
    *(0x250, 0x258, 0x259),  # IA32_MTRR_FIX64K_00000, FIX16K_80000, FIX16K_A0000
    *range(0x268, 0x270),  # IA32_MTRR_FIX4K_C0000 to FIX4K_F8000
    0x2FF,  # IA32_MTRR_DEF_TYPE
}


class VcpuWithMsrs:
    """A vCPU with the registers `values`; KVM stops at the first one of a list that it lacks.

    Writes to registers in `read_only` are refused.
    """

    def __init__(self, values: dict[int, int], read_only: Sequence[int] = ()) -> None:
        self.values = dict(values)
        self.read_only = read_only
        self.longest = 0

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        self.longest = max(self.longest, len(indices))
        known: dict[int, int] = {}
        for index in indices:
            if index not in self.values:
                break
            known[index] = self.values[index]
        return known

    def set_msrs(self, values: dict[int, int]) -> int:
        self.longest = max(self.longest, len(values))
        for done, (index, value) in enumerate(values.items()):
            if index not in self.values or index in self.read_only:
                return done
            self.values[index] = value
        return len(values)


class HostWithMsrs:
    def __init__(self, *indices: int) -> None:
        self.msr_indices = indices


def state_indices(values: dict[int, int], *listed: int) -> list[int]:
    vcpu, host = VcpuWithMsrs(values), HostWithMsrs(*listed)
    return msrs.state_indices(cast(Vcpu, vcpu), cast(Capabilities, host))


def read(vcpu: VcpuWithMsrs, indices: list[int]) -> dict[int, int]:
    return msrs.read(cast(Vcpu, vcpu), indices)


def write(vcpu: VcpuWithMsrs, values: dict[int, int]) -> None:
    msrs.write(cast(Vcpu, vcpu), values, "kvm-vcpu")


def test_memory_type_ranges_are_state_although_kvm_does_not_list_them() -> None:
    assert {*state_indices({}, 0x10)} == {0x10, *MTRRS}


@pytest.mark.parametrize("banks", [0, 1, 10, 32])
def test_the_machine_check_banks_that_the_vcpu_has_are_state(banks: int) -> None:
    """IA32_MCi_CTL to IA32_MCi_MISC of each bank; IA32_MCG_CAP has their number in bits 7:0."""
    indices = state_indices({MCG_CAP: 0x0100_0900 | banks})
    assert {*indices} - MTRRS == {*range(0x400, 0x400 + 4 * banks)}
    assert len(indices) == len({*indices})


def test_registers_are_in_kvms_order_and_occur_once() -> None:
    assert state_indices({}, 0xC000_0080, 0x10, 0x250)[:3] == [0xC000_0080, 0x10, 0x250]
    assert state_indices({}, 0xC000_0080, 0x10, 0x250).count(0x250) == 1


@pytest.mark.parametrize(
    "index",
    [0x11, 0x12, 0x6E0, 0x4B56_4D00, 0x4B56_4D07, 0x4000_0000, 0x4000_01FF],
)
def test_aliases_requests_the_deadline_and_hyper_v_are_no_state(index: int) -> None:
    assert index not in state_indices({}, index, 0x10)


@pytest.mark.parametrize("index", [0x4B56_4D01, 0x4B56_4D06, 0x3FFF_FFFF, 0x4000_0200])
def test_their_neighbours_are_state(index: int) -> None:
    assert index in state_indices({}, index)


def test_reading_skips_registers_that_the_vcpu_lacks() -> None:
    values = {index: index + 1 for index in range(300) if index % 7}
    vcpu = VcpuWithMsrs(values)
    assert read(vcpu, [*range(302)]) == values
    assert vcpu.longest <= 255, "KVM's limit"


def test_all_registers_are_written_in_order() -> None:
    vcpu = VcpuWithMsrs(dict.fromkeys(range(300), 0))
    write(vcpu, {index: index + 1 for index in range(300)})
    assert vcpu.values == {index: index + 1 for index in range(300)}
    assert vcpu.longest <= 255, "KVM's limit"


def test_a_refused_write_of_the_value_that_the_register_has_is_no_error() -> None:
    vcpu = VcpuWithMsrs({1: 11, 2: 22, 3: 33}, read_only=[2])
    write(vcpu, {1: 5, 2: 22, 3: 7})
    assert vcpu.values == {1: 5, 2: 22, 3: 7}


@pytest.mark.parametrize("values", [{2: 23}, {1: 5, 4: 0}])
def test_a_refused_write_of_another_value_is_an_error(values: dict[int, int]) -> None:
    vcpu = VcpuWithMsrs({1: 11, 2: 22, 3: 33}, read_only=[2])
    with pytest.raises(StateError, match=r"^kvm-vcpu: MSR 0x\d cannot be 0x\d+ here"):
        write(vcpu, values)
