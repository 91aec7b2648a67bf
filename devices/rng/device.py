# SPDX-License-Identifier: Apache-2.0
"""The entropy device (VIRTIO 1.2, section 5.4): buffers come back filled with random bytes.

The device has one queue, no feature bits and no configuration space (5.4.2 to 5.4.4). The driver
makes device-writable buffers available, and each returns with at least one random byte, at most
`MAX_FILL_BYTES` of them, whatever its length: the device MAY use less than the entire buffer
(5.4.6.2). So one notification costs a bounded amount of work.

With a rate limit the device has a credit of time, which grows with the clock up to one second and
of which each byte costs its share. A buffer that the credit does not cover stays in flight, in the
order of arrival, and a timer wakes the device when it does. A short credit is not spent on a single
byte: a buffer waits until it can be filled, or for a tenth of a second's worth of bytes.

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
QUEUE_SIZE = 256
MAX_FILL_BYTES = 64 * 1024
_SECOND_NS = 1_000_000_000
_RETRY_NS = _SECOND_NS // 10


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
        """Random bytes supplied since the device was made."""
        self._entropy = entropy
        self._timers = timers
        self._timer = timers.timer(self._serve_waiting)
        self._waiting: deque[Chain] = deque()
        self._credit_ns = _SECOND_NS
        self._credited_at_ns = timers.now_ns()  # up to when `_credit_ns` is

    def serve(self, queue: int, chain: Chain) -> int | None:
        """Fill a buffer, or keep it until the rate limit allows that."""
        if chain.readable_bytes:
            # 5.4.6.1: the driver MUST NOT place device-readable buffers into the queue.
            raise BadPayload(f"a request has {chain.readable_bytes} device-readable bytes")
        if not chain.writable_bytes:
            raise BadPayload("a request has no room for a random byte")
        if not self.bytes_per_s:
            return self._fill(chain, MAX_FILL_BYTES)
        if not self._waiting and (at_most := self._affordable_bytes(chain)):
            return self._fill(chain, at_most)
        self._waiting.append(chain)
        if len(self._waiting) == 1:
            self._arm()
        return None

    def on_queue_reset(self, queue: int) -> None:
        """Drop the waiting buffers."""
        self._waiting.clear()
        self._timer.cancel()

    def save_own_state(self) -> Payload:
        """Return the credit, the timer and the waiting buffers."""
        self._accrue()
        return {
            "supplied_bytes": self.supplied_bytes,
            "credit_ns": self._credit_ns,
            "timer": save_timer(self._timer),
            "waiting": save_in_flight(*self._waiting),
        }

    def check_own_state(self, state: Fields, saved: SavedDevice) -> Restore:
        """As `VirtioDevice.check_own_state`. Without a limit here, waiting buffers go at once."""
        supplied_bytes = state.counter("supplied_bytes")
        credit_ns = state.number("credit_ns", below=_SECOND_NS + 1)
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
            if waiting and self._timer.remaining_ns is None:
                self._timer.arm(0)

        return restore

    def _fill(self, chain: Chain, at_most: int) -> int:
        """Write random bytes, at most `at_most` of them; return how many."""
        count = min(chain.writable_bytes, at_most, MAX_FILL_BYTES)
        self.supplied_bytes += count
        if self.bytes_per_s:
            self._credit_ns -= count * _SECOND_NS // self.bytes_per_s
        return chain.write(self._entropy(count))

    def _serve_waiting(self) -> None:
        """Fill waiting buffers as far as the credit goes; called by the timer."""
        if self.running and not self.live:
            self._timer.arm(_RETRY_NS)  # the driver has disabled bus mastering
            return
        while self._waiting and self.running:
            chain = self._waiting[0]
            at_most = self._affordable_bytes(chain) if self.bytes_per_s else MAX_FILL_BYTES
            if not at_most:
                self._arm()
                return
            self._waiting.popleft()
            self.complete(REQUEST_QUEUE, chain, self._fill(chain, at_most))

    def _affordable_bytes(self, chain: Chain) -> int:
        """Return how many bytes of `chain` may be filled now; 0 until it is worth returning."""
        self._accrue()
        affordable = self._credit_ns * self.bytes_per_s // _SECOND_NS
        return affordable if affordable >= self._worthwhile_bytes(chain) else 0

    def _worthwhile_bytes(self, chain: Chain) -> int:
        """Return the fewest bytes to return `chain` with: all of it, or a tenth of a second's."""
        return min(chain.writable_bytes, max(1, self.bytes_per_s // 10))

    def _accrue(self) -> None:
        """Bring the credit up to date; it never exceeds one second."""
        now_ns = self._timers.now_ns()
        self._credit_ns = min(_SECOND_NS, self._credit_ns + now_ns - self._credited_at_ns)
        self._credited_at_ns = now_ns

    def _arm(self) -> None:
        """Wake up when the first waiting buffer can be returned."""
        price_ns = -(-self._worthwhile_bytes(self._waiting[0]) * _SECOND_NS // self.bytes_per_s)
        self._timer.arm(max(0, price_ns - self._credit_ns))
