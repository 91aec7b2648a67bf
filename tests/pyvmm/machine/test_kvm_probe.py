# SPDX-License-Identifier: Apache-2.0
"""The KVM probe: verdicts on measurements, and a real run that restores all state."""

import os
import signal
import time
from pathlib import Path

import pytest

from pyvmm.machine import kvm_probe as probe
from pyvmm.machine.kvm_probe import MIN_RING0_INSTRUCTIONS_PER_SECOND, Verdict

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
        first = probe.probe(probe.KVM_DEVICE)
        assert time.thread_time() - begin < 1
        assert sorted(os.listdir("/proc/self/fd")) == descriptors
        assert signal.getsignal(signal.SIGALRM) is handler
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert probe.probe(probe.KVM_DEVICE).verdict is first.verdict
    assert probe.probe_host_kvm() is probe.probe_host_kvm()
