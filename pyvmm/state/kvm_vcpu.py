# SPDX-License-Identifier: Apache-2.0
"""A vCPU, saved while the machine is paused and restored into one that has not run yet.

Structures are saved byte by byte as KVM returns them: their layout is the kernel's ABI and does not
change. The order matters, both ways.

Saving begins with KVM_GET_MP_STATE, as that accepts a pending INIT or start-up IPI, which changes
registers. The TSC deadline is read before the local APIC: if the timer fires in between, it is
saved twice, as a deadline and as an interrupt, and not lost.

The order of restoring:

1. CPUID, which decides what the rest may contain, and the rate of the time stamp counter;
2. control and segment registers: paging mode, EFER, address and mode of the local APIC;
3. MSRs, the time stamp counter among them;
4. general registers, after which KVM forgets exceptions; XCR0, XSAVE state, debug registers;
5. the local APIC, then the deadline of its timer, which is ignored in another timer mode;
6. pending events and the run state, which the steps before would change; last, the flag that tells
   the guest's watchdogs that it was stopped.

There is no state of nested virtualization, which guests are not offered (`pyvmm.cpuid.policy`).

Guest memory has been restored before, as KVM reads some of it. Features that this host does not
offer and values that KVM refuses are detected before the guest has run an instruction; the machine
can only be closed then.

KVM API: Documentation/virt/kvm/api.rst, section 4, under the name of each request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ctypes import Array, Structure, byref, memmove, sizeof
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from devices.state import Fields, Payload, StateError
from pykvm import KvmError, Vcpu, abi
from pyvmm.cpuid.compatibility import missing_features, moved_xsave_state
from pyvmm.cpuid.dependencies import unmet
from pyvmm.cpuid.features import Leaves, by_leaf
from pyvmm.state import msrs
from pyvmm.state.capabilities import MIN_XSAVE_BYTES

if TYPE_CHECKING:
    from pyvmm.state.capabilities import Capabilities

KIND = "kvm-vcpu"
VERSION = 1

MAX_CPUID_ENTRIES = 256
MAX_MSRS = 1024
MAX_XSAVE_BYTES = 1 << 16
TSC_TOLERANCE_PPM = 250
"""Largest difference of two rates that count as equal; NTP corrects 500."""

_CPUID_ENTRY_BYTES = sizeof(abi.kvm_cpuid_entry2)
_NAMED_AT_MOST = 8
_APIC_BASE_BSP = 1 << 8
_TSC_APART_S = 100

_S = TypeVar("_S", bound=Structure)


def save_vcpu(vcpu: Vcpu, host: Capabilities, tsc: int) -> Payload:
    """Return all that KVM holds of `vcpu`, whose machine is paused. Raises KvmError.

    `tsc` is its time stamp counter at the moment when the machine's clock was read.
    """
    mp_state = vcpu.get_mp_state()
    registers = msrs.read(vcpu, [*msrs.state_indices(vcpu, host), msrs.TSC_DEADLINE])
    deadline = registers.pop(msrs.TSC_DEADLINE, 0)
    registers[msrs.TSC] = tsc
    return {
        "mp_state": mp_state,
        "cpuid": bytes(vcpu.get_cpuid2().entries),
        "tsc_khz": vcpu.get_tsc_khz(),
        "sregs2": bytes(vcpu.get_sregs2()),
        "msr_indices": list(registers),
        "msr_values": list(registers.values()),
        "regs": bytes(vcpu.get_regs()),
        "xcrs": bytes(vcpu.get_xcrs()) if host.xcrs else b"",
        "xsave": bytes(vcpu.get_xsave(host.xsave_bytes)),
        "debugregs": bytes(vcpu.get_debugregs()),
        "lapic": bytes(vcpu.get_lapic()),
        "tsc_deadline": deadline,
        "vcpu_events": bytes(vcpu.get_vcpu_events()),
    }


class FreshVcpu(NamedTuple):
    """A vCPU of a guest started here, before anything was restored."""

    leaves: Leaves
    """Its CPUID: some KVMs show guests more than they report as supported."""
    msrs: frozenset[int]
    """Indices of the registers that are state."""
    tsc_khz: int


def fresh_vcpu(vcpu: Vcpu, host: Capabilities) -> FreshVcpu:
    """Describe `vcpu`, which has neither run nor been restored; all vCPUs of a machine are alike.

    Restoring compares every saved vCPU with it, so it is queried once, and before a guest that
    migrates is paused.
    """
    vcpu.set_cpuid2(host.cpuid)
    leaves = by_leaf(vcpu.get_cpuid2().entries)
    return FreshVcpu(leaves, frozenset(msrs.state_indices(vcpu, host)), vcpu.get_tsc_khz())


def restore_vcpu(vcpu: Vcpu, fields: Fields, host: Capabilities, fresh: FreshVcpu) -> int:
    """Restore `vcpu`, which has not run, and return its saved time stamp counter.

    StateError for a malformed payload, features that this host does not offer, and values that KVM
    refuses.
    """
    saved = _Saved(fields)
    _check_fit(saved, fields, host, fresh)
    with kvm_refusals(fields.name):
        vcpu.set_cpuid2(abi.cpuid2_of_bytes(saved.cpuid))
        _set_tsc_rate(vcpu, saved.tsc_khz)
        vcpu.set_sregs2(saved.sregs2)
        if saved.sregs2.apic_base & _APIC_BASE_BSP:
            _desynchronize_tsc(vcpu, saved)
        msrs.write(vcpu, saved.msrs, fields.name)
        vcpu.set_regs(saved.regs)
        _restore_xsave(vcpu, saved, host)
        vcpu.set_debugregs(saved.debugregs)
        vcpu.set_lapic(saved.lapic)
        msrs.write(vcpu, {msrs.TSC_DEADLINE: saved.tsc_deadline}, fields.name)
        vcpu.set_vcpu_events(saved.vcpu_events)
        vcpu.set_mp_state(saved.mp_state)
    with contextlib.suppress(KvmError):  # refused for a guest that does not use kvmclock
        vcpu.kvmclock_ctrl()
    return saved.msrs.get(msrs.TSC, 0)


@contextlib.contextmanager
def kvm_refusals(part: str) -> Iterator[None]:
    """Turn a KvmError in the block into a StateError of `part`."""
    try:
        yield
    except KvmError as error:
        raise StateError(part, f"refused by this host's KVM: {error}") from error


def structure(fields: Fields, name: str, kind: type[_S]) -> _S:
    """Return field `name` as a structure of KVM's."""
    return kind.from_buffer_copy(fields.data(name, length=sizeof(kind)))


