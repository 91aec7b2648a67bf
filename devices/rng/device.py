# SPDX-License-Identifier: Apache-2.0
"""The entropy device (VIRTIO 1.2, section 5.4): fills buffers with random bytes.

The device has one queue, no feature bits and no configuration space (5.4.2 to 5.4.4). The driver
makes device-writable buffers available, and the device returns each filled with random bytes, at
most `MAX_FILL_BYTES` of them, whatever its length: the device MAY use less than the entire buffer
(5.4.6.2). So one notification costs a bounded amount of work.

With a rate limit the device has a credit of time, which grows with the clock up to one second; a
byte costs 1 / `bytes_per_s` of a second. A buffer that the credit does not cover stays in flight,
in order of arrival, and a timer wakes the device when it does. The device never fills a buffer in
part to save time: Linux's driver hangs when it has consumed a part of a short one (6.12.117,
copy_data in drivers/char/hw_random/virtio-rng.c). So at a low rate the credit grows beyond a second
while a buffer waits, up to the price of that buffer.

`entropy(count)` returns `count` bytes of a cryptographic generator, `os.urandom` unless given.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from devices.errors import BadPayload
from devices.ports import Timers, Tracer
from devices.state import Fields, Payload, Restore
from devices.timers import check_timer, save_timer
from devices.virtio.device import SavedDevice, VirtioDevice
from devices.virtio.queue import QueueSpec, check_in_flight, save_in_flight
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain

DEVICE_ID = 4
"""VIRTIO 1.2, 5.4.1."""

REQUEST_QUEUE = 0
"""Number of the only queue."""
QUEUE_SIZE = 256
"""Largest size of the queue, in buffers."""
MAX_FILL_BYTES = 4096
"""Most bytes with which one buffer is filled."""
_SECOND_NS = 1_000_000_000


class RngDevice(VirtioDevice):
    """Entropy device over guest memory `memory`.

    `bytes_per_s` limits the rate, 0 does not. The limit belongs to the device, not to its driver: a
    reset does not restore the credit.
    """

    def __init__(
        self,
        memory: GuestMemory,
        timers: Timers,
        tracer: Tracer,
        *,
        bytes_per_s: int = 0,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if bytes_per_s < 0:
            raise ValueError(f"a rate cannot be {bytes_per_s} bytes per second")
        super().__init__(
            device_id=DEVICE_ID,
            name="rng",
            queues=[QueueSpec("request", QUEUE_SIZE, max_readable_bytes=0)],
            memory=memory,
            tracer=tracer,
        )
        self.bytes_per_s = bytes_per_s
        self.supplied_bytes = 0
        """Random bytes supplied since the device was created."""
        self._entropy = entropy
        self._timers = timers
        self._timer = timers.timer(self._serve_waiting)
        self._waiting: deque[Chain] = deque()
        self._credit_ns = _SECOND_NS
        self._credited_at_ns = timers.now_ns()  # time of the last update of `_credit_ns`

    def serve(self, queue: int, chain: Chain) -> int | None:
        """Fill a buffer, or keep it until the rate limit allows that."""
        if chain.readable_bytes:
            # 5.4.6.1: the driver MUST NOT place device-readable buffers into the queue.
            raise BadPayload(f"a request has {chain.readable_bytes} device-readable bytes")
        if not chain.writable_bytes:
            raise BadPayload("a request has no room for a random byte")
        if not self.bytes_per_s:
            return self._fill(chain)
        self._accrue()
        if not self._waiting and self._price_ns(chain) <= self._credit_ns:
            return self._fill(chain)
        self._waiting.append(chain)
        if len(self._waiting) == 1:
            self._arm()
        return None

    def on_queue_reset(self, queue: int) -> None:
        """Drop the waiting buffers."""
        self._waiting.clear()
        self._timer.cancel()

    def on_memory_accessible(self) -> None:
        """Serve the waiting buffers whose timer expired while memory was not accessible."""
        if self._waiting and self._timer.remaining_ns is None:
            self._timer.arm(0)

    def save_own_state(self) -> Payload:
        """Return the credit, the timer and the waiting buffers."""
        return {
            "supplied_bytes": self.supplied_bytes,
            "credit_ns": self._credit_at(self._timers.now_ns()),
            "timer": save_timer(self._timer),
            "waiting": save_in_flight(*self._waiting),
        }

    def check_own_state(self, state: Fields, saved: SavedDevice) -> Restore:
        """As `VirtioDevice.check_own_state`; without a limit, buffers are filled at once."""
        supplied_bytes = state.counter("supplied_bytes")
        credit_ns = state.number("credit_ns", below=MAX_FILL_BYTES * _SECOND_NS + 1)
        restore_timer = check_timer(state.part("timer"), self._timer)
        ring = saved.queues[REQUEST_QUEUE].ring
        waiting = check_in_flight(state, "waiting", ring, at_most=QUEUE_SIZE)
        if not all(chain.writable_bytes for chain in waiting):
            raise state.error("waiting", "has a buffer without room for a random byte")

        def restore() -> None:
            self.supplied_bytes = supplied_bytes
            self._credit_ns, self._credited_at_ns = credit_ns, self._timers.now_ns()
            self._waiting = deque(waiting)
            restore_timer()
            if waiting and (self._timer.remaining_ns is None or not self.bytes_per_s):
                self._timer.arm(0)

        return restore

    def _fill(self, chain: Chain) -> int:
        """Write random bytes, charged to the credit; return their number."""
        count = min(chain.writable_bytes, MAX_FILL_BYTES)
        self.supplied_bytes += count
        if self.bytes_per_s:
            self._credit_ns -= self._price_ns(chain)
        return chain.write(self._entropy(count))

    def _serve_waiting(self) -> None:
        """Fill the waiting buffers that the credit covers; called by the timer."""
        if self.running and not self.live:
            return  # the driver has disabled bus mastering; see `on_memory_accessible`
        self._accrue()
        while self._waiting and self.running:
            chain = self._waiting[0]
            if self.bytes_per_s and self._price_ns(chain) > self._credit_ns:
                self._arm()
                return
            self._waiting.popleft()
            self.complete(REQUEST_QUEUE, chain, self._fill(chain))

    def _price_ns(self, chain: Chain) -> int:
        """Return the credit that filling `chain` costs."""
        count = min(chain.writable_bytes, MAX_FILL_BYTES)
        return -(-count * _SECOND_NS // self.bytes_per_s)

    def _accrue(self) -> None:
        """Update the credit."""
        now_ns = self._timers.now_ns()
        self._credit_ns, self._credited_at_ns = self._credit_at(now_ns), now_ns

    def _credit_at(self, now_ns: int) -> int:
        """Return the credit: at most a second, or the price of the first waiting buffer."""
        limit_ns = _SECOND_NS
        if self._waiting and self.bytes_per_s:
            limit_ns = max(limit_ns, self._price_ns(self._waiting[0]))
        return min(limit_ns, self._credit_ns + now_ns - self._credited_at_ns)

    def _arm(self) -> None:
        """Arm the timer for when the first waiting buffer can be filled."""
        self._timer.arm(max(0, self._price_ns(self._waiting[0]) - self._credit_ns))
