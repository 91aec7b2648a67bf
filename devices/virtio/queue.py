# SPDX-License-Identifier: Apache-2.0
"""The device's side of one virtqueue: the driver's configuration of it, and its live ring.

The driver fills in size and addresses through the transport and then enables the queue (VIRTIO
1.2, 4.1.5.1.3). Only once the whole device is live (DRIVER_OK, 2.1.2) does `activate` turn that
configuration into a native `SplitQueue`, which checks alignment and that every part lies in guest
RAM. Configuration is frozen while the queue is enabled: the driver MUST configure the other
fields first (4.1.4.3.2), so later writes are ignored and cannot move a ring under the device.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from devices.state import Fields, Payload
from devices.virtio import features
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain, RingError, SplitQueue

MAX_QUEUE_SIZE = 32768
"""2.7: the largest size of a split virtqueue."""


class Requests(Protocol):
    """Valid requests, taken from a queue together; `count` of `readable_bytes` bytes in all."""

    @property
    def count(self) -> int:
        """The number of requests, at least one."""

    @property
    def readable_bytes(self) -> int:
        """The device-readable bytes of all of them."""

    def push(self) -> bool:
        """Return their buffers to the driver, with nothing written.

        Return False once no other buffer is available, and the driver notifies of the next one.
        """


class RequestReader(Protocol):
    """Takes the next buffers of a queue, and decodes them."""

    def pop(
        self, queue: SplitQueue, max_readable_bytes: int, max_requests: int
    ) -> Requests | Chain | None:
        """Take the next requests; or a buffer that is none, as `SplitQueue.pop` does."""


class QueueSpec(NamedTuple):
    """The properties of one queue of a device type.

    `name` is for traces. `max_size` is the maximum of queue_size: a power of 2 up to 32768 (VIRTIO
    1.2, 2.7). A request with more than `max_readable_bytes` device-readable bytes is a bad payload,
    and is not copied. If the queue `is_stream`, the device-readable buffers carry one stream of
    bytes, and `VirtioDevice.serve_stream` takes several at once. With a `reader`, which decodes
    them, `VirtioDevice.serve_requests` takes several at once, and `serve` what is no valid request.
    """

    name: str
    max_size: int = 256
    max_readable_bytes: int = 4096
    is_stream: bool = False
    reader: RequestReader | None = None


class QueueCounters:
    """Counters of one queue since the device was created; a reset does not clear them."""

    def __init__(self) -> None:
        self.requests = 0
        """Buffers taken from the queue, bad ones included."""
        self.readable_bytes = 0
        """The device-readable bytes of those requests."""
        self.bad_payloads = 0
        """Buffers with a bad payload."""
        self.interrupts = 0
        """Used buffer notifications sent to the driver."""

    def save_state(self) -> Payload:
        """Return the values of all counters."""
        return {
            "requests": self.requests,
            "readable_bytes": self.readable_bytes,
            "bad_payloads": self.bad_payloads,
            "interrupts": self.interrupts,
        }

    @classmethod
    def from_state(cls, state: Fields) -> QueueCounters:
        """Return the saved counters. Raises StateError."""
        counters = cls()
        counters.requests = state.counter("requests")
        counters.readable_bytes = state.counter("readable_bytes")
        counters.bad_payloads = state.counter("bad_payloads")
        counters.interrupts = state.counter("interrupts")
        return counters


class DeviceQueue:
    """The driver's configuration of one queue and, while the device is live, its ring.

    `index` is the number of the queue, `spec` its properties in the device type. `size`, the
    addresses `desc_gpa`, `driver_gpa` and `device_gpa` of its three parts, and `enabled` are as the
    driver has written them. `ring` is None while the queue is not live. A device sets `stalled` to
    take no further buffers for now, and calls `VirtioDevice.resume_queue` later. Raises ValueError
    for a maximum size that is not a power of 2 up to 32768 (VIRTIO 1.2, 2.7).
    """

    def __init__(self, index: int, spec: QueueSpec) -> None:
        size = spec.max_size
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            limits = f"not a power of 2 up to {MAX_QUEUE_SIZE}"
            raise ValueError(f"{spec.name}: a queue of {size} entries, {limits}")
        self.index = index
        self.spec = spec
        self.counters = QueueCounters()
        """Not cleared by a reset."""
        self.reset()

    def reset(self) -> None:
        """Drop the driver's configuration; queue_size reads as its maximum again."""
        self.size = self.spec.max_size
        self.desc_gpa = 0
        self.driver_gpa = 0
        self.device_gpa = 0
        self.enabled = False
        self.stalled = False
        self.ring: SplitQueue | None = None

    def set_size(self, size: int) -> None:
        """Set queue_size if it is a power of 2 up to its maximum; else ignore the write."""
        if not self.enabled and 0 < size <= self.spec.max_size and size & (size - 1) == 0:
            self.size = size

    def set_addresses(
        self,
        *,
        desc_gpa: int | None = None,
        driver_gpa: int | None = None,
        device_gpa: int | None = None,
    ) -> None:
        """Set queue_desc, queue_driver or queue_device, if given."""
        if self.enabled:
            return
        self.desc_gpa = self.desc_gpa if desc_gpa is None else desc_gpa
        self.driver_gpa = self.driver_gpa if driver_gpa is None else driver_gpa
        self.device_gpa = self.device_gpa if device_gpa is None else device_gpa

    def activate(self, memory: GuestMemory, negotiated: int) -> None:
        """Make the ring live if the driver has enabled the queue; RingError if it is invalid."""
        if not self.enabled or self.ring is not None:
            return
        self.ring = SplitQueue(
            memory,
            self.size,
            self.desc_gpa,
            self.driver_gpa,
            self.device_gpa,
            event_idx=bool(negotiated & features.EVENT_IDX),
            indirect=bool(negotiated & features.INDIRECT_DESC),
        )

    def save_state(self) -> Payload:
        """Return the configuration, the indices of a live ring and the counters."""
        ring = self.ring
        return {
            "size": self.size,
            "desc_gpa": self.desc_gpa,
            "driver_gpa": self.driver_gpa,
            "device_gpa": self.device_gpa,
            "enabled": self.enabled,
            "indices": [] if ring is None else [ring.next_avail, ring.next_used],
            "counters": self.counters.save_state(),
        }

    @classmethod
    def from_state(
        cls, index: int, spec: QueueSpec, state: Fields, memory: GuestMemory, negotiated: int
    ) -> DeviceQueue:
        """Return the saved queue, live if it was live; StateError if the state is impossible."""
        queue = cls(index, spec)
        size = state.number("size")
        queue.set_size(size)
        if queue.size != size:
            raise state.error("size", f"cannot be {size}")
        queue.set_addresses(
            desc_gpa=state.number("desc_gpa"),
            driver_gpa=state.number("driver_gpa"),
            device_gpa=state.number("device_gpa"),
        )
        queue.enabled = state.flag("enabled")
        queue.counters = QueueCounters.from_state(state.part("counters"))
        indices = state.numbers("indices", at_most=2, below=1 << 16)
        if indices:
            queue._activate_at(indices, state, memory, negotiated)
        return queue

    def _activate_at(
        self, indices: list[int], state: Fields, memory: GuestMemory, negotiated: int
    ) -> None:
        try:
            self.activate(memory, negotiated)
        except RingError as error:
            raise state.error("indices", f"of no ring: {error}") from error
        if self.ring is None or len(indices) != 2:
            raise state.error("indices", "are not two, or of a queue that is not enabled")
        self.ring.next_avail, self.ring.next_used = indices


