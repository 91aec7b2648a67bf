# SPDX-License-Identifier: Apache-2.0
"""The core of a virtio device, independent of its type and transport.

Implements the device status, feature negotiation, the queues and the configuration generation
(VIRTIO 1.2, sections 2.1 to 2.6). A subclass adds the configuration space and the meaning of a
buffer. This is also the only place that defines the policy on bad guest input:

* a broken ring or descriptor chain (`RingError`): DEVICE_NEEDS_RESET, a configuration change
  notification once DRIVER_OK (2.1.2), and no access to any queue until the driver resets the
  device;
* a bad payload (`BadPayload`): the buffer is returned with length 0 so that the guest does not hang
  (unless `on_bad_payload` keeps it in flight), counted, and traced at a rate that falls as the
  count grows.

Work per call is bounded: `process_queue` serves a few buffers, interrupts at most once, and returns
whether to call it again.

Nothing here locks or starts threads. The owner of the device holds the device lock around every
call of the device and of its transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from devices.errors import BadPayload
from devices.listeners import Listeners
from devices.ports import Tracer
from devices.registers import RegisterTable
from devices.state import Fields, Payload, Restore
from devices.virtio import features
from devices.virtio.queue import DeviceQueue, QueueSpec, Requests
from devices.virtio.status import Status, is_running, step
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain, RingError, SplitQueue

BUFFERS_PER_CALL = 16
BYTES_PER_CALL = 64 * 1024
"""Limits of one call of `process_queue`: the number of buffers, and the bytes to read, write or
discard after which it takes no further buffer. So no guest can occupy the caller's thread."""
REQUESTS_PER_CALL = 64
"""The limit for requests that a reader has decoded, which cost less than other buffers."""
REQUESTS_PER_BUFFER = REQUESTS_PER_CALL // BUFFERS_PER_CALL
STREAM_BUFFERS_PER_CALL = 64
"""The limit for a queue that is a stream, beside its `QueueSpec.max_readable_bytes`."""


class SavedDevice(NamedTuple):
    """The checked values of a saved state that all device types have (`devices.virtio.saved`).

    `status`, the features `accepted`, the `queues` with their rings, the configuration `generation`
    and the count of `config_notifications`.
    """

    status: Status
    accepted: int
    queues: tuple[DeviceQueue, ...]
    generation: int
    config_notifications: int


class GuestNotifier(Protocol):
    """The guest notifier of a transport: sends notifications to the driver (VIRTIO 1.2, 2.3)."""

    @property
    def memory_accessible(self) -> bool:
        """True while the driver lets the device access memory."""

    def notify_used(self, queue: int) -> None:
        """Send a used buffer notification of `queue`."""

    def notify_config(self) -> None:
        """Send a configuration change notification; also for DEVICE_NEEDS_RESET."""


