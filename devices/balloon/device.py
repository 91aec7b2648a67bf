# SPDX-License-Identifier: Apache-2.0
"""The traditional memory balloon device (VIRTIO 1.2, section 5.5).

The device consists of its configuration space and one `QueueHandler` for each queue: `page_queues`
(inflate and deflate), `stats`, `misc`, `hinting` and `reporting`. The dialect determines which
queues exist and how they are numbered.

One inflate, top to bottom: `set_target` raises `num_pages` and notifies the driver; the driver puts
a request on the inflate queue; the queue's `PageRequestReader` takes it, decodes it to `PageRuns`
and checks that every page is RAM; `serve_requests` passes these to `InflateQueue`, which has the
RAM discard them, or the host pages that they complete if those are larger than 4 KiB; only then
does the base class return the buffer, because the used entry promises that the memory is freed. The
driver then writes `actual`.

`actual` is whatever the guest wrote. It is limited to RAM before anything is computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping

from devices.balloon.config import config_space
from devices.balloon.counters import BalloonCounters, Traffic
from devices.balloon.dialects import CompleteBuffer, Dialect, Role
from devices.balloon.features import MUST_TELL_HOST
from devices.balloon.hinting import DONE, FIRST_ID, FreePageQueue
from devices.balloon.misc import MiscQueue
from devices.balloon.page_queues import DeflateQueue, InflateQueue, PageQueue, host_page_record
from devices.balloon.queue_handler import QueueHandler
from devices.balloon.reporting import ReportingQueue
from devices.balloon.stats import StatsQueue
from devices.errors import BadPayload
from devices.listeners import Listeners
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from devices.virtio.device import SavedDevice, VirtioDevice
from devices.virtio.features import names
from devices.virtio.queue import QueueSpec, Requests
from devices.virtio.status import Status
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_requests import PageRequests
from pyvmm_native.ring import Chain

DEVICE_ID = 5
"""VIRTIO 1.2, 5.5.1."""

INFLATE, DEFLATE = 0, 1
"""Numbers of the queues that every balloon has."""

QUEUE_SIZE = 128
"""A bitmap request takes up to 33 descriptors; a driver has one or a few requests in flight."""


class BalloonDevice(VirtioDevice):
    """Balloon speaking `dialect` over guest memory `ram`.

    `offered` are the feature bits that the device offers, a subset of those that the dialect
    defines; by default, the dialect's default. The handlers `stats`, `misc` and `hinting` make
    requests to the driver; without their feature they refuse.
    """

    def __init__(
        self, dialect: Dialect, ram: GuestRam, tracer: Tracer, *, offered: int | None = None
    ) -> None:
        offered = dialect.features.default if offered is None else offered
        self.dialect = dialect
        self._ram = ram
        self.actual_written: Listeners[int] = Listeners()
        """Called when the driver reports a new balloon size, with `actual`, and at a reset."""
        self._record = host_page_record(ram)

        def must_tell_host() -> bool:
            return bool(self.accepted & MUST_TELL_HOST)

        self._inflate = InflateQueue(dialect, ram, tracer, self._record, must_tell_host)
        self._deflate = DeflateQueue(dialect, ram, tracer, self._record, must_tell_host)
        self.misc = MiscQueue(dialect.responses, ram, self._complete_with(Role.MISC), tracer)
        self.stats = StatsQueue(self._complete_with(Role.STATS))
        self.hinting = FreePageQueue(self._set_command_id, tracer)
        self._reporting = ReportingQueue(ram, lambda: self.poison_val, tracer)
        handlers: dict[Role, QueueHandler] = {
            Role.INFLATE: self._inflate,
            Role.DEFLATE: self._deflate,
            Role.STATS: self.stats,
            Role.MISC: self.misc,
            Role.FREE_PAGE_HINT: self.hinting,
            Role.REPORTING: self._reporting,
        }
        self._handlers = {role: handlers[role] for role in dialect.roles(offered).values()}
        self._roles: dict[int, Role] | None = None
        super().__init__(
            device_id=DEVICE_ID,
            name="balloon",
            offered=offered,
            feature_names=dialect.features.names,
            queues=_queue_specs(self._handlers, dialect.queue_count(offered)),
            config=config_space(dialect, offered, self._actual_written, tracer),
            memory=ram.memory,
            tracer=tracer,
        )

    @property
    def num_pages(self) -> int:
        """Return the requested size of the balloon in 4 KiB pages."""
        return self.config["num_pages"]

    @property
    def actual(self) -> int:
        """Return the size that the driver reports, in 4 KiB pages, limited to all of RAM."""
        return min(self.config["actual"], self._ram.pages.pages)

    @property
    def poison_val(self) -> int:
        """Return the pattern with which the driver fills free pages; 0 without PAGE_POISON."""
        feature = self.dialect.features.options.get("page-poison", 0)
        return self.config["poison_val"] if self.accepted & feature else 0

    def set_target(self, num_pages: int) -> None:
        """Request a balloon of `num_pages` 4 KiB pages from the driver (VIRTIO 1.2, 5.5.6).

        Raises ValueError if that is negative or more than the guest has.
        """
        if not 0 <= num_pages <= self._ram.pages.pages:
            raise ValueError(f"a balloon of {num_pages} pages in {self._ram.pages.pages} of RAM")
        self.config["num_pages"] = num_pages
        if self._tracer.watched:
            self._tracer.event("balloon.target", pages=num_pages)
        self.config_changed()

    def has_live(self, role: Role) -> bool:
        """Return whether a driver runs the device and accepted the queue of `role`."""
        return self.live and role in self.roles.values()

    def request_stats(self) -> bool:
        """Request fresh statistics for `stats.report_received`; return False if not possible.

        It is not possible while no driver runs, without STATS_VQ, or while a request is
        outstanding.
        """
        return self.live and self.stats.issue()

    @property
    def counters(self) -> BalloonCounters:
        """Return a copy of all counters."""
        used = sum(queue.counters.interrupts for queue in self.queues)
        kept = self._record.pages - self._record.complete_pages if self._record else 0
        return BalloonCounters(
            inflate=self._traffic(INFLATE, self._inflate.pages),
            deflate=self._traffic(DEFLATE, self._deflate.pages),
            discarded_bytes=self._inflate.discarded_bytes,
            kept_bytes=kept * PAGE_BYTES,
            reported_pages=self._reporting.pages,
            reported_bytes=self._reporting.discarded_bytes,
            interrupts=used + self.config_notifications,
        )

    @property
    def roles(self) -> dict[int, Role]:
        """Return the role of each queue, by number.

        Fixed at its first use while the driver runs the device: the driver has enabled its queues
        before it set DRIVER_OK (3.1.1), and a buffer that is kept must be returned to the queue it
        came from.
        """
        if self._roles is None:
            enabled = [queue.index for queue in self.queues if queue.enabled]
            roles = self.dialect.roles(self.accepted, enabled)
            if not self.running:
                return roles
            self._roles = roles
        return self._roles

    def feature_refusal(self, accepted: int) -> str | None:
        """As `VirtioDevice.feature_refusal`; the dialect's required features must be accepted.

        A driver without PAGE_BITMAP cannot speak the bitmap dialect, only PFN arrays, and one
        without HYBRID_RECORDS or RANGE_RECORDS not the dialect of that name. It is rejected here
        (3.1.1), before it has given a page: the device speaks one dialect only.
        """
        missing = self.dialect.features.required & ~accepted
        if missing:
            return f"{names(missing, self.feature_names)} was not accepted"
        return super().feature_refusal(accepted)

    def serve(self, queue: int, chain: Chain) -> int | None:
        """Pass one buffer to the handler of its queue."""
        role = self.roles.get(queue)
        if role is None:
            raise BadPayload("the feature of this queue was not accepted")
        handler = self._handlers[role]
        if len(chain.readable) > handler.max_readable_bytes:
            raise BadPayload(f"{len(chain.readable)} bytes are too many on the {role} queue")
        return handler.serve(chain)

    def serve_requests(self, queue: int, requests: Requests) -> None:
        """Pass requests to the inflate or the deflate queue."""
        assert isinstance(requests, PageRequests)
        if self._roles is None:
            self._roles = self.roles
        handler = self._inflate if queue == INFLATE else self._deflate
        handler.serve_pages(requests.runs, requests.pages)

    def on_bad_payload(self, queue: int, chain: Chain, error: BadPayload) -> int | None:
        """As `VirtioDevice.on_bad_payload`; the handler of the queue decides."""
        role = self.roles.get(queue)
        return 0 if role is None else self._handlers[role].on_bad_payload(chain, error)

    def pages_inside(self) -> list[tuple[int, bytes]]:
        """Return bitmaps of the pages in the balloon, each with its first frame.

        Without larger host pages, pages are noted from the first call on: of those that were in the
        balloon before, only the number is known.
        """
        if self._record is not None:
            return self._record.bitmaps()
        if self._inflate.shown is None:
            from pyvmm_native.host_pages import HostPageRecord  # 1 module, for views of memory

            self._inflate.shown = self._deflate.shown = HostPageRecord(self._ram.pages, 1)
        return self._inflate.shown.bitmaps()

    def has_queue(self, index: int) -> bool:
        """As `VirtioDevice.has_queue`; a feature's queue exists only with the feature (5.5.2).

        Both ways of numbering the queues count.
        """
        negotiated = self.accepted if self.status & Status.FEATURES_OK else self.offered
        return index in self.dialect.roles(negotiated, [index])

    def on_reset(self) -> None:
        """As `VirtioDevice.on_reset`: the balloon is empty; the target stays."""
        for handler in self._handlers.values():
            handler.reset()
        for record in (self._record, self._inflate.shown):
            if record is not None:
                record.clear()
        self._roles = None
        target, actual = self.config["num_pages"], self.config["actual"]
        self.config.reset()
        self.config["num_pages"] = target
        if actual:
            self.config_changed()
            self.actual_written(0)

    def on_queue_reset(self, queue: int) -> None:
        """As `VirtioDevice.on_queue_reset`; the handler of the queue is reset."""
        role = self.roles.get(queue)
        if role is not None:
            self._handlers[role].reset()

    def compatibility_key(self) -> dict[str, str]:
        """As `VirtioDevice.compatibility_key`; the dialect cannot change under a driver."""
        return {"dialect": self.dialect.name}

    def save_own_state(self) -> Payload:
        """Return the target, the numbers of the queues once they are fixed, and the handlers'."""
        return {
            "num_pages": self.num_pages,
            "queue_numbers": list(self._roles or ()),
            **{role: handler.save_state() for role, handler in self._handlers.items()},
        }

    def check_own_state(self, state: Fields, saved: SavedDevice) -> Restore:
        """As `VirtioDevice.check_own_state`; the numbers of the queues determine their roles."""
        num_pages = state.number("num_pages", below=self._ram.pages.pages + 1)
        numbers = state.numbers("queue_numbers", at_most=len(saved.queues), below=len(saved.queues))
        roles = self.dialect.roles(saved.accepted, numbers) if numbers else {}
        if list(roles) != numbers or (numbers and not saved.status & Status.DRIVER_OK):
            raise state.error("queue_numbers", f"cannot be {numbers}")
        rings = {role: saved.queues[number].ring for number, role in roles.items()}
        restores = [
            handler.check_state(state.part(role), rings.get(role))
            for role, handler in self._handlers.items()
        ]

        def restore() -> None:
            self._roles = roles or None
            self.config["num_pages"] = num_pages
            for restore_handler in restores:
                restore_handler()
            if self.hinting.last_id >= FIRST_ID:
                # The process that requested hints is gone: the driver may use its pages again.
                self.config["free_page_hint_cmd_id"] = DONE

        return restore

    def _complete_with(self, role: Role) -> CompleteBuffer:
        """Return a function that completes a buffer of the queue of `role`, whatever its number."""

        def complete(chain: Chain, written: int) -> None:
            number = next(number for number, each in self.roles.items() if each is role)
            self.complete(number, chain, written)

        return complete

    def _set_command_id(self, command_id: int) -> None:
        self.config["free_page_hint_cmd_id"] = command_id
        self.config_changed()

    def _actual_written(self, pages: int) -> None:
        if self._tracer.watched:
            self._tracer.event("balloon.actual", pages=self.actual)
        self.actual_written(self.actual)

    def _traffic(self, queue: int, pages: int) -> Traffic:
        counters = self.queues[queue].counters
        return Traffic(counters.requests, pages, counters.readable_bytes, counters.bad_payloads)


def _queue_specs(handlers: Mapping[Role, QueueHandler], count: int) -> list[QueueSpec]:
    """Return the specifications of all queues. Features determine the roles after the first two."""
    inflate, deflate, *further = handlers.values()
    assert isinstance(inflate, PageQueue)
    assert isinstance(deflate, PageQueue)
    longest = max((handler.max_readable_bytes for handler in further), default=0)
    return [
        QueueSpec(Role.INFLATE, QUEUE_SIZE, inflate.max_readable_bytes, reader=inflate.reader),
        QueueSpec(Role.DEFLATE, QUEUE_SIZE, deflate.max_readable_bytes, reader=deflate.reader),
        *(QueueSpec(f"queue {number}", QUEUE_SIZE, longest) for number in range(2, count)),
    ]
