# SPDX-License-Identifier: Apache-2.0
"""The CPUID of new guests, for processors with too much and too little."""

from __future__ import annotations

from typing import Any, cast

from pykvm import System, abi
from pyvmm.cpuid.dependencies import unmet
from pyvmm.cpuid.features import by_leaf, shown
from pyvmm.cpuid.policy import guest_cpuid

# The leaves of the lab's processor as KVM supports them with QEMU 7.2: no XSAVE, yet much that
# requires it, and SVM.
EMULATED: dict[tuple[int, int], dict[str, int]] = {
    (0x1, 0): {"eax": 0x60FB1, "ebx": 0x800, "ecx": 0x72F8_3203, "edx": 0x0F8B_FBFD},
    (0x7, 0): {"ebx": 0x0198_01AB, "ecx": 0x20C, "edx": 0x2000_0000},
    (0xD, 0): {"ebx": 0x240, "ecx": 0x240},
    (0x8000_0001, 0): {"eax": 0x60FB1, "ecx": 0x75, "edx": 0xEDD3_FBFD},
    (0x8000_000A, 0): {"eax": 1, "ebx": 8, "edx": 0x1001_0021},
}


class FakeSystem:
    """A KVM that supports the given leaves."""

    def __init__(self, leaves: dict[tuple[int, int], dict[str, int]]) -> None:
        self._leaves = leaves

    def get_supported_cpuid(self) -> abi.kvm_cpuid2:
        return abi.cpuid2(
            abi.kvm_cpuid_entry2(function=function, index=index, **registers)
            for (function, index), registers in self._leaves.items()
        )

    def check_extension(self, capability: int) -> int:
        return 1


def cpuid(leaves: dict[tuple[int, int], dict[str, int]], index: int = 0) -> Any:
    system = cast("System", FakeSystem(leaves))
    return by_leaf(guest_cpuid(system, index).entries)


def test_without_xsave_the_features_that_require_it_are_hidden() -> None:
    leaves = cpuid(EMULATED)
    assert unmet(leaves) == []
    features = shown(leaves)
    assert not features & {"avx", "avx2", "fma", "f16c", "vaes", "pku", "mpx"}
    assert {"sse4_2", "aes", "popcnt", "bmi2", "adx", "smep", "smap", "lm", "nx"} <= features
    assert (leaves[0xD, 0].ebx, leaves[0xD, 0].ecx) == (0, 0)


def test_guests_are_not_offered_nested_virtualization_or_enclaves() -> None:
    vmx_and_smx, sgx = 1 << 5 | 1 << 6, 1 << 2
    leaves = cpuid(
        {
            **EMULATED,
            (0x1, 0): {"ecx": EMULATED[1, 0]["ecx"] | vmx_and_smx, "edx": EMULATED[1, 0]["edx"]},
            (0x7, 0): {"ebx": sgx, "ecx": 1 << 30},
            (0x12, 0): {"eax": 1},
        }
    )
    assert not shown(leaves) & {"vmx", "smx", "svm", "skinit", "sgx", "sgx_lc"}
    assert leaves[0x8000_000A, 0].edx == leaves[0x12, 0].eax == 0


def test_the_bits_that_kvm_leaves_to_the_vmm_are_set() -> None:
    assert {"hypervisor", "tsc_deadline_timer"} <= shown(cpuid(EMULATED))


def test_each_vcpu_is_a_package() -> None:
    leaf = cpuid(EMULATED, index=3)[1, 0]
    assert (leaf.ebx >> 24, leaf.ebx >> 16 & 0xFF, leaf.edx >> 28 & 1) == (3, 1, 0)
