# SPDX-License-Identifier: Apache-2.0
"""For any sequence of a driver's actions, the device interrupts exactly when it must.

A state machine acts as a driver that initialises and resets the device or one queue, enables and
disables MSI-X, maps vectors, sends buffers and breaks rings. It computes the result that VIRTIO 1.2
prescribes: the vectors triggered, the ISR status, and the index of each used ring.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from devices.balloon.dialects import STANDARD
from devices.testing.balloon.driver import DEFLATE, INFLATE, BalloonDriver
from devices.testing.balloon.requests import pfn_array
from devices.testing.driver import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    NEEDS_RESET,
    NO_VECTOR,
    RING_RESET,
    VERSION_1,
)

ISR_QUEUE, ISR_CONFIG = 1, 2
CONFIG = "config"
QUEUES = (INFLATE, DEFLATE)
INTX_DISABLE = 1 << 10
VECTOR = st.sampled_from([0, 1, 2, NO_VECTOR])
SETTINGS = settings(max_examples=150, stateful_step_count=60, deadline=None)


class AnyDriver(RuleBasedStateMachine):
    """The driver; `isr`, `triggered`, `waiting` and `used` are the prescribed results."""

    @initialize()
    def probe(self) -> None:
        self.driver = BalloonDriver(STANDARD).probe()
        self.board = self.driver.board
        self.driver.enable_msix()
        self.msix = True
        self.intx_disabled = False
        self.isr = 0
        self.triggered: list[int] = []
        self.target = 0
        self._reset_model()

    def _reset_model(self) -> None:
        self.status = 0
        self.vectors: dict[object, int] = dict.fromkeys((CONFIG, *QUEUES), NO_VECTOR)
        self.waiting = dict.fromkeys(QUEUES, 0)
        self.used = dict.fromkeys(QUEUES, 0)
        self.broken: int | None = None
        self.driver.queues = {}

    @property
    def live(self) -> bool:
        return bool(self.status & DRIVER_OK) and not self.status & NEEDS_RESET

    def _expect_notification(self, event: object) -> None:
        """Record the interrupt that the device must send for `event`."""
        if event == CONFIG:
            self.isr |= ISR_CONFIG
        elif not self.msix:
            self.isr |= ISR_QUEUE
        if self.msix and self.vectors[event] != NO_VECTOR:
            self.triggered.append(self.vectors[event])

    # Initialisation and resets.

    @rule(reset=st.sampled_from([True, False, False, False]))
    def reset_device(self, reset: bool) -> None:
        if reset:
            self.driver.write_common("device_status", 0)
            self._reset_model()
            self.isr = 0

    @precondition(lambda self: self.status == 0)
    @rule(
        queues=st.sets(st.sampled_from(QUEUES)), vector=VECTOR, live=st.sampled_from([1, 1, 1, 0])
    )
    def start(self, queues: set[int], vector: int, live: int) -> None:
        self.driver.negotiate(VERSION_1 | RING_RESET)
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        self.isr = 0
        for queue in queues:
            self.set_up(queue, vector)
        if live:
            self.set_driver_ok()

    @precondition(lambda self: self.status & FEATURES_OK)
    @rule(queue=st.sampled_from(QUEUES), vector=VECTOR)
    def set_up(self, queue: int, vector: int) -> None:
        if queue not in self.driver.queues:
            self.driver.set_up_queue(queue, size=16, vector=vector)
            self.vectors[queue] = vector

    @precondition(lambda self: self.status & FEATURES_OK and not self.status & DRIVER_OK)
    @rule()
    def set_driver_ok(self) -> None:
        self.status |= DRIVER_OK
        self.driver.add_status(DRIVER_OK)

    @precondition(lambda self: self.status & FEATURES_OK)
    @rule(queue=st.sampled_from(QUEUES))
    def reset_queue(self, queue: int) -> None:
        self.driver.write_common("queue_select", queue)
        self.driver.write_common("queue_reset", 1)
        assert self.driver.read_common("queue_reset") == 0
        assert self.driver.read_common("queue_enable") == 0
        self.driver.queues.pop(queue, None)
        self.vectors[queue] = NO_VECTOR
        self.waiting[queue] = self.used[queue] = 0
        if self.broken == queue:
            self.broken = None

    # Interrupts.

    @rule(on=st.booleans())
    def enable_msix(self, on: bool) -> None:
        self.msix = on
        self.driver.write_pci(self.driver.msix_capability + 2, 2, on << 15)

    @rule(disabled=st.booleans())
    def disable_intx(self, disabled: bool) -> None:
        self.intx_disabled = disabled
        self.driver.write_pci(0x04, 2, 0b110 | INTX_DISABLE * disabled)

    @precondition(lambda self: self.status & FEATURES_OK)
    @rule(event=st.sampled_from([CONFIG, *QUEUES]), vector=VECTOR)
    def map_vector(self, event: str | int, vector: int) -> None:
        if event != CONFIG:
            self.driver.write_common("queue_select", int(event))
        self.driver.write_common(
            "config_msix_vector" if event == CONFIG else "queue_msix_vector", vector
        )
        self.vectors[event] = vector

    @rule()
    def read_isr(self) -> None:
        assert self.driver.read_isr() == self.isr
        self.isr = 0

    # Operation.

    @rule()
    def change_configuration(self) -> None:
        self.target = (self.target + 1) % 1000
        if self.live:
            self._expect_notification(CONFIG)
        self.board.balloon.set_target(self.target)
        assert self.driver.read_config(0) == self.target

    @precondition(lambda self: self.driver.queues)
    @rule(queue=st.sampled_from(QUEUES), count=st.integers(1, 4), serve=st.booleans())
    def send(self, queue: int, count: int, serve: bool) -> None:
        ring = self.driver.queues.get(queue)
        if ring is not None and ring.free_descriptors >= count and self.broken != queue:
            for _ in range(count):
                ring.add([pfn_array([7])])
            self.waiting[queue] += count
            self.driver.notify(queue)
        if serve:
            self.serve()

    @precondition(lambda self: self.live and self.driver.queues and self.broken is None)
    @rule(queue=st.sampled_from([INFLATE, DEFLATE, None, None, None]))
    def break_ring(self, queue: int | None) -> None:
        if queue is not None and queue in self.driver.queues:
            ring = self.driver.queues[queue]
            ring.set_avail_idx(ring.avail_idx + 1000)
            self.broken = queue
            self.driver.notify(queue)

    @rule()
    def serve(self) -> None:
        self._expect_service()
        self.board.serve()
        for ring in self.driver.queues.values():
            ring.take_used()

    def _expect_service(self) -> None:
        """Record the results of serving the pending notifications in order."""
        for queue in self.board.notifiers.notified:
            if not self.live or queue not in self.driver.queues:
                continue
            if queue == self.broken:
                self.status |= NEEDS_RESET
                self._expect_notification(CONFIG)
            elif self.waiting[queue]:
                self.used[queue] += self.waiting[queue]
                self.waiting[queue] = 0
                self._expect_notification(queue)

    # Invariants.

    @invariant()
    def interrupts_match_the_model(self) -> None:
        assert self.board.msi.triggered == self.triggered
        asserted = bool(self.isr) and not self.msix
        assert bool(self.driver.read_pci(0x06, 2) & 1 << 3) == asserted
        assert self.board.line.level == (asserted and not self.intx_disabled)
        assert self.board.transport.interrupts.isr_status == self.isr

    @invariant()
    def registers_match_the_model(self) -> None:
        assert self.driver.status == self.status
        for queue in QUEUES:
            self.driver.write_common("queue_select", queue)
            assert self.driver.read_common("queue_enable") == (queue in self.driver.queues)
            assert self.driver.read_common("queue_msix_vector") == self.vectors[queue]
        for queue, ring in self.driver.queues.items():
            assert ring.used_idx == self.used[queue] & 0xFFFF
        assert self.driver.read_common("config_msix_vector") == self.vectors[CONFIG]


@pytest.mark.conformance("2.1.2-1", "2.1.2-3", "2.4.1-2", "2.6.1.1.1-1", "2.6.1.1.1-2", "2.7.7.2-3")
@pytest.mark.conformance("4.1.4.5.1-2", "4.1.4.5.1-3", "4.1.4.5.1-4", "4.1.4.5.1-5")
@pytest.mark.conformance("4.1.5.1.2.1-6", "4.1.5.1.2.1-7", "4.1.5.3.1-1", "4.1.5.4.1-2")
def test_any_sequence_of_driver_actions() -> None:
    run_state_machine_as_test(AnyDriver, settings=SETTINGS)
