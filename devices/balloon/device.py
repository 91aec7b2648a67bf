# SPDX-License-Identifier: Apache-2.0
"""The traditional memory balloon device (VIRTIO 1.2, section 5.5).

The device is its configuration space and one handler for each queue: `page_queues` (inflate and
deflate), `stats`, and so on. Which queues there are, and their numbers, is the dialect's to say.

One inflate, top to bottom: `set_target` raises `num_pages` and notifies the driver; the driver puts
a request on the inflate queue; `serve` passes it to `InflateQueue`, which has the dialect decode it
to `PageRuns`, checks that every page is RAM, keeps whole host pages and has the RAM discard them;
only then does the base class return the buffer, because the used entry is the promise that the
memory is gone. The driver then writes `actual`.

`actual` is whatever the guest wrote. Nothing is computed from it that is not first limited to RAM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from devices.balloon.config import config_space
from devices.balloon.dialects import Dialect, GiveBack, Role
from devices.balloon.misc import MiscQueue
from devices.balloon.page_queues import DeflateQueue, InflateQueue
from devices.balloon.stats import MAX_STATS_BYTES, StatsQueue
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.virtio.device import VirtioDevice
from devices.virtio.queue import QueueSpec
from pyvmm_native.ring import Chain

DEVICE_ID = 5
"""VIRTIO 1.2, 5.5.1."""

QUEUE_SIZE = 128
"""A bitmap request takes up to 33 descriptors; a driver has one or a few requests under way."""


class QueueHandler(Protocol):
    """What one queue of the balloon does; made once, whether or not its feature is accepted."""

    def serve(self, chain: Chain) -> int | None:
        """As `VirtioDevice.serve`; a buffer that was kept goes back with its `complete`."""

    def reset(self) -> None:
        """The device was reset: no buffer kept so far exists any longer."""


@dataclass(frozen=True)
class Traffic:
    """What went over one queue since the device was made."""

    requests: int
    """Buffers taken from the queue, bad ones included."""
    pages: int
    """4 KiB pages named by good requests."""
    bytes: int
    """Length of all requests together, headers included."""
    bad_payloads: int
    """Buffers returned with length 0 because their contents made no sense."""


@dataclass(frozen=True)
class BalloonCounters:
    """A snapshot of what the balloon has done since it was made."""

    inflate: Traffic
    deflate: Traffic
    discarded_bytes: int
    """Host memory given back, in bytes; less than the pages inflated where host pages are larger
    than 4 KiB."""
    interrupts: int
    """Notifications sent to the driver: used buffers and configuration changes."""


class BalloonDevice(VirtioDevice):
    """Balloon speaking `dialect` over guest memory `ram`.

    `on_actual(pages)` is called when the driver reports a new balloon size, in 4 KiB pages and
    limited to RAM. `offered` are the feature bits the driver may choose from, some of what the
    dialect knows; without it the dialect's default.
    """

    def __init__(
        self,
        dialect: Dialect,
        ram: GuestRam,
        tracer: Tracer,
        on_actual: Callable[[int], None],
        *,
        offered: int | None = None,
    ) -> None:
        offered = dialect.features.default if offered is None else offered
        super().__init__(
            device_id=DEVICE_ID,
            name="balloon",
            offered=offered,
            feature_names=dialect.features.names,
            queues=[_queue_spec(role, dialect) for role in dialect.roles(offered)],
            config=config_space(self._actual_written, tracer),
            memory=ram.memory,
            tracer=tracer,
        )
        self.dialect = dialect
        self._ram = ram
        self._on_actual = on_actual
        self._inflate = InflateQueue(dialect, ram, tracer)
        self._deflate = DeflateQueue(dialect, ram, tracer)
        self.misc = MiscQueue(ram, self._give_back(Role.MISC), tracer)
        self.stats = StatsQueue(self._give_back(Role.STATS))
        self._handlers: dict[Role, QueueHandler] = {
            Role.INFLATE: self._inflate,
            Role.DEFLATE: self._deflate,
            Role.STATS: self.stats,
            Role.MISC: self.misc,
        }

    @property
    def num_pages(self) -> int:
        """Pages the device wants in the balloon."""
        return self.config["num_pages"]

    @property
    def actual(self) -> int:
        """Pages the driver says are in the balloon, at most all of RAM."""
        return min(self.config["actual"], self._ram.pages.pages)

    def set_target(self, num_pages: int) -> None:
        """Ask the driver for a balloon of `num_pages` 4 KiB pages (VIRTIO 1.2, 5.5.6).

        ValueError if that is negative or more than RAM has.
        """
        if not 0 <= num_pages <= self._ram.pages.pages:
            raise ValueError(f"{num_pages} pages asked of {self._ram.pages.pages}")
        self.config["num_pages"] = num_pages
        self.config_changed()

    def has_live(self, role: Role) -> bool:
        """Whether a driver runs the device and accepted the queue of `role`."""
        return self.running and role in self.dialect.roles(self.accepted)

    def ask_for_stats(self) -> bool:
        """Ask the driver for fresh statistics, which go to `stats.on_report`; False if one cannot.

        That is so while no driver runs, without STATS_VQ, or as long as a question is open.
        """
        return self.running and self.stats.ask()

    @property
    def counters(self) -> BalloonCounters:
        """Snapshot of all counters."""
        used = sum(queue.counters.interrupts for queue in self.queues)
        return BalloonCounters(
            inflate=self._traffic(Role.INFLATE, self._inflate.pages),
            deflate=self._traffic(Role.DEFLATE, self._deflate.pages),
            discarded_bytes=self._inflate.discarded_bytes,
            interrupts=used + self.config_notifications,
        )

    def serve(self, queue: int, chain: Chain) -> int | None:
        """One request, for the handler of its queue."""
        roles = self.dialect.roles(self.accepted)
        if queue >= len(roles):
            raise BadPayload("the feature of this queue was not accepted")
        return self._handlers[roles[queue]].serve(chain)

    def refuse(self, queue: int, chain: Chain) -> int | None:
        """A bad report keeps its buffer: on the statistics queue, giving it back is a question."""
        if self.dialect.roles(self.accepted)[queue : queue + 1] == (Role.STATS,):
            return self.stats.refuse(chain)
        return super().refuse(queue, chain)

    def on_reset(self) -> None:
        """A driver that starts anew has nothing in the balloon; the target stays."""
        for handler in self._handlers.values():
            handler.reset()
        if self.config["actual"]:
            self.config["actual"] = 0
            self._on_actual(0)

    def on_queue_reset(self, queue: int) -> None:
        """The handler of one queue starts anew."""
        roles = self.dialect.roles(self.accepted)
        if queue < len(roles):
            self._handlers[roles[queue]].reset()

    def _give_back(self, role: Role) -> GiveBack:
        """How the handler of `role` returns a buffer, wherever the driver numbered its queue."""

        def give_back(chain: Chain, written: int) -> None:
            self.complete(self.dialect.roles(self.accepted).index(role), chain, written)

        return give_back

    def _actual_written(self, pages: int) -> None:
        self._on_actual(self.actual)

    def _traffic(self, role: Role, pages: int) -> Traffic:
        counters = self.queues[self.dialect.roles(self.offered).index(role)].counters
        return Traffic(counters.requests, pages, counters.readable_bytes, counters.bad_payloads)


def _queue_spec(role: Role, dialect: Dialect) -> QueueSpec:
    longest = MAX_STATS_BYTES if role is Role.STATS else dialect.max_request_bytes
    return QueueSpec(role.value, QUEUE_SIZE, longest)
