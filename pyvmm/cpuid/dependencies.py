# SPDX-License-Identifier: Apache-2.0
"""Features that need others, so that no guest is shown one without the other.

A kernel trusts CPUID: one that is shown AVX2 or VAES uses YMM registers, even if there is no XSAVE
to enable them with, and dies of an invalid opcode. KVM may report such a set: if its own processor
is an emulated one, a feature can be disabled there without those that require it.

`_REQUIRED` states what the manuals require where they say how to detect a feature: Intel SDM vol. 1
(SSE to AVX-512, XSAVE, CET, AMX) and vol. 3A, 4.1.4 (paging); AMD APM vol. 2, 15.4 (SVM), and
vol. 4 (3DNow!, XOP, FMA4). It includes the pairs that Linux checks at boot
(arch/x86/kernel/cpu/cpuid-deps.c). Bits that follow the guest's own registers (APIC, OSXSAVE,
OSPKE, MONITOR) have no place in it.

Besides single bits, some leaves have a meaning only with a feature (`_LEAVES`), the extended leaf
of AMD repeats bits of leaf 1, and leaf 0xD describes XSAVE state, whose size depends on its
components.
"""

from __future__ import annotations

import functools

from pyvmm.cpuid.features import Leaves, hide, shown

# Features, and what each of them requires. XCR0's components and the features that use them require
# each other.
_REQUIRED = (
    ("fxsr", "fpu"),
    ("cmov mmx sse fxsr_opt xsave", "fxsr"),
    ("mmxext 3dnow", "mmx"),
    ("3dnowext", "3dnow"),
    ("sse2 misalignsse", "sse"),
    ("pni ssse3 sse4_1 sse4_2 sse4a aes pclmulqdq sha_ni gfni avx", "sse2"),
    ("xsaveopt xsavec xsaves xgetbv1 avx mpx pku apx_f lwp xcr0.x87 xcr0.sse", "xsave"),
    ("xfd enqcmd shstk", "xsaves"),
    ("xfd", "xgetbv1"),
    ("xss.pt xss.pasid xss.cet_u xss.cet_s xss.hdc xss.uintr xss.lbr xss.hwp", "xsaves"),
    ("cet_sss", "shstk"),
    ("avx", "xcr0.sse xcr0.avx"),
    ("xcr0.avx", "avx"),
    ("f16c fma vaes vpclmulqdq avx2 xop fma4 avx_vnni sha512 sm3 sm4", "avx"),
    ("avx512f avx_ifma avx_vnni_int8 avx_ne_convert avx_vnni_int16 avx10", "avx2"),
    ("avx512f", "xcr0.opmask xcr0.zmm_hi256 xcr0.hi16_zmm"),
    ("xcr0.opmask xcr0.zmm_hi256 xcr0.hi16_zmm", "avx512f"),
    ("avx512cd avx512er avx512pf avx512dq avx512bw avx512vl avx512ifma avx512vbmi", "avx512f"),
    ("avx512_4vnniw avx512_4fmaps avx512_vpopcntdq", "avx512f"),
    ("avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vp2intersect avx512_bf16", "avx512vl"),
    ("avx512_fp16", "avx512bw"),
    ("mpx", "xcr0.bndregs xcr0.bndcsr"),
    ("xcr0.bndregs xcr0.bndcsr", "mpx"),
    ("pku", "xcr0.pkru"),
    ("xcr0.pkru", "pku"),
    ("amx_tile", "xfd xcr0.tilecfg xcr0.tiledata"),
    ("xcr0.tilecfg xcr0.tiledata amx_bf16 amx_int8 amx_fp16 amx_complex", "amx_tile"),
    ("apx_f", "xcr0.apx"),
    ("xcr0.apx", "apx_f"),
    ("lm nx", "pae"),
    ("pdpe1gb la57 pcid cx16 lahf_lm lam lass lkgs cmpccxadd apx_f uintr", "lm"),
    ("invpcid invlpgb", "pcid"),
    ("lass", "smap"),
    ("fred", "lkgs"),
    ("tsc_adjust tsc_deadline_timer rdtscp", "tsc"),
    ("dtes64 ds_cpl", "dts"),
    ("smx", "vmx"),
    ("skinit", "svm"),
    ("sgx_lc", "sgx"),
    ("spec_ctrl_ssbd", "spec_ctrl"),
    ("perfmon_v2", "perfctr_core"),
)

