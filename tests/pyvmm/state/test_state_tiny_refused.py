# SPDX-License-Identifier: Apache-2.0
"""Saved states that a machine refuses are refused by name, and never crash it.

Any KVM suffices, even one that cannot run Linux; tests/kvm runs the same tests in the lab.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from ctypes import sizeof
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.state import Payload, StateError, decode, encode
from pykvm import abi
from pyvmm.cpuid.features import by_leaf, hide
from pyvmm.state import kvm_vm
from tests.pyvmm.state.tiny_guest import LSTAR, Tiny, fill, filled, tiny, with_msr

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="there is no KVM")


@pytest.fixture
def good() -> Iterator[tuple[Tiny, dict[str, Any]]]:
    with filled() as pair:
        yield pair


def refused(machine: Tiny, payload: Payload, match: str) -> None:
    with pytest.raises(StateError, match=match):
        machine.restore_vcpu(payload)


def test_a_state_of_a_cpu_without_xsave_is_restored(good: tuple[Tiny, dict[str, Any]]) -> None:
    """It has no extended control registers."""
    machine, payload = good
    machine.restore_vcpu({**payload, "xcrs": b""})


@pytest.mark.parametrize("size", [1, sizeof(abi.kvm_xcrs) - 1])
def test_other_sizes_of_the_control_registers_are_refused(
    good: tuple[Tiny, dict[str, Any]], size: int
) -> None:
    machine, payload = good
    refused(machine, {**payload, "xcrs": bytes(size)}, f"kvm-vcpu: xcrs has {size} bytes and not")


def test_unknown_msrs_are_refused_by_name(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    refused(machine, with_msr(payload, 0x1234_5678, 0), "kvm-vcpu: msr_indices has MSR 0x12345678")
    many = payload
    for index in range(20):
        many = with_msr(many, 0x7000_0000 + index, 1)
    refused(machine, many, "MSR 0x70000007 and 12 more, unknown to this host's KVM")


def test_impossible_msr_values_are_refused_by_name(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    bad = with_msr(payload, LSTAR, 1 << 60)
    refused(machine, bad, "kvm-vcpu: MSR 0xc0000082 cannot be 0x1000000000000000 here")


def leaves_of(payload: dict[str, Any]) -> list[abi.kvm_cpuid_entry2]:
    size = sizeof(abi.kvm_cpuid_entry2)
    return [
        abi.kvm_cpuid_entry2.from_buffer_copy(payload["cpuid"], offset)
        for offset in range(0, len(payload["cpuid"]), size)
    ]


def with_leaves(payload: dict[str, Any], leaves: list[abi.kvm_cpuid_entry2]) -> dict[str, Any]:
    return {**payload, "cpuid": b"".join(bytes(each) for each in leaves)}


def test_a_restored_vcpu_has_the_saved_cpuid_and_not_the_hosts(
    good: tuple[Tiny, dict[str, Any]],
) -> None:
    machine, payload = good
    brand = 0x8000_0002
    leaves = leaves_of(payload)
    by_leaf(leaves)[brand, 0].eax ^= 0x0101_0101
    machine.restore_vcpu(with_leaves(payload, leaves))
    restored = by_leaf(machine.vcpu.get_cpuid2().entries)
    assert restored[brand, 0].eax == by_leaf(leaves)[brand, 0].eax


def test_missing_cpu_features_are_refused_by_name(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    leaves = leaves_of(payload)
    leaf = by_leaf(leaves)[7, 0]
    leaf.ebx, leaf.ecx = leaf.ebx | 1 << 4, leaf.ecx | 1 << 16 | 1 << 23
    for name in ("hle", "la57", "kl"):
        refused(machine, with_leaves(payload, leaves), f"cpuid needs .*{name}.* does not offer")


def test_nested_virtualization_is_refused(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    leaves = leaves_of(payload)
    by_leaf(leaves)[1, 0].ecx |= 1 << 5
    by_leaf(leaves)[0x8000_0001, 0].ecx |= 1 << 2
    refused(machine, with_leaves(payload, leaves), "cpuid needs vmx, svm, which this host does not")


def test_features_without_what_they_require_are_refused_by_name(
    good: tuple[Tiny, dict[str, Any]],
) -> None:
    machine, payload = good
    leaves = leaves_of(payload)
    hide(by_leaf(leaves), {"sse2"})
    refused(machine, with_leaves(payload, leaves), "cpuid shows .* without sse2")


def test_a_cpu_of_another_vendor_is_refused(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    other = bytearray(payload["cpuid"])
    other[16] ^= 1
    refused(machine, {**payload, "cpuid": bytes(other)}, "needs a CPU of vendor")


def test_another_tsc_rate_is_refused(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    khz = payload["tsc_khz"]
    if machine.capabilities.tsc_scaling:
        machine.restore_vcpu({**payload, "tsc_khz": khz * 2 // 3})
        return
    refused(machine, {**payload, "tsc_khz": khz * 2 // 3}, "tsc_khz is .* this host cannot scale")
    machine.restore_vcpu({**payload, "tsc_khz": khz + khz // 10_000})


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("regs", bytes(8), "regs has 8 bytes and not 144"),
        ("sregs2", bytes(319), "sregs2 has 319 bytes"),
        ("lapic", bytes(1025), "lapic has 1025 bytes and not 1024"),
        ("xsave", bytes(4092), "xsave has 4092 bytes, not "),
        ("xsave", bytes(4097), "xsave has 4097 bytes, not "),
        ("xsave", bytes(1 << 15), "xsave has 32768 bytes, not "),
        ("xsave", bytes(1 << 20), "xsave has 1048576 bytes, more than 65536"),
        ("xsave", bytes(512) + b"\x00\x00\x00\x80" + bytes(3580), "xsave has component 31"),
        ("xcrs", bytes(4), "xcrs has 4 bytes and not 392"),
        ("cpuid", bytes(39), "cpuid has 39 bytes, not a whole number of leaves"),
        ("cpuid", bytes(40 * 257), "cpuid has 10280 bytes, more than 10240"),
        ("nested", bytes(128), "nested is not known here"),
        ("mp_state", 5, "mp_state is 5, not from 0 to 4"),
        ("msr_indices", [1 << 32], "msr_indices is 4294967296"),
        ("msr_indices", list(range(1025)), "msr_indices has 1025 items, more than 1024"),
        ("msr_values", [0], "msr_values has 1 items and not"),
        ("tsc_khz", 0, "tsc_khz is 0, not from 1"),
        ("colour", 1, "colour is not known here"),
    ],
)
def test_fields_of_the_wrong_size_are_refused(
    good: tuple[Tiny, dict[str, Any]], name: str, value: Any, match: str
) -> None:
    machine, payload = good
    refused(machine, {**payload, name: value}, match)


def test_missing_fields_are_refused(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    for name in payload:
        rest = {other: payload[other] for other in payload if other != name}
        refused(machine, rest, f"kvm-vcpu: {name} is missing")


def test_values_that_kvm_refuses_are_errors_of_the_state(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    events = abi.kvm_vcpu_events(flags=1 << 31)
    refused(
        machine,
        {**payload, "vcpu_events": bytes(events)},
        "kvm-vcpu: refused by this host's KVM: KVM_SET_VCPU_EVENTS: Invalid argument",
    )


def test_incomplete_interrupt_controllers_are_refused() -> None:
    with tiny() as machine:
        payload: dict[str, Any] = {**kvm_vm.save_vm(machine.vm, 0, 0)}
        for name, value, match in (
            ("ioapic", bytes(8), "ioapic has 8 bytes and not 216"),
            ("pic_slave", b"", "pic_slave has 0 bytes and not 16"),
            ("clock_ns", 1 << 62, "clock_ns is"),
            ("hpet", b"", "hpet is not known here"),
        ):
            with pytest.raises(StateError, match=f"kvm-vm: {match}"):
                machine.restore_vm({**payload, name: value})


@settings(max_examples=25)
@given(data=st.data())
def test_corrupted_states_are_restored_or_refused(data: st.DataObject) -> None:
    """With bits flipped anywhere, StateError is the only error."""
    with tiny() as machine, tiny() as copy:
        fill(machine)
        saved = {name: {**decode(encoded)} for name, encoded in machine.save().items()}
        part = saved[data.draw(st.sampled_from(sorted(saved)))]
        for name in data.draw(st.lists(st.sampled_from(sorted(part)), min_size=1, max_size=3)):
            part[name] = corrupted(data, part[name])
        with contextlib.suppress(StateError):
            copy.restore({name: encode(payload) for name, payload in saved.items()})


def corrupted(data: st.DataObject, value: Any) -> Any:
    if isinstance(value, bytes):
        bits = bytearray(value)
        for at in data.draw(st.lists(st.integers(0, max(len(bits) * 8 - 1, 0)), max_size=4)):
            if bits:
                bits[at // 8] ^= 1 << at % 8
        return bytes(bits)
    if isinstance(value, list):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], value[at] ^ 1 << data.draw(st.integers(0, 63)), *value[at + 1 :]]
    return value ^ 1 << data.draw(st.integers(0, 63))