class VirtioDevice(ABC):
    """A device of type `device_id` (VIRTIO 1.2, section 5) with its queues in `memory`.

    A subclass implements `serve`, and overrides other methods as its device needs them:

        class Echo(VirtioDevice):
            def __init__(self, memory: GuestMemory, tracer: Tracer) -> None:
                queues = [QueueSpec("echo")]
                super().__init__(
                    device_id=63, name="echo", queues=queues, memory=memory, tracer=tracer
                )

            def serve(self, queue: int, chain: Chain) -> int:
                return chain.write(chain.readable[: chain.writable_bytes])

    `name` is unique among the devices of a machine. `offered` are the feature bits of the device
    type, `feature_names` their names by bit mask. `config` is the device-specific configuration
    space; a subclass that changes a value in it calls `config_changed`. Without `config` the device
    has none. `accepted` are the features that the driver has accepted, `status` is the status
    field; `queues` are all queues by number, and `config_notifications` counts the configuration
    change notifications sent.
    """

    def __init__(
        self,
        *,
        device_id: int,
        name: str,
        queues: Sequence[QueueSpec],
        memory: GuestMemory,
        tracer: Tracer,
        offered: int = 0,
        feature_names: Mapping[int, str] = MappingProxyType({}),
        config: RegisterTable | None = None,
    ) -> None:
        self.device_id = device_id
        self.name = name
        self.offered = offered | features.TRANSPORT
        self.feature_names = feature_names
        self.queues = tuple(DeviceQueue(index, spec) for index, spec in enumerate(queues))
        self.config = config or RegisterTable(f"{name}.config", [])
        self.config_notifications = 0
        self.queue_ready: Listeners[int] = Listeners()
        """Called with a queue to serve soon although the driver has not notified it."""
        self.memory = memory
        self._tracer = tracer
        self._guest_notifier: GuestNotifier | None = None
        self._traced: dict[str, int] = {}
        self._generation = 0
        self._config_changed = False
        self.accepted = 0
        self.running = False
        """True while queues may be used; cached because every notification checks it."""
        self._set_status(Status.RESET)

    @property
    def live(self) -> bool:
        """True while the rings may be accessed: running, with access to memory."""
        return self.running and (
            self._guest_notifier is None or self._guest_notifier.memory_accessible
        )

    # Provided by a device type.

    @abstractmethod
    def serve(self, queue: int, chain: Chain) -> int | None:
        """Act on one buffer of `queue`, whose device-readable bytes are all in `chain.readable`.

        Return the number of bytes written to the buffer, which is then returned to the driver, or
        None to keep the buffer in flight until `complete`. Raise BadPayload, before any effect, if
        the request is invalid.
        """

    def serve_stream(self, queue: int, chains: list[Chain]) -> int:
        """Act on buffers of a `queue` that is a stream; `ChainReader` reads them.

        They are device-readable only, with at most the queue's `max_readable_bytes` together.
        Return how many are to be returned to the driver. If these are not all, the queue has been
        stalled; the next buffer stays in flight until `complete`, and those after it are taken
        again later. Raise BadPayload, before any effect, if all are invalid.
        """
        raise NotImplementedError(f"{self.name} has no streams")

    def serve_requests(self, queue: int, requests: Requests) -> None:
        """Act on valid requests of a `queue` with a reader, which are then returned to the driver.

        There is one at a time while events are watched.
        """
        raise NotImplementedError(f"{self.name} has no reader")

    def on_bad_payload(self, queue: int, chain: Chain, error: BadPayload) -> int | None:
        """Decide what happens to a buffer of `queue` with a bad payload; return as `serve` does.

        `error` is the exception of `serve`, or states that the request is too long. By default the
        buffer is returned with length 0; a device type may keep it in flight.
        """
        return 0

    def has_queue(self, index: int) -> bool:
        """Return whether queue `index` exists; some may exist only with their features."""
        return index < len(self.queues)

    def feature_refusal(self, accepted: int) -> str | None:
        """Return why the driver's choice of features is refused, or None (2.2.2, 3.1.1)."""
        return features.refusal(self.offered, accepted)

    def on_reset(self) -> None:
        """Drop all state that the device type keeps for its driver, buffers in flight included.

        By default the buffers of each queue are dropped by `on_queue_reset`.
        """
        for queue in self.queues:
            self.on_queue_reset(queue.index)

    def on_queue_reset(self, queue: int) -> None:  # noqa: B027 (nothing to drop by default)
        """Drop the buffers of `queue` in flight: the driver has reclaimed them."""

    def on_memory_accessible(self) -> None:  # noqa: B027 (few devices have such work)
        """Resume work that had to wait: the driver lets the device access memory again.

        The transport notifies every live queue as well, so only a device that completes buffers on
        its own needs this. Called on any thread, so it does no work itself, but arms a timer.
        """

    def compatibility_key(self) -> Mapping[str, str]:
        """Return further values, by name, that a saved device and this one must have in common."""
        return {}

    def save_own_state(self) -> Payload:
        """Return the state of the device type beyond its configuration space and queues."""
        return {}

    def check_own_state(self, state: Fields, saved: SavedDevice) -> Restore:
        """Check the result of `save_own_state`; `saved` is the checked rest of the device."""
        return lambda: None

    # Called by the transport.

    def connect(self, guest_notifier: GuestNotifier) -> None:
        """Send notifications through `guest_notifier` from now on."""
        self._guest_notifier = guest_notifier

    def read_config(self, offset: int, size: int) -> int:
        """Read the configuration space for the driver.

        VIRTIO 1.2, 4.1.4.3.1: the generation MUST differ after the driver has read a value which
        changed since its last read. A count of reads, unlike one of changes, cannot wrap unnoticed.
        """
        if self._config_changed:
            self._config_changed = False
            self._generation = (self._generation + 1) & 0xFF
        return self.config.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write the configuration space for the driver, which then reads another version (2.5)."""
        self._config_changed = True
        self.config.write(offset, size, value)

    @property
    def config_generation(self) -> int:
        """8-bit configuration atomicity value (VIRTIO 1.2, 2.5)."""
        return self._generation

    def accept_features(self, shift: int, bits: int) -> None:
        """Set the driver's features `shift` to `shift` + 31; ignored once FEATURES_OK is set."""
        if self.status & (Status.FEATURES_OK | Status.FAILED):
            self._trace("features_too_late", bits=bits)
            return
        self.accepted = self.accepted & ~(0xFFFF_FFFF << shift) | bits << shift

    def write_status(self, value: int) -> None:
        """Write the status field; 0 resets. A refused change leaves the field unchanged."""
        after = step(self.status, value)
        if after is None:
            self._trace("status_refused", status=int(self.status), written=value)
        elif after == Status.RESET:
            self.reset()
        elif after & ~self.status & Status.FEATURES_OK and (
            why := self.feature_refusal(self.accepted)
        ):
            accepted = features.names(self.accepted, self.feature_names)
            self._trace("features_refused", why=why, accepted=accepted)
        else:
            if self._tracer.watched and after != self.status:
                self._trace_status(after)
            started = after & ~self.status & Status.DRIVER_OK
            self._set_status(after)
            if started:
                self._activate()

    def enable_queue(self, index: int) -> None:
        """Enable a queue; its ring becomes live now or with DRIVER_OK."""
        self.queues[index].enabled = True
        if self.running:
            self._activate()

    def reset(self) -> None:
        """Reset the device to its initial state (VIRTIO 1.2, 2.1.2 and 2.4.1)."""
        if self._tracer.watched:
            self._trace_status(Status.RESET)
        self._set_status(Status.RESET)
        self.accepted = 0
        for queue in self.queues:
            queue.reset()
        self.on_reset()
        self._config_changed = True  # the driver's values are lost

    def reset_queue(self, index: int) -> None:
        """Reset one queue to its initial state (VIRTIO 1.2, 2.6.1)."""
        if self._tracer.watched:
            self._tracer.event(f"{self.name}.queue_reset", queue=self.queues[index].spec.name)
        self.queues[index].reset()
        self.on_queue_reset(index)

    def process_queue(self, index: int) -> bool:
        """Serve buffers of one queue; return True if there may be more, so call again.

        May be called at any time: a queue that is not live has no buffers.
        """
        queue = self.queues[index]
        ring = queue.ring
        if ring is None or not self.running:
            return False
        try:
            if queue.spec.is_stream:
                return self._drain_stream(queue, ring)
            return self._drain(queue, ring)
        except RingError as error:
            # 2.7.7.2: buffers used before the ring broke MUST still be notified.
            self._notify_used(queue, ring)
            self._break(queue, error)
            return False

    def apply_state(self, saved: SavedDevice, *further: Restore) -> None:
        """Apply a saved state (`devices.virtio.saved`); the driver is not notified meanwhile."""
        self._set_status(Status.RESET)
        self.accepted = saved.accepted
        self.queues = saved.queues
        self.config_notifications = saved.config_notifications
        self._generation = saved.generation
        for restore in further:
            restore()
        self._set_status(saved.status)
        for queue in self.queues:
            self._trace_ring(queue)

    def repeat_notifications(self) -> None:
        """Notify the driver of everything; the last step of a restore."""
        for queue in self.queues if self.live else ():
            if queue.ring is not None:
                self._notify_used(queue, queue.ring)
        self._config_changed = True
        if self.status & Status.DRIVER_OK:
            self._notify_config()

    # Called by a device type.

    def config_changed(self) -> None:
        """Start a new generation and notify the driver after a change of the configuration."""
        self._config_changed = True
        if self.running:
            self._notify_config()

    def resume_queue(self, queue: int) -> None:
        """Take buffers of a stalled queue again; it is served soon."""
        self.queues[queue].stalled = False
        self.queue_ready(queue)

    def complete(self, queue: int, chain: Chain, written: int = 0) -> None:
        """Return a buffer in flight to the driver, with `written` bytes written.

        Does nothing while the device is not `live`: after a reset no buffer is in flight. A driver
        that disables bus mastering keeps its buffers in flight, so a device that completes them on
        its own, such as by a timer, checks `live` first and resumes in `on_memory_accessible`.
        """
        ring = self.queues[queue].ring
        if ring is None or not self.live:
            return
        ring.push(chain, written)
        self._notify_used(self.queues[queue], ring)

    def _set_status(self, status: Status) -> None:
        self.status = status
        self.running = is_running(status)

    def _activate(self) -> None:
        for queue in self.queues:
            if queue.ring is not None:
                continue
            try:
                queue.activate(self.memory, self.accepted)
            except RingError as error:
                self._break(queue, error)
                return
            self._trace_ring(queue)

    def _drain(self, queue: DeviceQueue, ring: SplitQueue) -> bool:
        spec = queue.spec
        ring.disable_notifications()
        more, used, served, total_bytes = True, False, 0, 0
        while served < REQUESTS_PER_CALL and total_bytes < BYTES_PER_CALL:
            if queue.stalled:
                more = False
                break
            if spec.reader is None:
                taken: Requests | Chain | None = ring.pop(spec.max_readable_bytes)
            else:
                most = 1 if self._tracer.watched else REQUESTS_PER_CALL - served
                taken = spec.reader.pop(ring, spec.max_readable_bytes, most)
            if taken is None:
                if not ring.enable_notifications():
                    more = False
                    break
                served += REQUESTS_PER_BUFFER
            elif isinstance(taken, Chain):
                used |= self._serve(queue, ring, taken)
                served += REQUESTS_PER_BUFFER
                total_bytes += len(taken.readable) + taken.writable_bytes
            else:
                queue.counters.requests += taken.count
                queue.counters.readable_bytes += taken.readable_bytes
                self.serve_requests(queue.index, taken)
                used = True
                served += taken.count
                total_bytes += taken.readable_bytes
                if not taken.push():
                    more = False
                    break
        if used:
            self._notify_used(queue, ring)
        return more

    def _drain_stream(self, queue: DeviceQueue, ring: SplitQueue) -> bool:
        if queue.stalled:
            return False
        ring.disable_notifications()
        chains = ring.pop_batch(STREAM_BUFFERS_PER_CALL, queue.spec.max_readable_bytes)
        if not chains:  # there is no buffer, or one that is refused
            return self._drain(queue, ring)
        returned = self._serve_stream(queue, chains)
        ring.push_batch(chains[:returned])
        ring.rewind(max(len(chains) - returned - 1, 0))
        self._notify_used(queue, ring)
        return not queue.stalled and ring.enable_notifications()

    def _serve_stream(self, queue: DeviceQueue, chains: list[Chain]) -> int:
        """Serve buffers of a stream; return how many are to be returned to the driver."""
        try:
            returned = self.serve_stream(queue.index, chains)
        except BadPayload as error:
            returned = len(chains)
            queue.counters.bad_payloads += returned
            self._trace("bad_payload", queue=queue.spec.name, why=str(error))
        taken = chains[: returned + 1]
        queue.counters.requests += len(taken)
        queue.counters.readable_bytes += sum(chain.readable_bytes for chain in taken)
        return returned

    def _serve(self, queue: DeviceQueue, ring: SplitQueue, chain: Chain) -> bool:
        """Serve one buffer; return whether it was returned to the driver."""
        queue.counters.requests += 1
        queue.counters.readable_bytes += chain.readable_bytes
        try:
            if chain.readable_bytes > len(chain.readable):
                raise BadPayload(f"request of {chain.readable_bytes} bytes is too long")
            written = self.serve(queue.index, chain)
        except BadPayload as error:
            queue.counters.bad_payloads += 1
            self._trace("bad_payload", queue=queue.spec.name, why=str(error))
            written = self.on_bad_payload(queue.index, chain, error)
        if written is not None:
            ring.push(chain, written)
        return written is not None

    def _break(self, queue: DeviceQueue, error: RingError) -> None:
        """Set DEVICE_NEEDS_RESET, then notify the driver (VIRTIO 1.2, 2.1.2).

        Rings are accessed after DRIVER_OK only, so the driver can be notified.
        """
        self._trace("needs_reset", queue=queue.spec.name, why=str(error))
        self._set_status(self.status | Status.DEVICE_NEEDS_RESET)
        self._notify_config()

    def _notify_used(self, queue: DeviceQueue, ring: SplitQueue) -> None:
        if ring.should_interrupt() and self._guest_notifier is not None:
            queue.counters.interrupts += 1
            self._guest_notifier.notify_used(queue.index)

    def _notify_config(self) -> None:
        if self._guest_notifier is not None:
            self.config_notifications += 1
            self._guest_notifier.notify_config()

    def _trace_status(self, after: Status) -> None:
        """Emit the event of a new status, and that of the features with FEATURES_OK."""
        if after & ~self.status & Status.FEATURES_OK:
            offered, accepted = (
                features.names(mask, self.feature_names) for mask in (self.offered, self.accepted)
            )
            self._tracer.event(
                f"{self.name}.features",
                offered=self.offered,
                accepted=self.accepted,
                offered_names=offered,
                accepted_names=accepted,
            )
        names = "|".join(bit.name or "" for bit in Status if bit & after) or "RESET"
        self._tracer.event(
            f"{self.name}.status", before=int(self.status), status=int(after), names=names
        )

    def _trace_ring(self, queue: DeviceQueue) -> None:
        """Emit events of the ring of `queue` from now on, and the first of them."""
        ring = queue.ring
        if ring is None:
            return
        if self._tracer.native is not None:
            ring.trace(self._tracer.native, self.name, queue.spec.name)
        if self._tracer.watched:
            self._tracer.event(
                f"{self.name}.queue_live",
                queue=queue.spec.name,
                index=queue.index,
                size=queue.size,
                desc_gpa=queue.desc_gpa,
                driver_gpa=queue.driver_gpa,
                device_gpa=queue.device_gpa,
                event_idx=int(ring.event_idx),
                indirect=int(ring.indirect),
            )

    def _trace(self, event: str, **fields: int | str) -> None:
        """Trace the 1st, 2nd, 4th, 8th ... event of a name, so that no guest can fill a log."""
        count = self._traced[event] = self._traced.get(event, 0) + 1
        if count & (count - 1) == 0:
            self._tracer.event(f"{self.name}.{event}", count=count, **fields)
