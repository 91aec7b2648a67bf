# SPDX-License-Identifier: Apache-2.0
"""Structures and constants of the KVM API, by their kernel names, in one namespace.

A transcription of the parts of <linux/kvm.h> and, for x86, <asm/kvm.h> that this package uses, as
they stand in Linux 6.1; the behaviour behind them is described in the kernel's
Documentation/virt/kvm/api.rst. tests/pykvm compares every structure field by field and every
constant with the installed headers, so a mistake here fails the test suite.

Structures that end in a flexible array member have none of its elements here; `sized` and the
functions after it make an instance with as many as needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ctypes import Structure, c_uint8, sizeof
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

from pykvm.abi_constants import *  # noqa: F403
from pykvm.abi_state import *  # noqa: F403
from pykvm.abi_state import kvm_nested_state, kvm_xsave
from pykvm.abi_vcpu import *  # noqa: F403
from pykvm.abi_vcpu import kvm_msrs
from pykvm.abi_vm import *  # noqa: F403
from pykvm.abi_vm import (
    kvm_cpuid2,
    kvm_cpuid_entry2,
    kvm_irq_routing,
    kvm_irq_routing_entry,
    kvm_msr_list,
)

_S = TypeVar("_S", bound=Structure)


def sized(header: type[_S], count: int) -> type[_S]:
    """Return a subclass of `header` whose flexible array member holds `count` elements.

    `header` is a structure whose last field is an array of length zero; the subclass lays the
    longer array over it, at the same offset.
    """
    subclass: type[_S] = _sized(header, count)
    return subclass


@lru_cache(maxsize=64)
def _sized(header: type[Structure], count: int) -> Any:
    """Return the subclass, cached: creating a class takes as long as ten requests."""
    name = header._fields_[-1][0]
    element: Any = header._fields_[-1][1]._type_  # type: ignore[union-attr]
    return type(f"{header.__name__}_{count}", (header,), {"_fields_": [(name, element * count)]})


def cpuid2(entries: Iterable[kvm_cpuid_entry2]) -> kvm_cpuid2:
    """Return a kvm_cpuid2 holding copies of `entries`."""
    leaves = list(entries)
    return sized(kvm_cpuid2, len(leaves))(nent=len(leaves), entries=tuple(leaves))


def cpuid2_of_bytes(leaves: bytes) -> kvm_cpuid2:
    """Return a kvm_cpuid2 holding the entries whose bytes are `leaves`."""
    count = len(leaves) // sizeof(kvm_cpuid_entry2)
    return sized(kvm_cpuid2, count).from_buffer_copy(struct.pack("=II", count, 0) + leaves)


def msrs(entries: Iterable[tuple[int, int]]) -> kvm_msrs:
    """Return a kvm_msrs holding (MSR index, value) pairs.

    Packed at once, and not entry by entry: there are hundreds of them, copied while a guest that
    migrates is paused. An index and the reserved word after it are one number of 64 bits.
    """
    numbers = [*chain.from_iterable(entries)]
    count = len(numbers) // 2
    packed = struct.pack(f"={1 + 2 * count}Q", count, *numbers)
    return sized(kvm_msrs, count).from_buffer_copy(packed)


def msr_values(table: kvm_msrs, count: int) -> dict[int, int]:
    """Return the first `count` entries of `table`: MSR index → value."""
    numbers = struct.unpack_from(f"={2 * count}Q", table, sizeof(kvm_msrs))
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


def msr_list(count: int) -> kvm_msr_list:
    """Return an empty kvm_msr_list with room for `count` indices."""
    return sized(kvm_msr_list, count)(nmsrs=count)


def irq_routing(entries: Iterable[kvm_irq_routing_entry]) -> kvm_irq_routing:
    """Return a kvm_irq_routing holding copies of `entries`."""
    routes = list(entries)
    return sized(kvm_irq_routing, len(routes))(nr=len(routes), entries=tuple(routes))


def xsave(size_bytes: int) -> kvm_xsave:
    """Return a kvm_xsave of `size_bytes`, a multiple of 4 and no less than its 4096."""
    return sized(kvm_xsave, (size_bytes - sizeof(kvm_xsave)) // 4)()


def nested_state(size_bytes: int) -> kvm_nested_state:
    """Return a kvm_nested_state with room for `size_bytes`, its header included."""
    room = ("room", c_uint8 * (size_bytes - sizeof(kvm_nested_state)))
    name = f"{kvm_nested_state.__name__}_{size_bytes}"
    kind: type[kvm_nested_state] = type(name, (kvm_nested_state,), {"_fields_": [room]})
    return kind(size=size_bytes)
