# SPDX-License-Identifier: Apache-2.0
"""What KVM holds of a guest, saved and restored, with guests of a few instructions in ring 3.

Any KVM will do, be it unfit for Linux; tests/kvm runs the same tests in the lab.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import sizeof
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.state import Fields, Payload, StateError, decode, encode
from pykvm import System, Vcpu, abi, address_of
from pyvmm.boot.cpu import cpuid_for
from pyvmm.state import kvm_vcpu, kvm_vm, msrs
from pyvmm.state.capabilities import Capabilities
from pyvmm.state.clock import read_clocks, set_clocks
from tests.kvm.bare_metal import CODE_GPA, RAM_BYTES, code, enter_ring_3

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="there is no KVM")

ROUNDS = 200_000_000
DONE_PORT = 0x11
COUNTS = """
    48 ff c0        inc rax
    66 0f d4 c8     paddq xmm1, xmm0
    48 ff c9        dec rcx
    75 f4           jnz $-10
    f3 0f 7f 0c 25 00 20 00 00      movdqu [0x2000], xmm1
    e6 11           out 0x11, al
"""
LSTAR, KERNEL_GS_BASE, TSC, MTRR_FIXED = 0xC000_0082, 0xC000_0102, 0x10, 0x250
CLOCKS = ("clock_ns", "clock_tsc")
LVT_TIMER, LVT_TSC_DEADLINE, SPURIOUS = 0x320, 2 << 17, 0xF0


class Tiny:
    """A machine with one vCPU, an interrupt controller and a timer, over some memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._stack = ExitStack()
        system = self._stack.enter_context(System())
        self.vm = self._stack.enter_context(system.create_vm())
        self.vm.set_tss_addr(0xFFFB_D000)
        self.vm.create_irqchip()
        self.vm.create_pit2()
        self.vm.set_user_memory_region(0, 0, RAM_BYTES, address_of(memory))
        self.vcpu = self._stack.enter_context(self.vm.create_vcpu(0))
        self.here = Capabilities.of(system, self.vm)
        self.cpuid = cpuid_for(system, 0)

    def save(self) -> dict[str, bytes]:
        clock_ns, (tsc,) = read_clocks(self.vm, [self.vcpu])
        return {
            "kvm-vcpu": encode(kvm_vcpu.save_vcpu(self.vcpu, self.here, tsc)),
            "kvm-vm": encode(kvm_vm.save_vm(self.vm, clock_ns, tsc)),
        }

    def restore(self, saved: dict[str, bytes]) -> None:
        tsc = self.restore_vcpu(decode(saved["kvm-vcpu"]))
        self.restore_vm(decode(saved["kvm-vm"]), tsc)

    def restore_vcpu(self, payload: Payload) -> int:
        return kvm_vcpu.restore_vcpu(self.vcpu, Fields("kvm-vcpu", payload), self.here)

    def restore_vm(self, payload: Payload, tsc: int = 0) -> None:
        kvm_vm.restore_vm(self.vm, Fields("kvm-vm", payload), [self.vcpu], [tsc])

    def close(self) -> None:
        self._stack.close()


@contextmanager
def tiny(memory: mmap.mmap | None = None) -> Iterator[Tiny]:
    machine = Tiny(memory if memory is not None else blank())
    try:
        yield machine
    finally:
        machine.close()


