# SPDX-License-Identifier: Apache-2.0
"""The KVM probe: verdicts on measurements, and a real run that restores all state."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pykvm import Vcpu, abi
from pyvmm.machine import kvm_probe as probe
from pyvmm.machine.kvm_probe import MIN_RING0_INSTRUCTIONS_PER_SECOND, Verdict
from pyvmm.machine.kvm_verdict import KVM_DEVICE

FAST = 2 * MIN_RING0_INSTRUCTIONS_PER_SECOND
SLOW = MIN_RING0_INSTRUCTIONS_PER_SECOND / 2


@pytest.mark.parametrize(
    ("speed", "problem", "verdict", "arrives"),
    [
        (FAST, None, Verdict.FIT, True),
        (SLOW, None, Verdict.UNFIT, True),
        (FAST, "arrives with CS 0x23 in ring 3", Verdict.UNFIT, False),
        (None, None, Verdict.UNFIT, None),
    ],
)
def test_the_verdict_follows_from_the_measurements(speed, problem, verdict, arrives) -> None:  # type: ignore[no-untyped-def]
    fitness = probe._judge(speed, problem, "KVM_EXIT_SHUTDOWN")
    assert fitness.verdict is verdict
    assert fitness.syscall_arrives is arrives
    assert fitness.ring0_instructions_per_second == speed


class VcpuOfALoop:
    """A vCPU that begins a loop and is at its end, or interrupted, after `remaining` iterations."""

    def __init__(self, remaining: int, reason: int = abi.KVM_EXIT_IO) -> None:
        self.kvm_run = SimpleNamespace(io=SimpleNamespace(port=0x10), exit_reason=abi.KVM_EXIT_IO)
        self._remaining = remaining
        self._reason = reason
        self._runs = 0

    def get_sregs(self) -> abi.kvm_sregs:
        return abi.kvm_sregs()

    def set_sregs(self, sregs: abi.kvm_sregs) -> None: ...

    def set_regs(self, regs: abi.kvm_regs) -> None: ...

    def get_regs(self) -> abi.kvm_regs:
        return abi.kvm_regs(rcx=0xABCD << 32 | self._remaining)  # 32 bits count

    def run(self) -> int:
        self._runs += 1
        if self._runs > 1:
            self.kvm_run.exit_reason = self._reason
            self.kvm_run.io.port = 0x11
        return int(self.kvm_run.exit_reason)


@pytest.mark.parametrize(
    ("remaining", "reason", "instructions"),
    [
        (0, abi.KVM_EXIT_IO, 20_000_000),
        (9_000_000, abi.KVM_EXIT_INTR, 2_000_000),
        (10_000_000, abi.KVM_EXIT_INTR, 0),
    ],
)
def test_the_speed_is_that_of_the_iterations_done_in_the_time_they_took(
    remaining: int, reason: int, instructions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration has two instructions; a loop that is interrupted has done only some."""
    times = iter([5.0, 5.25])
    monkeypatch.setattr(time, "thread_time", lambda: next(times))
    monkeypatch.setattr(probe, "_TIME_LIMIT_S", 0.0)
    speed, _ = probe._loop_speed(cast(Vcpu, VcpuOfALoop(remaining, reason)))
    assert speed == instructions / 0.25


def test_a_loop_that_ends_otherwise_has_no_speed() -> None:
    vcpu = VcpuOfALoop(0, abi.KVM_EXIT_SHUTDOWN)
    speed, end = probe._loop_speed(cast(Vcpu, vcpu))
    assert speed is None
    assert end.startswith("KVM_EXIT_SHUTDOWN")


def test_a_host_without_the_device_is_missing_kvm(tmp_path: Path) -> None:
    assert probe.probe(str(tmp_path / "kvm")).verdict is Verdict.MISSING


def test_a_device_other_than_kvm_is_unfit() -> None:
    assert probe.probe("/dev/null").verdict is Verdict.UNFIT


def test_a_device_without_permission_is_unreadable(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may open anything")
    device = tmp_path / "kvm"
    device.touch(mode=0)
    assert probe.probe(str(device)).verdict is Verdict.UNREADABLE


def test_probing_takes_under_a_second_and_restores_signals_and_descriptors() -> None:
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        handler = signal.getsignal(signal.SIGALRM)
        descriptors = sorted(os.listdir("/proc/self/fd"))
        begin = time.thread_time()
        first = probe.probe(KVM_DEVICE)
        assert time.thread_time() - begin < 1
        assert sorted(os.listdir("/proc/self/fd")) == descriptors
        assert signal.getsignal(signal.SIGALRM) is handler
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert probe.probe(KVM_DEVICE).verdict is first.verdict
    assert probe.probe_host_kvm() is probe.probe_host_kvm()
