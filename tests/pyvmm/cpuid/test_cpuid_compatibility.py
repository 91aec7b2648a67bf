# SPDX-License-Identifier: Apache-2.0
"""Features that a CPU must have to run a guest that was started on another one."""

from __future__ import annotations

import struct

import pytest

from pykvm import abi
from pyvmm.cpuid.compatibility import missing_features, moved_xsave_state
from pyvmm.cpuid.features import by_leaf

VENDOR = {"ebx": 0x68747541, "edx": 0x69746E65, "ecx": 0x444D4163}  # AuthenticAMD
INTEL = {"ebx": 0x756E6547, "edx": 0x49656E69, "ecx": 0x6C65746E}
LEGACY_REGION = bytes(512)
COMPACTED_IN_FULL = (1 << 64) - 1
"""An XCOMP_BV, which follows XSTATE_BV, with every bit set."""


def leaf(function: int, index: int = 0, **registers: int) -> abi.kvm_cpuid_entry2:
    return abi.kvm_cpuid_entry2(function=function, index=index, **registers)


def missing(saved: list[abi.kvm_cpuid_entry2], here: list[abi.kvm_cpuid_entry2]) -> list[str]:
    return missing_features(
        by_leaf([leaf(0, **VENDOR), *saved]), by_leaf([leaf(0, **VENDOR), *here])
    )


def test_the_same_cpu_or_one_with_more_features_fits() -> None:
    old = leaf(1, ecx=1 << 20, edx=0xFFFF)
    assert missing([old], [old]) == []
    assert missing([old], [leaf(1, ecx=3 << 20, edx=0xFFFFF)]) == []


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        (leaf(7, ebx=1 << 16), "avx512f"),
        (leaf(7, edx=1 << 24), "amx_tile"),
        (leaf(0x8000_0001, ecx=1 << 2), "svm"),
        (leaf(1, ecx=1 << 24), "tsc_deadline_timer"),
        (leaf(7, 1, eax=1 << 4), "avx_vnni"),
        (leaf(7, 1, eax=1 << 8), "CPUID leaf 0x7.1 EAX bit 8"),
        (leaf(7, 1, edx=1 << 4), "avx_vnni_int8"),
        (leaf(7, 2, edx=1 << 1), "CPUID leaf 0x7.2 EDX bit 1"),
        (leaf(0xD, 0, eax=1 << 9), "xcr0.pkru"),
        (leaf(0xD, 0, edx=1 << 30), "CPUID leaf 0xd.0 EDX bit 30"),
        (leaf(0xD, 1, ecx=1 << 11), "xss.cet_u"),
        (leaf(0x24, ebx=2), "avx10.2"),
        (leaf(0x8000_0022, eax=1), "perfmon_v2"),
        (leaf(0x4000_0001, eax=1 << 14), "CPUID leaf 0x40000001.0 EAX bit 14"),
    ],
)
def test_a_missing_feature_is_named(saved: abi.kvm_cpuid_entry2, name: str) -> None:
    assert missing([saved], []) == [name]
    assert missing([saved], [leaf(saved.function, saved.index)]) == [name]
    assert missing([saved], [saved]) == []


def test_all_missing_features_are_named() -> None:
    assert missing([leaf(7, ebx=1 << 6 | 1), leaf(1, ecx=1 << 28)], []) == [
        "avx",
        "fsgsbase",
        "CPUID leaf 0x7.0 EBX bit 6",
    ]


def test_a_later_version_of_avx10_includes_the_earlier_ones() -> None:
    assert missing([leaf(0x24, ebx=1)], [leaf(0x24, ebx=2)]) == []


def test_bits_that_follow_the_guests_registers_are_ignored() -> None:
    osxsave, monitor, ospke = 1 << 27, 1 << 3, 1 << 4
    assert missing([leaf(1, ecx=osxsave | monitor), leaf(7, ecx=ospke)], [leaf(1), leaf(7)]) == []


def test_topology_is_ignored() -> None:
    assert missing([leaf(1, ebx=0x0301_0800), leaf(0xB, 0, edx=3)], [leaf(1, ebx=0)]) == []


def test_cpus_of_another_vendor_do_not_fit() -> None:
    assert missing_features(by_leaf([leaf(0, **VENDOR)]), by_leaf([leaf(0, **INTEL)])) == [
        "a CPU of vendor 'AuthenticAMD' (this one: 'GenuineIntel')"
    ]


def xsave(state_components: int) -> bytes:
    header = struct.pack("<QQ48x", state_components, COMPACTED_IN_FULL)
    return LEGACY_REGION + header + bytes(4096 - 512 - len(header))


def moved(
    area: bytes, saved: list[abi.kvm_cpuid_entry2], here: list[abi.kvm_cpuid_entry2]
) -> list[int]:
    return moved_xsave_state(area, by_leaf(saved), by_leaf(here))


def test_xsave_components_must_have_the_same_layout() -> None:
    avx, pkru_intel, pkru_amd = (
        leaf(0xD, 2, eax=256, ebx=576),
        leaf(0xD, 9, eax=8, ebx=2688),
        leaf(0xD, 9, eax=8, ebx=2432),
    )
    saved, here = [avx, pkru_intel], [avx, pkru_amd]
    assert moved(xsave(0b111), saved, here) == []
    assert moved(xsave(1 << 9 | 0b111), saved, here) == [9]
    assert moved(xsave(1 << 9), saved, saved) == []
    assert moved(xsave(1 << 9), saved, [avx]) == [9]
    assert moved(xsave(1 << 9), [avx], [avx]) == [9]


@pytest.mark.parametrize("component", [2, 8, 31, 32, 62])
def test_each_xsave_component_of_the_header_is_compared(component: int) -> None:
    saved, here = leaf(0xD, component, eax=64, ebx=576), leaf(0xD, component, eax=64, ebx=640)
    assert moved(xsave(1 << component), [saved], [here]) == [component]


def test_x87_and_sse_always_have_the_same_layout() -> None:
    assert moved(xsave(0b11), [], []) == []