def blank() -> mmap.mmap:
    return mmap.mmap(-1, RAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@pytest.fixture
def counting() -> Iterator[tuple[Tiny, mmap.mmap]]:
    """A guest that is about to count in RAX and XMM1."""
    memory = blank()
    with tiny(memory) as machine:
        start_counting(machine, memory)
        yield machine, memory


def start_counting(machine: Tiny, memory: mmap.mmap) -> None:
    program = code(COUNTS)
    memory[CODE_GPA : CODE_GPA + len(program)] = program
    machine.vcpu.set_cpuid2(machine.cpuid)
    enter_ring_3(machine.vcpu, memory)
    regs = machine.vcpu.get_regs()
    regs.rcx, regs.rax, regs.r13 = ROUNDS, 0, 0xFEED_F00D_DEAD_BEEF
    machine.vcpu.set_regs(regs)
    area = machine.vcpu.get_xsave(machine.here.xsave_bytes)
    area.region[128] |= 0b11  # XSTATE_BV: x87 and SSE
    area.region[40:48] = [1, 0, 2, 0, 0, 0, 0, 0]  # XMM0 is two numbers, 1 and 2; XMM1 is 0
    machine.vcpu.set_xsave(area)


def run_for(vcpu: Vcpu, seconds: float) -> int:
    """Run until the guest stops by itself, or for about that long; returns the exit reason."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        return vcpu.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def run_a_little(vcpu: Vcpu) -> int:
    """Run until the guest has counted on, but not to the end; returns its count."""
    begin = vcpu.get_regs().rax
    while (count := vcpu.get_regs().rax) == begin:
        assert run_for(vcpu, 0.004) == abi.KVM_EXIT_INTR
    assert count < ROUNDS
    return int(count)


def run_to_end(vcpu: Vcpu) -> None:
    while (reason := run_for(vcpu, 1.0)) == abi.KVM_EXIT_INTR:
        pass
    assert (reason, vcpu.kvm_run.io.port) == (abi.KVM_EXIT_IO, DONE_PORT)


def test_a_guest_goes_on_counting_in_another_machine(counting: tuple[Tiny, mmap.mmap]) -> None:
    machine, memory = counting
    counts = [0]
    with ExitStack() as stack:
        for _ in range(3):
            counts.append(run_a_little(machine.vcpu))
            saved = machine.save()
            machine = stack.enter_context(tiny(memory))
            machine.restore(saved)
        assert counts == sorted({*counts})
        run_to_end(machine.vcpu)
        regs = machine.vcpu.get_regs()
        assert (regs.rax, regs.rcx, regs.r13) == (ROUNDS, 0, 0xFEED_F00D_DEAD_BEEF)
        low, high = (int.from_bytes(memory[at : at + 8], "little") for at in (0x2000, 0x2008))
        assert (low, high) == (ROUNDS, 2 * ROUNDS)


def test_the_machine_that_was_saved_goes_on_too(counting: tuple[Tiny, mmap.mmap]) -> None:
    machine, memory = counting
    run_a_little(machine.vcpu)
    machine.save()
    run_to_end(machine.vcpu)
    assert machine.vcpu.get_regs().rax == ROUNDS
    assert int.from_bytes(memory[0x2000:0x2008], "little") == ROUNDS


def test_everything_is_there_again() -> None:
    """Each kind of register is given a value of its own; what is saved of the copy is the same."""
    with tiny() as machine, tiny() as copy:
        fill(machine)
        saved = machine.save()
        copy.restore(saved)
        again = copy.save()
        before, after = decode(saved["kvm-vcpu"]), decode(again["kvm-vcpu"])
        assert without_time(before) == without_time(after)
        vm_before, vm_after = decode(saved["kvm-vm"]), decode(again["kvm-vm"])
        assert without_time(vm_before) == without_time(vm_after)
        assert msrs_of(after)[LSTAR] == 0xFFFF_8000_0000_1234


def fill(machine: Tiny) -> None:
    vcpu, vm = machine.vcpu, machine.vm
    vcpu.set_cpuid2(machine.cpuid)
    values = {LSTAR: 0xFFFF_8000_0000_1234, KERNEL_GS_BASE: 0x5678, MTRR_FIXED: 0x0606_0606_0606}
    assert vcpu.set_msrs(values) == len(values)
    vcpu.set_regs(abi.kvm_regs(rax=1, rip=0x1000, rflags=0x46, r15=15))
    sregs = vcpu.get_sregs2()
    sregs.cr2, sregs.gdt.base, sregs.fs.base = 0x1234_5000, 0x7000, 0x8000
    vcpu.set_sregs2(sregs)
    area = vcpu.get_xsave(machine.here.xsave_bytes)
    area.region[128] |= 0b11
    area.region[40:104] = range(64)  # XMM0 to XMM15
    if machine.here.xcrs:
        xcrs = vcpu.get_xcrs()
        xcrs.xcrs[0].value = avx(machine.cpuid)
        vcpu.set_xcrs(xcrs)
        area.region[128] |= avx(machine.cpuid)
        area.region[144:208] = range(100, 164)  # upper halves of YMM0 to YMM15
    vcpu.set_xsave(area)
    debug = vcpu.get_debugregs()
    debug.db[0], debug.dr7 = 0x1000, 0x401
    vcpu.set_debugregs(debug)
    lapic = vcpu.get_lapic()
    lapic.regs[SPURIOUS : SPURIOUS + 4] = (0x1FF).to_bytes(4, "little")
    lapic.regs[LVT_TIMER : LVT_TIMER + 4] = (LVT_TSC_DEADLINE | 0x33).to_bytes(4, "little")
    vcpu.set_lapic(lapic)
    assert vcpu.set_msrs({msrs.TSC_DEADLINE: 1 << 60}) == 1
    events = vcpu.get_vcpu_events()
    events.nmi.masked, events.nmi.pending = 1, 1
    vcpu.set_vcpu_events(events)
    vcpu.set_mp_state(abi.KVM_MP_STATE_HALTED)
    for number, imr in ((0, 0x12), (1, 0x34)):
        chip = vm.get_irqchip(number)
        chip.chip.pic.imr = imr
        vm.set_irqchip(chip)
    chip = vm.get_irqchip(abi.KVM_IRQCHIP_IOAPIC)
    chip.chip.ioapic.redirtbl[9].bits = 0x0100_0000_0001_A044
    vm.set_irqchip(chip)
    pit = vm.get_pit2()
    pit.channels[0].count, pit.channels[0].mode = 0x4242, 2
    vm.set_pit2(pit)


def avx(cpuid: abi.kvm_cpuid2) -> int:
    """What XCR0 may be: with AVX, where the processor has it."""
    has = any(entry.function == 1 and entry.ecx >> 28 & 1 for entry in cpuid.entries)
    return 0b111 if has else 0b11


def msrs_of(payload: Payload) -> dict[int, int]:
    indices: Any = payload["msr_indices"]
    values: Any = payload["msr_values"]
    return dict(zip(indices, values, strict=True))


def without_time(payload: Payload) -> dict[str, Any]:
    rest: dict[str, Any] = {name: payload[name] for name in payload if name not in CLOCKS}
    if "pic_master" in rest:
        _last_irr, _irr, *chip = rest["pic_master"]  # the timer may have ticked
        rest["pic_master"] = bytes(chip)
    if "msr_values" in rest:
        rest["msr_values"] = {**msrs_of(payload), TSC: 0}
    return rest


def test_a_deadline_and_a_halted_processor_come_back() -> None:
    with tiny() as machine, tiny() as copy:
        fill(machine)
        saved = decode(machine.save()["kvm-vcpu"])
        assert (saved["tsc_deadline"], saved["mp_state"]) == (1 << 60, abi.KVM_MP_STATE_HALTED)
        copy.restore_vcpu(saved)
        deadline = msrs.TSC_DEADLINE
        assert copy.vcpu.get_msrs([deadline]) == {deadline: 1 << 60}
        assert copy.vcpu.get_mp_state() == abi.KVM_MP_STATE_HALTED
        assert copy.vcpu.get_vcpu_events().nmi.pending == 1


@pytest.fixture
def good() -> Iterator[tuple[Tiny, dict[str, Any]]]:
    """A machine to restore into, and the payload of a vCPU that it would take."""
    with tiny() as machine, tiny() as copy:
        fill(machine)
        yield copy, {**decode(machine.save()["kvm-vcpu"])}


def with_msr(payload: dict[str, Any], index: int, value: int) -> dict[str, Any]:
    values = {**msrs_of(payload), index: value}
    return {**payload, "msr_indices": list(values), "msr_values": list(values.values())}


@pytest.fixture
def own_counter() -> None:
    with tiny() as machine:
        if machine.vcpu.set_msrs({TSC: 1 << 62}) and machine.vcpu.get_msrs([TSC])[TSC] < 1 << 62:
            pytest.skip("this KVM shows its guests the host's own time stamp counter")


@pytest.mark.usefixtures("own_counter")
@pytest.mark.parametrize("ahead_s", [-0.9, 0.9, 1e6])
def test_the_time_stamp_counter_goes_on_from_where_it_stopped(
    good: tuple[Tiny, dict[str, Any]], ahead_s: float
) -> None:
    """Also in a guest of nearly the same age as the machine that it is restored into."""
    machine, payload = good
    hz = machine.vcpu.get_tsc_khz() * 1000
    saved = int(machine.vcpu.get_msrs([TSC])[TSC] + ahead_s * hz) % (1 << 64)
    begin = time.monotonic()
    machine.restore_vcpu(with_msr(payload, TSC, saved))
    now = machine.vcpu.get_msrs([TSC])[TSC]
    elapsed_s = time.monotonic() - begin
    assert (now - saved) % (1 << 64) <= (elapsed_s * 1.01 + 0.001) * hz


def test_the_clock_goes_on_from_where_it_stopped() -> None:
    with tiny() as machine, tiny() as copy:
        machine.vcpu.set_cpuid2(machine.cpuid)
        for clock_ns in (machine.vm.get_clock().clock, 10**17):
            machine.vm.set_clock(abi.kvm_clock_data(clock=clock_ns))
            saved = machine.save()
            copy.restore(saved)
            then: Any = decode(saved["kvm-vm"])["clock_ns"]
            assert clock_ns <= then <= copy.vm.get_clock().clock < then + 60 * 10**9


@pytest.fixture(params=["exactly", "by trials"])
def exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether KVM can be told how far counters are ahead; Linux before 5.16 could not."""
    if request.param == "by trials":
        monkeypatch.setattr(Vcpu, "has_device_attr", lambda *_: False)
    return bool(request.param == "exactly")


def test_clock_and_time_stamp_counter_stay_together(exact: bool) -> None:
    """However long saving takes, restoring, and anything in between."""
    with tiny() as machine, tiny() as copy:
        machine.vcpu.set_msrs({TSC: 10**15})
        exact = exact and machine.vcpu.get_msrs([TSC])[TSC] >= 10**15  # or it is the host's
        machine.vcpu.set_cpuid2(machine.cpuid)
        time.sleep(0.1)
        saved = machine.save()
        tsc = copy.restore_vcpu(decode(saved["kvm-vcpu"]))
        time.sleep(0.1)
        vm = decode(saved["kvm-vm"])
        copy.restore_vm(vm, tsc)
        clock_ns, (now,) = read_clocks(copy.vm, [copy.vcpu])
        old_ns, old_tsc = (number(vm, name) for name in CLOCKS)
        by_tsc_ns = (now - old_tsc) * 1_000_000 // copy.vcpu.get_tsc_khz()
        assert clock_ns >= old_ns
        assert abs(clock_ns - old_ns - by_tsc_ns) < (10_000 if exact else 400_000)


@pytest.mark.usefixtures("own_counter")
def test_a_counter_that_was_read_long_before_the_clock_moves_up_to_it(exact: bool) -> None:
    """Saving a busy machine took longer than restoring it; once its clock was ahead by that."""
    with tiny() as machine:
        machine.vcpu.set_cpuid2(machine.cpuid)
        khz = machine.vcpu.get_tsc_khz()
        old_ns, old_tsc = 10**12, 10**15
        early = old_tsc - 100 * khz
        machine.vcpu.set_msrs({TSC: early})
        set_clocks(machine.vm, [machine.vcpu], old_ns, old_tsc, [early])
        clock_ns, (now,) = read_clocks(machine.vm, [machine.vcpu])
        by_tsc_ns = (now - old_tsc) * 1_000_000 // khz
        assert abs(clock_ns - old_ns - by_tsc_ns) < (10_000 if exact else 400_000)


@pytest.mark.usefixtures("own_counter")
@pytest.mark.parametrize("ahead", [0, 12345, -(10**9), 1 << 40])
def test_counters_stay_as_far_apart_as_they_were(ahead: int) -> None:
    with tiny() as machine:
        second = machine.vm.create_vcpu(1)
        vcpus = [machine.vcpu, second]
        machine.vcpu.set_msrs({TSC: 10**15})
        set_clocks(machine.vm, vcpus, 10**12, 10**15, [10**15, 10**15 + ahead])
        _, counters = read_clocks(machine.vm, vcpus)
        assert counters[1] - counters[0] == ahead
        assert 0 <= counters[0] - 10**15 < 60 * 10**12
        second.close()


def test_counters_that_were_read_one_after_the_other_are_together() -> None:
    """So KVM without offsets has them saved."""
    with tiny() as machine:
        second = machine.vm.create_vcpu(1)
        vcpus = [machine.vcpu, second]
        set_clocks(machine.vm, vcpus, 10**12, 10**15, [10**15 - 10**6, 10**15 - 5000])
        _, counters = read_clocks(machine.vm, vcpus)
        assert counters[1] == counters[0]
        second.close()


def test_a_counter_that_cannot_be_right_is_left_alone(exact: bool) -> None:
    with tiny() as machine:
        machine.vcpu.set_cpuid2(machine.cpuid)
        vm = {**kvm_vm.save_vm(machine.vm, 10**15, 1 << 63)}
        machine.restore_vm(vm)
        assert 10**15 <= machine.vm.get_clock().clock < 10**15 + 60 * 10**9


def number(payload: Payload, name: str) -> int:
    return Fields("test", payload).number(name)


# --- What is refused ---------------------------------------------------------------------------


def refused(machine: Tiny, payload: Payload, match: str) -> None:
    with pytest.raises(StateError, match=match):
        machine.restore_vcpu(payload)


def test_registers_that_kvm_does_not_know_are_named(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    refused(machine, with_msr(payload, 0x1234_5678, 0), "kvm-vcpu: msr_indices has MSR 0x12345678")
    many = payload
    for index in range(20):
        many = with_msr(many, 0x7000_0000 + index, 1)
    refused(machine, many, "MSR 0x70000007 and 12 more: not known to this KVM")


def test_values_that_cannot_be_are_named(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    bad = with_msr(payload, LSTAR, 1 << 60)
    refused(machine, bad, "kvm-vcpu: MSR 0xc0000082 cannot be 0x1000000000000000 here")


def test_features_that_the_processor_lacks_are_named(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    leaf = abi.kvm_cpuid_entry2(function=7, flags=1, ebx=1 << 4, ecx=1 << 16, edx=1 << 24)
    for name in ("hle", "la57", "amx_tile"):
        refused(machine, {**payload, "cpuid": payload["cpuid"] + bytes(leaf)}, f"asks for.* {name}")


def test_the_processors_of_another_maker_are_refused(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    other = bytearray(payload["cpuid"])
    other[16] ^= 1
    refused(machine, {**payload, "cpuid": bytes(other)}, "asks for a processor made by")


def test_a_guest_of_another_clock_rate_is_refused(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    khz = payload["tsc_khz"]
    if machine.here.tsc_scaling:
        machine.restore_vcpu({**payload, "tsc_khz": khz * 2 // 3})
        return
    refused(machine, {**payload, "tsc_khz": khz * 2 // 3}, "tsc_khz is .* bound to")
    machine.restore_vcpu({**payload, "tsc_khz": khz + khz // 10_000})


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("regs", bytes(8), "regs has 8 bytes and not 144"),
        ("sregs2", bytes(319), "sregs2 has 319 bytes"),
        ("lapic", bytes(1025), "lapic has 1025 bytes and not 1024"),
        ("xsave", bytes(4092), "xsave has 4092 bytes, room is for"),
        ("xsave", bytes(4097), "xsave has 4097 bytes, room is for"),
        ("xsave", bytes(1 << 15), "xsave has 32768 bytes, room is for"),
        ("xsave", bytes(1 << 20), "xsave has 1048576 bytes, more than 65536"),
        ("xsave", bytes(512) + b"\x00\x00\x00\x80" + bytes(3580), "xsave has component 31"),
        ("xcrs", bytes(4), "xcrs has 4 bytes and not 392"),
        ("cpuid", bytes(39), "cpuid has 39 bytes, no whole number of leaves"),
        ("cpuid", bytes(40 * 257), "cpuid has 10280 bytes, more than 10240"),
        ("nested", bytes(100), "nested has 100 bytes"),
        ("nested", bytes(1 << 15), "nested has 32768 bytes where this KVM has"),
        ("mp_state", 5, "mp_state is 5, not from 0 to 4"),
        ("msr_indices", [1 << 32], "msr_indices is 4294967296"),
        ("msr_indices", list(range(1025)), "msr_indices has 1025 items, more than 1024"),
        ("msr_values", [0], "msr_values has 1 items and not"),
        ("tsc_khz", 0, "tsc_khz is 0, not from 1"),
        ("colour", 1, "colour is not known here"),
    ],
)
def test_what_has_the_wrong_size_is_refused(
    good: tuple[Tiny, dict[str, Any]], name: str, value: Any, match: str
) -> None:
    machine, payload = good
    refused(machine, {**payload, name: value}, match)


def test_what_is_missing_is_refused(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    for name in payload:
        rest = {other: payload[other] for other in payload if other != name}
        refused(machine, rest, f"kvm-vcpu: {name} is missing")


def test_what_kvm_refuses_is_no_crash(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    events = abi.kvm_vcpu_events(flags=1 << 31)
    refused(
        machine,
        {**payload, "vcpu_events": bytes(events)},
        "kvm-vcpu: this KVM refuses it: KVM_SET_VCPU_EVENTS: Invalid argument",
    )


def test_nested_state_cannot_claim_more_than_it_has(good: tuple[Tiny, dict[str, Any]]) -> None:
    machine, payload = good
    size = sizeof(abi.kvm_nested_state)
    lie = bytes(abi.kvm_nested_state(size=size + 1))
    if machine.here.nested_bytes:
        refused(machine, {**payload, "nested": lie}, f"says that it has {size + 1} bytes")
    else:
        refused(machine, {**payload, "nested": lie}, f"has {size} bytes where this KVM has 0")


def test_a_machine_takes_only_whole_controllers() -> None:
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
def test_any_state_is_taken_or_refused(data: st.DataObject) -> None:
    """Bits flipped anywhere: the only thing that comes out is StateError."""
    with tiny() as machine, tiny() as copy:
        fill(machine)
        saved = {name: {**decode(encoded)} for name, encoded in machine.save().items()}
        part = saved[data.draw(st.sampled_from(sorted(saved)))]
        for name in data.draw(st.lists(st.sampled_from(sorted(part)), min_size=1, max_size=3)):
            part[name] = spoilt(data, part[name])
        with contextlib.suppress(StateError):
            copy.restore({name: encode(payload) for name, payload in saved.items()})


def spoilt(data: st.DataObject, value: Any) -> Any:
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