# Leaves that are reserved, and so zero, without a feature.
_LEAVES = {
    0xD: "xsave",
    0xF: "cqm",
    0x10: "rdt_a",
    0x12: "sgx",
    0x14: "intel_pt",
    0x19: "kl",
    0x1C: "arch_lbr",
    0x1D: "amx_tile",
    0x1E: "amx_tile",
    0x20: "hreset",
    0x24: "avx10",
    0x8000_000A: "svm",
    0x8000_001B: "ibs",
    0x8000_001C: "lwp",
    0x8000_001D: "topoext",
    0x8000_001E: "topoext",
}

# Bits of leaf 1 EDX that 0x80000001 EDX repeats on AMD's processors, without that of the APIC.
_REPEATED = 0x0183_F1FF
_LEGACY_XSAVE_BYTES = 512 + 64
"""Size of an XSAVE area with x87 and SSE state only: its legacy region and header."""


_NOTHING: frozenset[str] = frozenset()


@functools.cache
def requirements() -> dict[str, frozenset[str]]:
    """Return the features that each feature requires, by its name."""
    table: dict[str, frozenset[str]] = {}
    for features, required in _REQUIRED:
        for feature in features.split():
            table[feature] = table.get(feature, _NOTHING) | frozenset(required.split())
    return table


def _required(feature: str) -> frozenset[str]:
    return requirements().get(feature, _NOTHING)


def usable(features: set[str]) -> set[str]:
    """Return the largest subset of `features` in which no feature lacks one that it requires."""
    kept = set(features)
    while lacking := {each for each in kept if not _required(each) <= kept}:
        kept -= lacking
    return kept


def unmet(leaves: Leaves) -> list[str]:
    """Return, sorted, `A without B` for each feature A in `leaves` that lacks a required B."""
    features = shown(leaves)
    lacking = [
        each
        for each, required in requirements().items()
        if each in features and not required <= features
    ]
    return sorted(
        f"{feature} without {required}"
        for feature in lacking
        for required in _required(feature) - features
    )


def hide_unusable(leaves: Leaves, unwanted: frozenset[str] = _NOTHING) -> None:
    """Hide, in `leaves`, the features `unwanted` and all that lack one that they require.

    Nothing is added, and a second call changes nothing.
    """
    before = shown(leaves)
    features = usable(before - unwanted)
    hide(leaves, before - features)
    if (1, 0) in leaves and (0x8000_0001, 0) in leaves:
        leaves[0x8000_0001, 0].edx &= leaves[1, 0].edx | ~_REPEATED
    for (function, _), leaf in leaves.items():
        if _LEAVES.get(function) not in (None, *features):
            leaf.eax = leaf.ebx = leaf.ecx = leaf.edx = 0
    _fit_xsave_sizes(leaves)


def _fit_xsave_sizes(leaves: Leaves) -> None:
    """Describe, in leaf 0xD, no component that is not shown, and no larger area than they need."""
    if (0xD, 0) not in leaves:
        return
    main = leaves[0xD, 0]
    supervisor = leaves[0xD, 1].ecx | leaves[0xD, 1].edx << 32 if (0xD, 1) in leaves else 0
    user = main.eax | main.edx << 32
    end = _LEGACY_XSAVE_BYTES
    for (function, number), leaf in leaves.items():
        if function != 0xD or number < 2:
            continue
        if not (user | supervisor) >> number & 1:
            leaf.eax = leaf.ebx = leaf.ecx = leaf.edx = 0
        elif user >> number & 1:
            end = max(end, leaf.eax + leaf.ebx)
    main.ebx, main.ecx = min(main.ebx, end), min(main.ecx, end)
