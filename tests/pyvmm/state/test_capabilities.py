# SPDX-License-Identifier: Apache-2.0
"""The capabilities for saving and restoring a guest, from the extensions that KVM reports."""

from __future__ import annotations

from typing import cast

import pytest

from pykvm import System, Vm, abi
from pyvmm.errors import UserError
from pyvmm.state import capabilities
from pyvmm.state.capabilities import Capabilities

NEEDED = {
    abi.KVM_CAP_PIT_STATE2: 1,
    abi.KVM_CAP_ADJUST_CLOCK: 1,
    abi.KVM_CAP_VCPU_EVENTS: 1,
    abi.KVM_CAP_DEBUGREGS: 1,
    abi.KVM_CAP_XSAVE: 1,
    abi.KVM_CAP_GET_TSC_KHZ: 1,
    abi.KVM_CAP_SREGS2: 1,
}


class SystemWithMsrs:
    def get_msr_index_list(self) -> list[int]:
        return [0x10, 0x174]


class VmWithExtensions:
    def __init__(self, extensions: dict[int, int]) -> None:
        self._extensions = extensions

    def check_extension(self, cap: int) -> int:
        return self._extensions.get(cap, 0)


@pytest.fixture(autouse=True)
def cpuid(monkeypatch: pytest.MonkeyPatch) -> abi.kvm_cpuid2:
    leaves = abi.cpuid2([abi.kvm_cpuid_entry2(function=1)])
    monkeypatch.setattr(capabilities, "guest_cpuid", lambda system, vcpu: leaves)
    return leaves


def reported(extensions: dict[int, int]) -> Capabilities:
    system, vm = SystemWithMsrs(), VmWithExtensions(extensions)
    return Capabilities.of(cast(System, system), cast(Vm, vm))


def test_a_kvm_with_what_is_needed_only() -> None:
    plain = reported(NEEDED)
    assert plain.msr_indices == [0x10, 0x174]
    assert plain.xsave_bytes == 4096, "the size of struct kvm_xsave"
    assert (plain.xcrs, plain.tsc_scaling) == (False, False)


def test_a_kvm_with_everything() -> None:
    more = {
        abi.KVM_CAP_XSAVE2: 11008,
        abi.KVM_CAP_XCRS: 1,
        abi.KVM_CAP_TSC_CONTROL: 1,
    }
    full = reported({**NEEDED, **more})
    assert (full.xsave_bytes, full.xcrs, full.tsc_scaling) == (11008, True, True)


@pytest.mark.parametrize("missing", NEEDED)
def test_a_kvm_that_is_too_old_is_an_error_of_the_user(missing: int) -> None:
    with pytest.raises(UserError, match="cannot save or restore a guest: it has no KVM_CAP_"):
        reported({**NEEDED, missing: 0})
