# SPDX-License-Identifier: Apache-2.0
"""Step: stop the guest at the next event of a chosen kind.

While Step is armed, the buffer of events calls back with every event of a chosen kind, on the
thread that emits it. The first that matches closes the gate of the vCPU threads and kicks them,
before its emitter continues. So a vCPU that emits it, by an access to a register, completes that
access and executes no further instruction. The event loop then pauses the machine as `stop` does,
and serves no queue until the guest is resumed: notifications stay pending.

Between the event and the stop, other vCPUs may execute for the microseconds that a kick takes. If
the event comes from the event loop, the device completes the call that it is in: at most
`BUFFERS_PER_CALL` buffers of one queue, or 64 of a stream or of valid requests of the balloon.

While Step is armed, KVM catches no notification, so that each is a register access at which the
vCPU stops. None is lost when KVM catches them again: a write is either one or the other, and both
leave the same eventfd readable.

The client that watches holds a lease: if it reads no events for `LEASE_TIMEOUT_S`, or its watch
ends, Step is disarmed, and a guest that Step has stopped runs again. `pause` stops the guest at
once, by the same lease. A client that sends `stop` meanwhile takes the pause over.

Threads: event loop, except `_event`, which any thread that emits events calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyvmm.machine.errors import VcpuNotStopped
from pyvmm.trace.kinds import KINDS
from pyvmm.trace.stream import make_event

if TYPE_CHECKING:
    from pyvmm.machine.run_state import EventName, RunState
    from pyvmm.trace.stream import TraceEvent
    from pyvmm.trace.tracer import EventTracer
    from pyvmm.trace.watch import EventWatch

LEASE_TIMEOUT_S = 10.0
"""Longest time without a read for which the guest stays stopped, or Step armed."""
LEASE_POLL_S = 0.5

_log = logging.getLogger(__name__)


class SteppedVm(Protocol):
    """The VM that is stopped, and its run state."""

    @property
    def status(self) -> RunState:
        """The run state of the guest."""

    @property
    def saving(self) -> bool:
        """True while a snapshot is taken."""

    def pause(self) -> None:
        """Stop the vCPUs of the running guest and announce STOP."""

    def resume(self) -> None:
        """Let the vCPUs of the paused guest run and announce RESUME."""

    def announce(self, name: EventName, data: Mapping[str, object]) -> None:
        """Send an event to all listeners."""


class SteppedMachine(Protocol):
    """The hardware of that VM."""

    @property
    def held(self) -> bool:
        """True from `hold` to `resume` or `release`."""

    def hold(self) -> None:
        """Let no vCPU enter the guest; called on any thread."""

    def hold_devices(self) -> None:
        """Serve no queue while the machine is held."""

    def release(self) -> None:
        """End the hold; a machine that is paused stays paused."""

    def catch_notifications(self, caught: bool) -> None:
        """Let KVM catch notifications, or make them register accesses."""


class StepRequest(NamedTuple):
    """The events at which to stop; an empty `device` or `queue` stands for any."""

    kinds: Collection[str]
    device: str = ""
    queue: str = ""
    notify_register: str = ""
    """With a device and a queue: the register that notifies it."""

    def matches(self, event: TraceEvent) -> bool:
        """Return whether to stop at `event`."""
        if event.kind not in self.kinds or self.device not in ("", event.device):
            return False
        if self.queue in ("", event.queue):
            return True
        table, register = event.fields.get("table"), event.fields.get("register")
        return (table, register) == (f"{self.device}.notify", self.notify_register)


class EventStep:
    """Stops the guest of `vm` at events of `tracer`, for the client of `watch`."""

    def __init__(
        self, vm: SteppedVm, machine: SteppedMachine, tracer: EventTracer, watch: EventWatch
    ) -> None:
        self._vm = vm
        self._machine = machine
        self._tracer = tracer
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._request: StepRequest | None = None
        self._paused_here = False
        self._poll: asyncio.TimerHandle | None = None
        watch.ended.add(self.end)

    def kinds(self) -> set[str]:
        """Return the kinds of events at which the guest can be stopped.

        These are the kinds of pyvmm, and a device's own that it has emitted already.
        """
        emitted = {make_event(0, 0, name, {}).kind for name in self._tracer.native.kind_names()}
        return emitted | {kind.name for kind in KINDS} - {"dropped"}  # which is not emitted

    def arm(self, request: StepRequest) -> None:
        """Stop at the next event that matches `request`; replaces an earlier request."""
        self._tracer.native.disarm()
        self._request = request
        self._machine.catch_notifications(False)
        self._tracer.native.arm(
            lambda name: name in request.kinds or name.rpartition(".")[2] in request.kinds,
            self._event,
        )
        self._poll_lease()

    def disarm(self) -> None:
        """Stop at no event; a guest that is stopped stays so."""
        self._request = None
        self._tracer.native.disarm()
        self._machine.catch_notifications(True)

    def pause(self) -> None:
        """Pause the guest, if it runs, until the lease ends. Raises `VcpuNotStopped`."""
        if self._vm.status == "running":
            self._vm.pause()
            self._paused_here = True
            self._poll_lease()

    def leave_paused(self) -> None:
        """Leave the guest paused when the lease ends: a client has sent `stop`."""
        self._paused_here = False

    def _event(self, seq: int, name: str, fields: dict[str, int | str]) -> None:
        """Stop the guest if the event matches; on the thread that emits it, with the GIL."""
        request = self._request
        event = make_event(seq, 0, name, fields)
        if request is None or not request.matches(event):
            return
        self._request = None
        self._tracer.native.disarm()
        self._machine.hold()
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the VM
            self._loop.call_soon_threadsafe(self._stopped, event)

    def _stopped(self, event: TraceEvent) -> None:
        if not self._machine.held:
            return  # another client has resumed the guest meanwhile
        self._machine.hold_devices()
        if self._request is None:
            self._machine.catch_notifications(True)
        if self._vm.status == "running":
            try:
                self._vm.pause()
            except VcpuNotStopped as error:
                _log.warning("the guest cannot be stopped at an event: %s", error)
                self._machine.release()
                return
            self._paused_here = True
        self._vm.announce(
            "X_TRACE_STEP",
            {"seq": event.seq, "kind": event.kind, "device": event.device, "queue": event.queue},
        )
        self._tracer.taker.hurry()
        self._poll_lease()

    def _poll_lease(self) -> None:
        """Look at the lease again soon, as long as there is one."""
        if self._poll is None and (self._request is not None or self._has_stopped):
            self._poll = self._loop.call_later(LEASE_POLL_S, self._check_lease)

    @property
    def _has_stopped(self) -> bool:
        """True while the guest is held at an event, or paused until the lease ends."""
        return self._machine.held or self._paused_here

    def _check_lease(self) -> None:
        self._poll = None
        idle_s = self._loop.time() - self._watch.last_read
        if self._watch.active and (self._watch.reading or idle_s < LEASE_TIMEOUT_S):
            self._poll_lease()
        else:
            self.end()

    def end(self) -> None:
        """Disarm, and let a guest run that Step has stopped, now or after a snapshot."""
        self.disarm()
        if not self._has_stopped or self._vm.status in ("shutdown", "guest-panicked"):
            return
        if self._vm.saving or self._vm.status == "finish-migrate":
            self._poll_lease()
            return
        paused_here, self._paused_here = self._paused_here, False
        if paused_here and self._vm.status == "paused":
            self._vm.resume()
        elif self._machine.held:
            self._machine.release()
