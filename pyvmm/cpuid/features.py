# SPDX-License-Identifier: Apache-2.0
"""CPU features: the CPUID bit of each, and the registers that consist of such bits.

Names are those of /proc/cpuinfo. Features that it does not show have the name that Intel's or AMD's
manual gives them, in small letters; the components of XSAVE state have `xcr0.` in front.

Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E; KVM's own leaf is described in
Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from pykvm import abi

Leaves = dict[tuple[int, int], abi.kvm_cpuid_entry2]
"""Leaves by function and index."""


FeatureRegister = tuple[int, int, str]
"""A register, each bit of which is a feature: function and index of its leaf, and its name."""

_NAMES = {
    (0x1, 0, "ecx"): (
        "0:pni 1:pclmulqdq 2:dtes64 3:monitor 4:ds_cpl 5:vmx 6:smx 9:ssse3 12:fma 13:cx16 15:pdcm "
        "17:pcid 19:sse4_1 20:sse4_2 21:x2apic 22:movbe 23:popcnt 24:tsc_deadline_timer 25:aes "
        "26:xsave 27:osxsave 28:avx 29:f16c 30:rdrand 31:hypervisor"
    ),
    (0x1, 0, "edx"): (
        "0:fpu 1:vme 2:de 3:pse 4:tsc 5:msr 6:pae 7:mce 8:cx8 9:apic 11:sep 12:mtrr 13:pge 14:mca "
        "15:cmov 16:pat 17:pse36 19:clflush 21:dts 23:mmx 24:fxsr 25:sse 26:sse2 27:ss 28:ht"
    ),
    (0x6, 0, "eax"): "2:arat",
    (0x7, 0, "ebx"): (
        "0:fsgsbase 1:tsc_adjust 2:sgx 3:bmi1 4:hle 5:avx2 7:smep 8:bmi2 9:erms 10:invpcid 11:rtm "
        "12:cqm 14:mpx 15:rdt_a 16:avx512f 17:avx512dq 18:rdseed 19:adx 20:smap 21:avx512ifma "
        "23:clflushopt 24:clwb 25:intel_pt 26:avx512pf 27:avx512er 28:avx512cd 29:sha_ni "
        "30:avx512bw 31:avx512vl"
    ),
    (0x7, 0, "ecx"): (
        "1:avx512vbmi 2:umip 3:pku 4:ospke 5:waitpkg 6:avx512_vbmi2 7:shstk 8:gfni 9:vaes "
        "10:vpclmulqdq 11:avx512_vnni 12:avx512_bitalg 14:avx512_vpopcntdq 16:la57 22:rdpid 23:kl "
        "29:enqcmd 30:sgx_lc"
    ),
    (0x7, 0, "edx"): (
        "2:avx512_4vnniw 3:avx512_4fmaps 4:fsrm 5:uintr 8:avx512_vp2intersect 19:arch_lbr 20:ibt "
        "22:amx_bf16 23:avx512_fp16 24:amx_tile 25:amx_int8 26:spec_ctrl 27:intel_stibp "
        "29:arch_capabilities 31:spec_ctrl_ssbd"
    ),
    (0x7, 1, "eax"): (
        "0:sha512 1:sm3 2:sm4 4:avx_vnni 5:avx512_bf16 6:lass 7:cmpccxadd 17:fred 18:lkgs "
        "21:amx_fp16 22:hreset 23:avx_ifma 26:lam"
    ),
    (0x7, 1, "ecx"): "",
    (0x7, 1, "edx"): (
        "4:avx_vnni_int8 5:avx_ne_convert 8:amx_complex 10:avx_vnni_int16 17:uiret_uif 18:cet_sss "
        "19:avx10 21:apx_f"
    ),
    (0x7, 2, "edx"): "",
    (0xD, 0, "eax"): (
        "0:xcr0.x87 1:xcr0.sse 2:xcr0.avx 3:xcr0.bndregs 4:xcr0.bndcsr 5:xcr0.opmask "
        "6:xcr0.zmm_hi256 7:xcr0.hi16_zmm 9:xcr0.pkru 17:xcr0.tilecfg 18:xcr0.tiledata 19:xcr0.apx"
    ),
    (0xD, 0, "edx"): "",
    (0xD, 1, "eax"): "0:xsaveopt 1:xsavec 2:xgetbv1 3:xsaves 4:xfd",
    (0xD, 1, "ecx"): (
        "8:xss.pt 10:xss.pasid 11:xss.cet_u 12:xss.cet_s 13:xss.hdc 14:xss.uintr 15:xss.lbr "
        "16:xss.hwp"
    ),
    (0x4000_0001, 0, "eax"): "",
    (0x8000_0001, 0, "ecx"): (
        "0:lahf_lm 2:svm 5:abm 6:sse4a 7:misalignsse 8:3dnowprefetch 10:ibs 11:xop 12:skinit "
        "15:lwp 16:fma4 21:tbm 22:topoext 23:perfctr_core 29:mwaitx"
    ),
    (0x8000_0001, 0, "edx"): (
        "11:syscall 20:nx 22:mmxext 25:fxsr_opt 26:pdpe1gb 27:rdtscp 29:lm 30:3dnowext 31:3dnow"
    ),
    (0x8000_0007, 0, "edx"): "",
    (0x8000_0008, 0, "ebx"): "3:invlpgb",
    (0x8000_000A, 0, "edx"): "",
    (0x8000_0021, 0, "eax"): "",
    (0x8000_0022, 0, "eax"): "0:perfmon_v2",
}

REGISTERS = tuple(_NAMES)
"""All registers of features; those of which no bit has a name have features all the same."""


def by_leaf(entries: Iterable[abi.kvm_cpuid_entry2]) -> Leaves:
    """Return `entries` by function and index."""
    return {(entry.function, entry.index): entry for entry in entries}


def read(register: FeatureRegister, leaves: Leaves) -> int:
    """Return the value of `register` in `leaves`; a leaf that is missing reads as zero."""
    function, index, name = register
    leaf = leaves.get((function, index))
    return 0 if leaf is None else int(getattr(leaf, name))


@functools.cache
def names(register: FeatureRegister) -> dict[int, str]:
    """Return the names of the features in `register` by their bit."""
    pairs = (word.split(":") for word in _NAMES[register].split())
    return {int(bit): name for bit, name in pairs}


def shown(leaves: Leaves) -> set[str]:
    """Return the names of all features that `leaves` show."""
    found: set[str] = set()
    return found.union(*(_shown_by(register, read(register, leaves)) for register in REGISTERS))


@functools.lru_cache(maxsize=256)
def _shown_by(register: FeatureRegister, value: int) -> frozenset[str]:
    """Return the features in a register; most registers of two vCPUs have the same value."""
    return frozenset(name for bit, name in names(register).items() if value >> bit & 1)


def hide(leaves: Leaves, features: set[str]) -> None:
    """Clear the bits of `features`, which `leaves` show."""
    for feature in features:
        (function, index, name), bit = _place(feature)
        leaf = leaves[function, index]
        setattr(leaf, name, getattr(leaf, name) & ~(1 << bit))


@functools.cache
def _place(feature: str) -> tuple[FeatureRegister, int]:
    return next(
        (register, bit)
        for register in REGISTERS
        for bit, name in names(register).items()
        if name == feature
    )
