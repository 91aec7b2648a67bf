# SPDX-License-Identifier: Apache-2.0
"""Features that require others: the table, and what is hidden because of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import abi
from pyvmm.cpuid.dependencies import hide_unusable, requirements, unmet, usable
from pyvmm.cpuid.features import REGISTERS, FeatureRegister, Leaves, hide, names, read, shown

ALL = {name for register in REGISTERS for name in names(register).values()}

# The pairs that Linux 7.3.4 checks at boot, grouped by what is required. Those left out are of
# features that KVM shows no guest: resource control, and SGX without its device.
CHECKED_BY_LINUX = {
    "fpu": "fxsr",
    "fxsr": "fxsr_opt cmov mmx sse xsave",
    "mmx": "mmxext",
    "sse": "sse2",
    "sse2": "pni ssse3 sse4_1 sse4_2 pclmulqdq aes f16c sha_ni gfni",
    "xsave": "xsaveopt xsavec xsaves xgetbv1 avx pku mpx apx_f",
    "xsaves": "xfd shstk enqcmd",
    "xgetbv1": "xfd",
    "avx": "fma vaes vpclmulqdq avx2 avx512f avx_vnni",
    "avx512f": (
        "avx512ifma avx512pf avx512er avx512cd avx512dq avx512bw avx512vl avx512vbmi"
        " avx512_4vnniw avx512_4fmaps avx512_vpopcntdq"
    ),
    "avx512vl": "avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vp2intersect avx512_bf16",
    "avx512bw": "avx512_fp16",
    "xfd": "amx_tile",
    "amx_tile": "amx_bf16 amx_int8 amx_fp16",
    "sgx": "sgx_lc",
    "smap": "lass",
    "pcid": "invlpgb",
    "lkgs": "fred",
    "spec_ctrl": "spec_ctrl_ssbd",
}
WITHOUT_XSAVE = (
    "xsaveopt xsavec xsaves xgetbv1 xfd avx avx2 fma f16c vaes vpclmulqdq avx_vnni avx_ifma avx10"
    " avx512f avx512vl avx512_fp16 xop fma4 lwp mpx pku shstk cet_sss enqcmd amx_tile amx_int8"
    " apx_f sha512 sm3 sm4 xcr0.x87 xcr0.sse xcr0.avx xcr0.pkru xcr0.tiledata xss.cet_u"
)


def leaf(function: int, index: int = 0, **registers: int) -> abi.kvm_cpuid_entry2:
    return abi.kvm_cpuid_entry2(function=function, index=index, **registers)


def showing(features: set[str]) -> Leaves:
    """Return leaves that show exactly `features`."""
    leaves: Leaves = {}
    for register in REGISTERS:
        function, index, name = register
        value = sum(1 << bit for bit, each in names(register).items() if each in features)
        setattr(leaves.setdefault((function, index), leaf(function, index)), name, value)
    return leaves


@pytest.mark.parametrize(("required", "features"), CHECKED_BY_LINUX.items())
def test_no_feature_that_linux_checks_is_left_without_what_it_requires(
    required: str, features: str
) -> None:
    assert not usable(ALL - {required}) & {*features.split()}


def test_every_name_in_the_table_is_a_feature() -> None:
    assert {*requirements(), *(each for needs in requirements().values() for each in needs)} <= ALL


def test_no_two_features_have_the_same_name() -> None:
    assert len(ALL) == sum(len(names(register)) for register in REGISTERS)


def test_all_features_together_are_usable() -> None:
    assert usable(ALL) == ALL


def test_without_xsave_nothing_that_uses_its_state_is_usable() -> None:
    kept = usable(ALL - {"xsave"})
    assert not kept & {*WITHOUT_XSAVE.split()}
    assert {"sse4_2", "aes", "pclmulqdq", "gfni", "sha_ni", "bmi2", "adx", "lm", "nx"} <= kept


@given(st.sets(st.sampled_from(sorted(ALL))))
def test_usable_features_are_a_closed_subset(features: set[str]) -> None:
    kept = usable(features)
    assert kept <= features
    assert usable(kept) == kept
    assert all(requirements().get(each, frozenset()) <= kept for each in kept)
    # It is the largest: the first feature removed lacked something that was never there.
    assert (kept == features) == (not unmet(showing(features)))


@given(
    st.dictionaries(
        st.sampled_from(REGISTERS), st.integers(0, 0xFFFF_FFFF), max_size=len(REGISTERS)
    ),
    st.dictionaries(st.integers(0, 0x1F), st.integers(0, 0xFFFF_FFFF), max_size=8),
)
def test_hiding_only_clears_bits_and_is_done_at_once(
    registers: dict[FeatureRegister, int], others: dict[int, int]
) -> None:
    leaves: Leaves = {}
    for (function, index, name), value in registers.items():
        setattr(leaves.setdefault((function, index), leaf(function, index)), name, value)
    for function, value in others.items():
        leaves.setdefault((function, 0), leaf(function, eax=value))
    before = {key: abi.kvm_cpuid_entry2.from_buffer_copy(each) for key, each in leaves.items()}
    hide_unusable(leaves, frozenset({"svm"}))
    assert unmet(leaves) == []
    assert "svm" not in shown(leaves)
    for register in REGISTERS:
        assert not read(register, leaves) & ~read(register, before)
    once = {key: bytes(each) for key, each in leaves.items()}
    hide_unusable(leaves, frozenset({"svm"}))
    assert {key: bytes(each) for key, each in leaves.items()} == once


def test_unmet_requirements_are_named() -> None:
    features = ALL - {"avx2", "sse4a", "lkgs"}
    assert unmet(showing(features)) == [
        "avx10 without avx2",
        "avx512f without avx2",
        "avx_ifma without avx2",
        "avx_ne_convert without avx2",
        "avx_vnni_int16 without avx2",
        "avx_vnni_int8 without avx2",
        "fred without lkgs",
    ]


@pytest.mark.parametrize("bit", ["apic", "osxsave", "ospke", "monitor"])
def test_bits_that_follow_the_guests_registers_are_not_required(bit: str) -> None:
    assert unmet(showing(ALL - {bit})) == []


@pytest.mark.parametrize(
    ("function", "feature"),
    [
        (0xD, "xsave"),
        (0x12, "sgx"),
        (0x14, "intel_pt"),
        (0x19, "kl"),
        (0x1D, "amx_tile"),
        (0x1E, "amx_tile"),
        (0x24, "avx10"),
        (0x8000_000A, "svm"),
        (0x8000_001B, "ibs"),
        (0x8000_001E, "topoext"),
    ],
)
def test_a_leaf_of_a_feature_is_zero_without_it(function: int, feature: str) -> None:
    def registers(leaves: Leaves) -> list[tuple[int, int, int, int]]:
        described = [each for (number, _), each in leaves.items() if number == function]
        return [(each.eax, each.ebx, each.ecx, each.edx) for each in described]

    leaves = showing(ALL)
    for index in (0, 1, 2):
        leaves[function, index] = leaf(function, index, eax=7, ebx=7, ecx=7, edx=7)
    hide(leaves, {feature})
    hide_unusable(leaves)
    assert registers(leaves) == [(0, 0, 0, 0)] * 3
    assert (0x7, 0) in leaves
    assert leaves[1, 0].edx


def test_bits_that_amd_repeats_follow_leaf_1() -> None:
    leaves = showing(ALL - {"mmx", "pae"})
    leaves[0x8000_0001, 0].edx |= 1 << 23 | 1 << 6 | 1 << 9
    hide_unusable(leaves)
    assert leaves[0x8000_0001, 0].edx & (1 << 23 | 1 << 6 | 1 << 9) == 1 << 9
    assert not shown(leaves) & {"mmxext", "3dnow", "3dnowext", "nx", "lm"}


def test_the_xsave_area_has_no_room_for_hidden_components() -> None:
    avx, opmask, pkru = (0x100, 0x240), (0x40, 0x440), (8, 0xA80)
    leaves = showing(ALL)
    hide(leaves, {"pku", "xcr0.pkru"})
    for number, (size, offset) in {2: avx, 5: opmask, 9: pkru, 11: (0x10, 0)}.items():
        leaves[0xD, number] = leaf(0xD, number, eax=size, ebx=offset)
    leaves[0xD, 0].ebx, leaves[0xD, 0].ecx = 0xA88, 0xA88
    hide_unusable(leaves)
    assert (leaves[0xD, 0].ebx, leaves[0xD, 0].ecx) == (0x480, 0x480)
    assert (leaves[0xD, 9].eax, leaves[0xD, 9].ebx) == (0, 0)
    assert (leaves[0xD, 2].eax, leaves[0xD, 2].ebx) == avx
    assert leaves[0xD, 11].eax == 0x10  # user state of CET, in XSS
    hide(leaves, {"avx"})
    hide_unusable(leaves)
    assert leaves[0xD, 0].ecx == 512 + 64
    assert leaves[0xD, 2].eax == leaves[0xD, 5].eax == 0
