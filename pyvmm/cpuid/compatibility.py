# SPDX-License-Identifier: Apache-2.0
"""CPUID compatibility: decides if a guest that was started on another CPU can run on this one.

A guest reads CPUID when it boots, and patches itself accordingly. So it keeps the CPUID it had, and
a guest started here must have every feature in it: all bits of `features.REGISTERS` that do not
follow the guest's own registers. The leaves that describe topology and caches are ignored, as pyvmm
or KVM define them anyway.

State in XSAVE format can be restored only if each component has the same offset and size on both
CPUs, as leaf 0xD describes.
"""

from __future__ import annotations

from collections.abc import Iterator

from pykvm import abi
from pyvmm.cpuid.features import REGISTERS, FeatureRegister, Leaves, names, read

# Bits that follow the guest's own registers.
_APIC, _MONITOR, _OSXSAVE, _OSPKE = 1 << 9, 1 << 3, 1 << 27, 1 << 4
_FOLLOW_THE_GUEST = {
    (0x1, 0, "ecx"): _MONITOR | _OSXSAVE,
    (0x1, 0, "edx"): _APIC,
    (0x7, 0, "ecx"): _OSPKE,
}
_AVX10, _AVX10_VERSION = (0x24, 0, "ebx"), 0xFF

X87_AND_SSE = 0b11
XSTATE_BV_OFFSET = 512
"""Offset in an XSAVE area of the components that it holds (Intel SDM vol. 1, 13.4.2)."""


def missing_features(old: Leaves, new: Leaves) -> list[str]:
    """Return the names of features that the saved CPU, `old`, has and this one, `new`, lacks."""
    vendors = _vendor(old), _vendor(new)
    if vendors[0] != vendors[1]:
        return [f"a CPU of vendor {vendors[0]!r} (this one: {vendors[1]!r})"]
    missing = [name for register in REGISTERS for name in _missing(register, old, new)]
    return [*missing, *_missing_avx10_version(old, new)]


def moved_xsave_state(xsave: bytes, old: Leaves, new: Leaves) -> list[int]:
    """Return the numbers of the components in `xsave` whose layout differs on this CPU, `new`."""
    present = int.from_bytes(xsave[XSTATE_BV_OFFSET:][:8], "little") & ~X87_AND_SSE
    components = (number for number in range(64) if present >> number & 1)
    return [each for each in components if not _layout(old, each) == _layout(new, each) != (0, 0)]


def _layout(leaves: Leaves, component: int) -> tuple[int, int]:
    """Return size and offset of a component; zeros if it does not exist."""
    leaf = leaves.get((0xD, component), abi.kvm_cpuid_entry2())
    return leaf.eax, leaf.ebx


def _vendor(leaves: Leaves) -> str:
    leaf = leaves.get((0, 0), abi.kvm_cpuid_entry2())
    words = (leaf.ebx, leaf.edx, leaf.ecx)
    return b"".join(word.to_bytes(4, "little") for word in words).decode("latin-1")


def _missing(register: FeatureRegister, old: Leaves, new: Leaves) -> Iterator[str]:
    lacking = read(register, old) & ~read(register, new) & ~_FOLLOW_THE_GUEST.get(register, 0)
    if not lacking:
        return
    function, index, name = register
    leaf = f"CPUID leaf 0x{function:x}.{index} {name.upper()}"
    for bit in range(32):
        if lacking >> bit & 1:
            yield names(register).get(bit, f"{leaf} bit {bit}")


def _missing_avx10_version(old: Leaves, new: Leaves) -> Iterator[str]:
    had, has = (read(_AVX10, leaves) & _AVX10_VERSION for leaves in (old, new))
    if had > has:
        yield f"avx10.{had}"
