# SPDX-License-Identifier: Apache-2.0
"""pykvm's structures, constants and request numbers are those of the installed <linux/kvm.h>."""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint32, c_uint64
from pathlib import Path

import pytest

from pykvm import abi, abi_constants, abi_state, abi_vcpu, abi_vm, ioctls
from tests.c_layout import (
    Fact,
    constant_facts,
    evaluate,
    implicit_padding,
    mismatches,
    reachable,
    structure_facts,
    structures_of,
    union_members,
)

HEADERS = ["linux/kvm.h"]
COMPLETE_FOR_LINUX = (6 << 16) + (12 << 8) + 255
"""The newest headers that have no field which the structures lack: those of Linux 6.12."""
MODULES = (abi_vm, abi_vcpu, abi_state)
STRUCTURES = structures_of(*MODULES)

# Bytes that are unnamed in C too: both structures end in a field narrower than their alignment, and
# emulation_failure has only the fields that are ABI.
UNNAMED_IN_C = {"_kvm_run_fail_entry after cpu", "_kvm_run_mmio after is_write"}


def test_every_structure_is_found() -> None:
    assert len(STRUCTURES) >= 43
    assert abi.kvm_run in STRUCTURES
    assert abi.kvm_irq_routing in STRUCTURES


def test_every_nameless_structure_is_checked_through_one_with_a_name() -> None:
    covered = reachable(STRUCTURES)
    defined = {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    assert defined <= covered


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_structure_has_the_layout_of_the_header(structure: type[Structure]) -> None:
    newer = evaluate(["linux/version.h"], ["LINUX_VERSION_CODE"])[0] > COMPLETE_FOR_LINUX
    in_union = structure in union_members(STRUCTURES)
    facts = structure_facts(structure, newer=newer, in_union=in_union)
    assert facts
    assert mismatches(HEADERS, facts) == []


def test_facts_include_every_field() -> None:
    for structure in STRUCTURES:
        assert len(structure_facts(structure)) > len(structure._fields_)


def test_no_field_is_missing() -> None:
    kinds = [kind for kind in reachable(STRUCTURES) if issubclass(kind, Structure)]
    assert {place for kind in kinds for place in implicit_padding(kind)} == UNNAMED_IN_C


def test_constants_are_those_of_the_header() -> None:
    facts = constant_facts(abi_constants, r"KVM_\w+")
    assert len(facts) > 120
    assert {fact.expression for fact in facts} == set(constant_names(abi_constants))
    assert mismatches(HEADERS, facts) == []


def test_request_numbers_are_those_of_the_header() -> None:
    facts = constant_facts(ioctls, r"KVM\w+")
    assert len(facts) > 55
    assert {fact.expression for fact in facts} == set(constant_names(ioctls))
    assert mismatches(HEADERS, facts) == []


def constant_names(module: object) -> list[str]:
    """Return all upper-case public names of a module."""
    return [name for name in vars(module) if name.isupper() and not name.startswith("_")]


class grown_member(Structure):
    _fields_ = (("first", c_uint32),)


class grown_union(Union):
    _fields_ = (("member", grown_member), ("pad", c_uint32 * 4))


class grown(Structure):
    _fields_ = (("count", c_uint32), ("pad", c_uint32 * 3), ("u", grown_union))


NEWER_HEADER = """
struct grown_member { unsigned int first, second; };
struct grown {
    unsigned int count, added, reserved[2];
    union { struct grown_member member; unsigned int pad[4]; } u;
};
"""


def test_fields_added_in_newer_headers_pass_where_there_was_room(tmp_path: Path) -> None:
    header = tmp_path / "newer.h"
    header.write_text(NEWER_HEADER)
    members = union_members([grown])
    assert grown_member in members
    for structure in (grown, grown_member):
        facts = structure_facts(structure, newer=True, in_union=structure in members)
        assert mismatches([str(header)], facts) == []
    assert mismatches([str(header)], structure_facts(grown_member)) == [
        "sizeof(struct grown_member) is 8 in C, 4 in Python"
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("first, second", "second, first"),
        ("count, added", "added, count"),
        ("reserved[2]", "reserved[3]"),
    ],
)
def test_fields_that_newer_headers_move_do_not_pass(
    tmp_path: Path, before: str, after: str
) -> None:
    header = tmp_path / "newer.h"
    header.write_text(NEWER_HEADER.replace(before, after))
    assert mismatches([str(header)], structure_facts(grown, newer=True))


class kvm_irq_level_narrow(Structure):
    _fields_ = (("irq", c_uint32), ("level", c_uint32))


class kvm_irq_level_swapped(Structure):
    _fields_ = (("level", c_uint32), ("irq", c_uint32))


class kvm_msi_short(Structure):
    _fields_ = (("address_lo", c_uint32), ("address_hi", c_uint32), ("data", c_uint32))


class kvm_memory_wide(Structure):
    _fields_ = (
        ("slot", c_uint64),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class kvm_ioeventfd_signed(Structure):
    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_int32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint32 * 9),
    )


@pytest.mark.parametrize(
    ("structure", "c_type", "wrong"),
    [
        (kvm_irq_level_swapped, "struct kvm_irq_level", "offsetof(struct kvm_irq_level, irq)"),
        (kvm_msi_short, "struct kvm_msi", "sizeof(struct kvm_msi)"),
        (
            kvm_memory_wide,
            "struct kvm_userspace_memory_region",
            "sizeof(((struct kvm_userspace_memory_region *)0)->slot)",
        ),
        (
            kvm_ioeventfd_signed,
            "struct kvm_ioeventfd",
            "(__typeof__(((struct kvm_ioeventfd *)0)->len))-1 < 0",
        ),
        (
            kvm_ioeventfd_signed,
            "struct kvm_ioeventfd",
            "sizeof(((struct kvm_ioeventfd *)0)->pad[0])",
        ),
    ],
)
def test_a_wrong_structure_is_detected(structure: type[Structure], c_type: str, wrong: str) -> None:
    found = mismatches(HEADERS, structure_facts(structure, c_type))
    assert any(line.startswith(f"{wrong} is ") for line in found), found


def test_a_correct_structure_under_another_name_passes() -> None:
    facts = structure_facts(kvm_irq_level_narrow, "struct kvm_irq_level")
    assert mismatches(HEADERS, facts) == []


def test_a_field_that_the_header_lacks_is_detected() -> None:
    class kvm_irq_level(Structure):
        _fields_ = (("irq", c_uint32), ("colour", c_uint32))

    with pytest.raises(AssertionError, match="colour"):
        mismatches(HEADERS, structure_facts(kvm_irq_level))


def test_a_wrong_constant_is_detected() -> None:
    found = mismatches(HEADERS, [Fact("KVM_EXIT_HLT", 5), Fact("KVM_EXIT_MMIO", 7)])
    assert found == ["KVM_EXIT_MMIO is 6 in C, 7 in Python"]


def test_a_constant_that_the_header_lacks_is_detected() -> None:
    with pytest.raises(AssertionError, match="KVM_EXIT_LUNCH"):
        mismatches(HEADERS, [Fact("KVM_EXIT_LUNCH", 1)])


def test_a_field_missing_before_an_aligned_one_is_detected() -> None:
    class gappy(Structure):
        _fields_ = (("nr", c_uint32), ("entries", c_uint64))

    assert implicit_padding(gappy) == ["gappy after nr"]
