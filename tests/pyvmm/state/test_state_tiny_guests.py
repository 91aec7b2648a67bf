# SPDX-License-Identifier: Apache-2.0
"""KVM's state of a guest, saved and restored, with guests of a few instructions in ring 3.

Any KVM suffices, even one that cannot run Linux; tests/kvm runs the same tests in the lab.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from devices.state import Fields, Payload, decode
from pykvm import Vcpu, abi
from pyvmm.cpuid.dependencies import unmet
from pyvmm.cpuid.features import by_leaf
from pyvmm.state import kvm_vm, msrs
from pyvmm.state.clock import read_clocks, set_clocks
from tests.kvm.bare_metal import CODE_GPA, code, enter_ring_3
from tests.pyvmm.state.tiny_guest import (
    LSTAR,
    TSC,
    Tiny,
    blank,
    fill,
    filled,
    msrs_of,
    tiny,
    with_msr,
)

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
CLOCKS = ("clock_ns", "clock_tsc")


@pytest.fixture
def counting() -> Iterator[tuple[Tiny, mmap.mmap]]:
    """Yield a guest that is about to count in RAX and XMM1."""
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
    area = machine.vcpu.get_xsave(machine.capabilities.xsave_bytes)
    area.region[128] |= 0b11  # XSTATE_BV: x87 and SSE
    area.region[40:48] = [1, 0, 2, 0, 0, 0, 0, 0]  # XMM0 is two numbers, 1 and 2; XMM1 is 0
    machine.vcpu.set_xsave(area)


def run_for(vcpu: Vcpu, seconds: float) -> int:
    """Run until the guest stops by itself, or for about that long; return the exit reason."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        return vcpu.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def run_a_little(vcpu: Vcpu) -> int:
    """Run until the guest has counted further, but not to the end; return its count."""
    begin = vcpu.get_regs().rax
    while (count := vcpu.get_regs().rax) == begin:
        assert run_for(vcpu, 0.004) == abi.KVM_EXIT_INTR
    assert count < ROUNDS
    return int(count)


def run_to_end(vcpu: Vcpu) -> None:
    while (reason := run_for(vcpu, 1.0)) == abi.KVM_EXIT_INTR:
        pass
    assert (reason, vcpu.kvm_run.io.port) == (abi.KVM_EXIT_IO, DONE_PORT)


def test_a_restored_guest_continues_in_another_machine(counting: tuple[Tiny, mmap.mmap]) -> None:
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


def test_a_guest_is_shown_all_that_its_features_require() -> None:
    with tiny() as machine:
        machine.vcpu.set_cpuid2(machine.cpuid)
        assert unmet(by_leaf(machine.vcpu.get_cpuid2().entries)) == []


def test_the_saved_machine_continues_as_well(counting: tuple[Tiny, mmap.mmap]) -> None:
    machine, memory = counting
    run_a_little(machine.vcpu)
    machine.save()
    run_to_end(machine.vcpu)
    assert machine.vcpu.get_regs().rax == ROUNDS
    assert int.from_bytes(memory[0x2000:0x2008], "little") == ROUNDS


def test_all_registers_are_restored() -> None:
    """Each kind of register has a distinct value; saving the copy gives the same state."""
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


def without_time(payload: Payload) -> dict[str, Any]:
    rest: dict[str, Any] = {name: payload[name] for name in payload if name not in CLOCKS}
    if "pic_master" in rest:
        _last_irr, _irr, *chip = rest["pic_master"]  # the timer may have ticked
        rest["pic_master"] = bytes(chip)
    if "msr_values" in rest:
        rest["msr_values"] = {**msrs_of(payload), TSC: 0}
    return rest


def test_a_tsc_deadline_and_a_halted_vcpu_are_restored() -> None:
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
    with filled() as pair:
        yield pair


@pytest.fixture
def own_counter() -> None:
    with tiny() as machine:
        if machine.vcpu.set_msrs({TSC: 1 << 62}) and machine.vcpu.get_msrs([TSC])[TSC] < 1 << 62:
            pytest.skip("this KVM shows its guests the host's own time stamp counter")


@pytest.mark.usefixtures("own_counter")
@pytest.mark.parametrize("ahead_s", [-0.9, 0.9, 1e6])
def test_the_time_stamp_counter_continues_from_its_saved_value(
    good: tuple[Tiny, dict[str, Any]], ahead_s: float
) -> None:
    """Even if the guest is about as old as the machine that it is restored into."""
    machine, payload = good
    hz = machine.vcpu.get_tsc_khz() * 1000
    saved = int(machine.vcpu.get_msrs([TSC])[TSC] + ahead_s * hz) % (1 << 64)
    begin = time.monotonic()
    machine.restore_vcpu(with_msr(payload, TSC, saved))
    now = machine.vcpu.get_msrs([TSC])[TSC]
    elapsed_s = time.monotonic() - begin
    assert (now - saved) % (1 << 64) <= (elapsed_s * 1.01 + 0.001) * hz


def test_kvmclock_continues_from_its_saved_value() -> None:
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
    """Return whether KVM has counter offsets; Linux before 5.16 has not."""
    if request.param == "by trials":
        monkeypatch.setattr(Vcpu, "has_device_attr", lambda *_: False)
    return bool(request.param == "exactly")


def test_clock_and_time_stamp_counter_stay_together(exact: bool) -> None:
    """No matter how long saving, restoring, and the time in between take."""
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
def test_a_counter_read_long_before_the_clock_catches_up_with_it(exact: bool) -> None:
    """As when saving a busy machine takes longer than restoring it."""
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
def test_counters_keep_their_differences(ahead: int) -> None:
    with tiny() as machine:
        second = machine.vm.create_vcpu(1)
        vcpus = [machine.vcpu, second]
        machine.vcpu.set_msrs({TSC: 10**15})
        set_clocks(machine.vm, vcpus, 10**12, 10**15, [10**15, 10**15 + ahead])
        _, counters = read_clocks(machine.vm, vcpus)
        assert counters[1] - counters[0] == ahead
        assert 0 <= counters[0] - 10**15 < 60 * 10**12
        second.close()


def test_counters_saved_one_after_the_other_are_restored_equal() -> None:
    """As they are saved from a KVM without offsets."""
    with tiny() as machine:
        second = machine.vm.create_vcpu(1)
        vcpus = [machine.vcpu, second]
        set_clocks(machine.vm, vcpus, 10**12, 10**15, [10**15 - 10**6, 10**15 - 5000])
        _, counters = read_clocks(machine.vm, vcpus)
        assert counters[1] == counters[0]
        second.close()


def test_an_impossible_counter_is_ignored(exact: bool) -> None:
    with tiny() as machine:
        machine.vcpu.set_cpuid2(machine.cpuid)
        vm = {**kvm_vm.save_vm(machine.vm, 10**15, 1 << 63)}
        machine.restore_vm(vm)
        assert 10**15 <= machine.vm.get_clock().clock < 10**15 + 60 * 10**9


def number(payload: Payload, name: str) -> int:
    return Fields("test", payload).number(name)