class _Saved:
    """A payload whose sizes and counts are checked; the values are checked by KVM."""

    def __init__(self, fields: Fields) -> None:
        self.mp_state = fields.number("mp_state", below=abi.KVM_MP_STATE_SIPI_RECEIVED + 1)
        self.cpuid = fields.data("cpuid", at_most=MAX_CPUID_ENTRIES * _CPUID_ENTRY_BYTES)
        self.leaves = by_leaf(_cpuid_entries(fields, self.cpuid))
        self.tsc_khz = fields.number("tsc_khz", at_least=1, below=1 << 31)
        self.sregs2 = structure(fields, "sregs2", abi.kvm_sregs2)
        indices = fields.numbers("msr_indices", at_most=MAX_MSRS, below=1 << 32)
        values = fields.numbers("msr_values", count=len(indices))
        self.msrs = dict(zip(indices, values, strict=True))
        self.regs = structure(fields, "regs", abi.kvm_regs)
        self.xcrs = fields.data("xcrs", at_most=sizeof(abi.kvm_xcrs))
        self.xsave = fields.data("xsave", at_most=MAX_XSAVE_BYTES)
        self.debugregs = structure(fields, "debugregs", abi.kvm_debugregs)
        self.lapic = structure(fields, "lapic", abi.kvm_lapic_state)
        self.tsc_deadline = fields.number("tsc_deadline")
        self.vcpu_events = structure(fields, "vcpu_events", abi.kvm_vcpu_events)
        fields.done()