def save_in_flight(*chains: Chain | None) -> list[Payload]:
    """Return the state of the buffers in flight; `check_in_flight` reads it."""
    saved: list[Payload] = []
    for chain in chains:
        if chain is None:
            continue
        segments = chain.writable_segments
        saved.append(
            {
                "head": chain.head,
                "gpas": [gpa for gpa, _ in segments],
                "lengths": [length for _, length in segments],
            }
        )
    return saved


def check_in_flight(
    state: Fields, name: str, ring: SplitQueue | None, *, at_most: int
) -> list[Chain]:
    """Return the saved buffers in flight, in order; `ring` is None if the queue is not live."""
    chains: list[Chain] = []
    for saved in state.parts(name, at_most=at_most):
        head, gpas = saved.number("head", below=1 << 16), saved.numbers("gpas")
        lengths = saved.numbers("lengths", count=len(gpas), below=1 << 32)
        if ring is None:
            raise state.error(name, "is a buffer of a queue that is not live")
        if any(chain.head == head for chain in chains):
            raise state.error(name, f"has the buffer at {head} twice")
        try:
            chains.append(ring.restore_in_flight(head, zip(gpas, lengths, strict=True)))
        except RingError as error:
            raise state.error(name, f"is no buffer: {error}") from error
    return chains
