# SPDX-License-Identifier: Apache-2.0
"""CPUID compatibility: decides if a guest that was started on another CPU can run on this one.

A guest reads CPUID when it boots, and patches itself accordingly. So it keeps the CPUID it had, and
a guest started here must have every feature in it. Features are bits of a few
leaves: those of the CPU (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E) and KVM's own
(Documentation/virt/kvm/x86/cpuid.rst). Ignored are bits that follow the guest's own registers, and
the leaves that describe topology and caches, which pyvmm or KVM define anyway.

State in XSAVE format can be restored only if each component has the same offset and size on both
CPUs, as leaf 0xD describes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pykvm import abi

_Leaves = dict[tuple[int, int], abi.kvm_cpuid_entry2]

_FEATURES = (
    (0x1, 0, "ecx"),
    (0x1, 0, "edx"),
    (0x6, 0, "eax"),
    (0x7, 0, "ebx"),
    (0x7, 0, "ecx"),
    (0x7, 0, "edx"),
    (0x7, 1, "eax"),
    (0xD, 0, "eax"),
    (0xD, 0, "edx"),
    (0xD, 1, "eax"),
    (0x4000_0001, 0, "eax"),
    (0x8000_0001, 0, "ecx"),
    (0x8000_0001, 0, "edx"),
    (0x8000_0007, 0, "edx"),
    (0x8000_0008, 0, "ebx"),
    (0x8000_000A, 0, "edx"),
    (0x8000_0021, 0, "eax"),
)
_APIC, _MONITOR, _OSXSAVE, _OSPKE = 1 << 9, 1 << 3, 1 << 27, 1 << 4
_FOLLOW_THE_GUEST = {
    (0x1, 0, "ecx"): _MONITOR | _OSXSAVE,
    (0x1, 0, "edx"): _APIC,
    (0x7, 0, "ecx"): _OSPKE,
}

# Bits in which common CPUs differ, by their names in /proc/cpuinfo.
_NAMES = {
    (0x1, 0, "ecx"): (
        "1:pclmulqdq 5:vmx 9:ssse3 12:fma 13:cx16 17:pcid 19:sse4_1 20:sse4_2 21:x2apic 22:movbe "
        "23:popcnt 24:tsc_deadline_timer 25:aes 26:xsave 28:avx 29:f16c 30:rdrand"
    ),
    (0x7, 0, "ebx"): (
        "0:fsgsbase 1:tsc_adjust 3:bmi1 4:hle 5:avx2 7:smep 8:bmi2 9:erms 10:invpcid 11:rtm 14:mpx "
        "16:avx512f 17:avx512dq 18:rdseed 19:adx 20:smap 21:avx512ifma 23:clflushopt 24:clwb "
        "28:avx512cd 29:sha_ni 30:avx512bw 31:avx512vl"
    ),
    (0x7, 0, "ecx"): (
        "1:avx512vbmi 2:umip 3:pku 5:waitpkg 6:avx512_vbmi2 7:shstk 8:gfni 9:vaes 10:vpclmulqdq "
        "11:avx512_vnni 12:avx512_bitalg 14:avx512_vpopcntdq 16:la57 22:rdpid"
    ),
    (0x7, 0, "edx"): (
        "4:fsrm 20:ibt 22:amx_bf16 23:avx512_fp16 24:amx_tile 25:amx_int8 26:spec_ctrl "
        "29:arch_capabilities 31:spec_ctrl_ssbd"
    ),
    (0x8000_0001, 0, "ecx"): (
        "0:lahf_lm 2:svm 5:abm 6:sse4a 7:misalignsse 8:3dnowprefetch 11:xop 16:fma4 21:tbm "
        "22:topoext 23:perfctr_core 29:mwaitx"
    ),
    (0x8000_0001, 0, "edx"): "11:syscall 20:nx 26:pdpe1gb 27:rdtscp 29:lm",
}

X87_AND_SSE = 0b11
XSTATE_BV_OFFSET = 512
"""Offset in an XSAVE area of the components that it holds (Intel SDM vol. 1, 13.4.2)."""


def missing_features(
    saved: Iterable[abi.kvm_cpuid_entry2], here: Iterable[abi.kvm_cpuid_entry2]
) -> list[str]:
    """Return the names of features that the `saved` CPU has and this one lacks."""
    old, new = _by_leaf(saved), _by_leaf(here)
    vendors = _vendor(old), _vendor(new)
    if vendors[0] != vendors[1]:
        return [f"a CPU of vendor {vendors[0]!r} (this one: {vendors[1]!r})"]
    return [name for feature in _FEATURES for name in _missing(feature, old, new)]


def moved_xsave_state(
    xsave: bytes, saved: Iterable[abi.kvm_cpuid_entry2], here: Iterable[abi.kvm_cpuid_entry2]
) -> list[int]:
    """Return the numbers of the components in `xsave` whose layout differs on this CPU."""
    old, new = _by_leaf(saved), _by_leaf(here)
    present = int.from_bytes(xsave[XSTATE_BV_OFFSET:][:8], "little") & ~X87_AND_SSE
    components = (number for number in range(64) if present >> number & 1)
    return [each for each in components if not _layout(old, each) == _layout(new, each) != (0, 0)]


def _layout(leaves: _Leaves, component: int) -> tuple[int, int]:
    """Return size and offset of a component; zeros if it does not exist."""
    leaf = leaves.get((0xD, component), abi.kvm_cpuid_entry2())
    return leaf.eax, leaf.ebx


def _by_leaf(entries: Iterable[abi.kvm_cpuid_entry2]) -> _Leaves:
    return {(entry.function, entry.index): entry for entry in entries}


def _vendor(leaves: _Leaves) -> str:
    leaf = leaves.get((0, 0), abi.kvm_cpuid_entry2())
    words = (leaf.ebx, leaf.edx, leaf.ecx)
    return b"".join(word.to_bytes(4, "little") for word in words).decode("latin-1")


def _missing(feature: tuple[int, int, str], old: _Leaves, new: _Leaves) -> Iterator[str]:
    function, index, register = feature
    nothing = abi.kvm_cpuid_entry2()
    had = getattr(old.get((function, index), nothing), register)
    has = getattr(new.get((function, index), nothing), register)
    lacking = had & ~has & ~_FOLLOW_THE_GUEST.get(feature, 0)
    names = dict(word.split(":") for word in _NAMES.get(feature, "").split()) if lacking else {}
    for bit in range(32):
        if lacking >> bit & 1:
            unnamed = f"CPUID leaf 0x{function:x}.{index} {register.upper()} bit {bit}"
            yield names.get(str(bit), unnamed)