def _cpuid_entries(fields: Fields, data: bytes) -> Array[abi.kvm_cpuid_entry2]:
    if len(data) % _CPUID_ENTRY_BYTES:
        raise fields.error("cpuid", f"has {len(data)} bytes, not a whole number of leaves")
    return (abi.kvm_cpuid_entry2 * (len(data) // _CPUID_ENTRY_BYTES)).from_buffer_copy(data)


def _check_fit(saved: _Saved, fields: Fields, host: Capabilities, fresh: FreshVcpu) -> None:
    """Refuse, by name, features without what they require, or that guests here do not get."""
    inconsistent = unmet(saved.leaves)
    if inconsistent:
        raise fields.error("cpuid", f"shows {_listed(inconsistent)}")
    missing = missing_features(saved.leaves, fresh.leaves)
    if missing:
        raise fields.error("cpuid", f"needs {_listed(missing)}, which this host does not offer")
    moved = moved_xsave_state(saved.xsave, saved.leaves, fresh.leaves)
    if moved:
        raise fields.error("xsave", f"has component {moved[0]} at another place than this CPU")
    _check_xsave(saved, fields, host)
    unknown = [f"MSR 0x{index:x}" for index in sorted(saved.msrs.keys() - fresh.msrs)]
    if unknown:
        raise fields.error("msr_indices", f"has {_listed(unknown)}, unknown to this host's KVM")
    if not _same_rate(saved.tsc_khz, fresh.tsc_khz) and not host.tsc_scaling:
        raise fields.error(
            "tsc_khz", f"is {saved.tsc_khz}; this host cannot scale its {fresh.tsc_khz}"
        )


def _check_xsave(saved: _Saved, fields: Fields, host: Capabilities) -> None:
    if not MIN_XSAVE_BYTES <= len(saved.xsave) <= host.xsave_bytes or len(saved.xsave) % 4:
        raise fields.error("xsave", f"has {len(saved.xsave)} bytes, not {host.xsave_bytes}")
    if len(saved.xcrs) not in (0, sizeof(abi.kvm_xcrs)):
        raise fields.error("xcrs", f"has {len(saved.xcrs)} bytes and not {sizeof(abi.kvm_xcrs)}")
    if saved.xcrs and not host.xcrs:
        raise fields.error("xcrs", "is present, but this CPU has no XSAVE")


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _same_rate(khz: int, other_khz: int) -> bool:
    return abs(khz - other_khz) * 1_000_000 <= other_khz * TSC_TOLERANCE_PPM


def _set_tsc_rate(vcpu: Vcpu, khz: int) -> None:
    if not _same_rate(khz, vcpu.get_tsc_khz()):
        vcpu.set_tsc_khz(khz)


def _desynchronize_tsc(vcpu: Vcpu, saved: _Saved) -> None:
    """Write a time stamp far from the one that the boot processor is about to get.

    KVM takes a value within a second of the one it expects as an attempt to synchronize vCPUs, and
    keeps its own. That is right for the other vCPUs; but before Linux 6.7 it happens to the first
    one as well, whose counter would go back if the guest is about as old as this machine.
    """
    elsewhere = saved.msrs.get(msrs.TSC, 0) + _TSC_APART_S * saved.tsc_khz * 1000
    vcpu.set_msrs({msrs.TSC: elsewhere % (1 << 64)})


def _restore_xsave(vcpu: Vcpu, saved: _Saved, host: Capabilities) -> None:
    if saved.xcrs:
        vcpu.set_xcrs(abi.kvm_xcrs.from_buffer_copy(saved.xcrs))
    area = abi.xsave(host.xsave_bytes)
    memmove(byref(area), saved.xsave, len(saved.xsave))
    vcpu.set_xsave(area)
