# SPDX-License-Identifier: Apache-2.0
"""Throttled vCPU threads stop for their share of the time, and delay no other thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import cast

import pytest

from pyvmm.machine.vcpu_thread import VcpuGate
from pyvmm.machine.vcpu_throttle import RUN_S, VcpuThrottle

VCPUS = 2
SOON_S = 5.0


class FakeVcpu(threading.Thread):
    """A vCPU thread that stays in the guest until it is kicked, and measures its time there."""

    def __init__(self, gate: VcpuGate) -> None:
        super().__init__(daemon=True)
        self._gate = gate
        self._kicked = threading.Event()
        self._stay = (0.0, 0.0)  # seconds inside before, start of the current stay; one value
        self.entries = 0

    def run(self) -> None:
        while self._gate.enter():
            ran_s, _ = self._stay
            self._stay = ran_s, time.monotonic()
            self.entries += 1
            self._kicked.wait()
            self._kicked.clear()
            self._stay = self.ran_s, 0.0
            self._gate.leave()

    @property
    def ran_s(self) -> float:
        before_s, since = self._stay
        return before_s + (time.monotonic() - since if since else 0.0)

    def kick(self) -> None:
        self._kicked.set()


class ThrottledGuest:
    """Two vCPUs, a gate and a throttle."""

    def __init__(self) -> None:
        self.gate = VcpuGate()
        self.vcpus = [FakeVcpu(self.gate) for _ in range(VCPUS)]
        self.throttle = VcpuThrottle(self.gate, self.kick)
        for vcpu in self.vcpus:
            vcpu.start()

    def kick(self) -> None:
        for vcpu in self.vcpus:
            vcpu.kick()

    def end(self) -> None:
        self.gate.stop()
        self.kick()
        for vcpu in self.vcpus:
            vcpu.join(SOON_S)
            assert not vcpu.is_alive()
        self.throttle.set(0)


@pytest.fixture
def guest() -> Iterator[ThrottledGuest]:
    guest = ThrottledGuest()
    yield guest
    guest.end()


def share(guest: ThrottledGuest, seconds: float) -> float:
    """Return the share of the time that a vCPU is in the guest."""
    before = [vcpu.ran_s for vcpu in guest.vcpus]
    begin = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - begin
    ran_s = [p.ran_s - old for p, old in zip(guest.vcpus, before, strict=True)]
    return max(ran_s) / took_s


def test_vcpus_stop_for_their_share_of_the_time(guest: ThrottledGuest) -> None:
    shares = {}
    for percentage in (0, 50, 90):
        guest.throttle.set(percentage)
        shares[percentage] = share(guest, 1.0)
    # On a busy host threads wake up late; only the order of the shares is certain.
    assert shares[0] > 0.9
    assert 0.2 < shares[50] < 0.7
    assert shares[90] < 0.3


class SlowGate:
    """A gate whose vCPUs take `LEAVE_S` to leave the guest; records when it is empty, and opens."""

    LEAVE_S = 0.05

    def __init__(self) -> None:
        self.empty_since: list[float] = []
        self.opened: list[float] = []

    def set_throttled(self, throttled: bool) -> None:
        if not throttled:
            self.opened.append(time.monotonic())

    def wait_until_empty(self, timeout_s: float) -> bool:
        assert timeout_s > self.LEAVE_S
        time.sleep(self.LEAVE_S)
        self.empty_since.append(time.monotonic())
        return True


def test_the_time_in_which_vcpus_leave_the_guest_counts_as_running() -> None:
    gate = SlowGate()
    throttle = VcpuThrottle(cast(VcpuGate, gate), lambda: None)
    throttle.set(50)
    deadline = time.monotonic() + SOON_S
    while len(gate.opened) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    throttle.set(0)
    assert len(gate.opened) >= 3
    for empty_since, opened in zip(gate.empty_since[:2], gate.opened[:2], strict=True):
        assert opened - empty_since >= SlowGate.LEAVE_S


def test_throttling_ends_at_once_and_leaves_no_thread(guest: ThrottledGuest) -> None:
    guest.throttle.set(99)
    assert guest.throttle.percentage == 99
    time.sleep(5 * RUN_S)  # all are stopped, for about a second
    begin = time.monotonic()
    guest.throttle.set(0)
    assert time.monotonic() - begin < 0.5
    assert guest.throttle.percentage == 0
    assert share(guest, 0.5) > 0.9
    assert not [t for t in threading.enumerate() if t.name == "vcpu-throttle"]
    guest.throttle.set(50)
    assert share(guest, 1.0) < 0.9, "throttled again"


def test_a_pause_neither_waits_for_the_throttle_nor_ends_with_it(guest: ThrottledGuest) -> None:
    guest.throttle.set(80)
    for _ in range(10):
        guest.gate.set_paused(True)
        guest.kick()
        assert guest.gate.wait_until_empty(SOON_S)
        entries = [vcpu.entries for vcpu in guest.vcpus]
        time.sleep(7 * RUN_S)  # longer than the throttle stops them
        assert [vcpu.entries for vcpu in guest.vcpus] == entries
        guest.gate.set_paused(False)
        time.sleep(RUN_S)
    guest.gate.set_paused(True)
    guest.kick()
    guest.throttle.set(0)
    time.sleep(RUN_S)
    entries = [vcpu.entries for vcpu in guest.vcpus]
    time.sleep(2 * RUN_S)
    assert [vcpu.entries for vcpu in guest.vcpus] == entries, "still paused"
    guest.gate.set_paused(False)


def test_throttled_vcpus_end_at_once(guest: ThrottledGuest) -> None:
    guest.throttle.set(99)
    time.sleep(5 * RUN_S)
    begin = time.monotonic()
    guest.end()
    assert time.monotonic() - begin < 0.5


@pytest.mark.parametrize("percentage", [-1, 100])
def test_percentages_out_of_range_are_refused(guest: ThrottledGuest, percentage: int) -> None:
    with pytest.raises(ValueError, match="cannot be throttled"):
        guest.throttle.set(percentage)
