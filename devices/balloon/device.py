# SPDX-License-Identifier: Apache-2.0
"""The traditional memory balloon device (VIRTIO 1.2, section 5.5).

The device is its configuration space and one handler for each queue: `page_queues` (inflate and
deflate), `stats`, `misc`, `hinting` and `reporting`. Which queues there are, and their numbers, is
the dialect's to say.

One inflate, top to bottom: `set_target` raises `num_pages` and notifies the driver; the driver puts
a request on the inflate queue; `serve` passes it to `InflateQueue`, which has the dialect decode it
to `PageRuns`, checks that every page is RAM, keeps whole host pages and has the RAM discard them;
only then does the base class return the buffer, because the used entry is the promise that the
memory is gone. The driver then writes `actual`.

`actual` is whatever the guest wrote. Nothing is computed from it that is not first limited to RAM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from devices.balloon.config import config_space
from devices.balloon.counters import BalloonCounters, Traffic
from devices.balloon.dialects import CompleteBuffer, Dialect, Role
from devices.balloon.hinting import COMMAND_ID, DONE, FIRST_ID, FreePageQueue
from devices.balloon.misc import MiscQueue
from devices.balloon.page_queues import DeflateQueue, InflateQueue
from devices.balloon.reporting import ReportingQueue
from devices.balloon.stats import MAX_STATS_BYTES, StatsQueue
from devices.errors import BadPayload
from devices.ports import GuestRam, Tracer
from devices.state import Fields, Payload, Restore
from devices.virtio.device import VirtioDevice
from devices.virtio.features import names
from devices.virtio.queue import QueueSpec
from devices.virtio.saved import SavedDevice
from devices.virtio.status import Status
from pyvmm_native.ring import Chain, SplitQueue

DEVICE_ID = 5
"""VIRTIO 1.2, 5.5.1."""

INFLATE, DEFLATE = 0, 1
"""Queues that every balloon has, by number."""

QUEUE_SIZE = 128
"""A bitmap request takes up to 33 descriptors; a driver has one or a few requests under way."""


class QueueHandler(Protocol):
    """What one queue of the balloon does; made once, whether or not its feature is accepted."""

    def serve(self, chain: Chain) -> int | None:
        """As `VirtioDevice.serve`; a buffer that was kept goes back with its `complete`."""

    def reset(self) -> None:
        """The device was reset: no buffer kept so far exists any longer."""

    def save_state(self) -> Payload:
        """Counters, and what is kept for the driver."""

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """Check what was saved; `ring` is the queue's, None if that is not live."""


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
            queues=_queue_specs(dialect, offered),
            config=config_space(dialect, offered, self._actual_written, tracer),
            memory=ram.memory,
            tracer=tracer,
        )
        self.dialect = dialect
        self._ram = ram
        self._on_actual = on_actual
        self._inflate = InflateQueue(dialect, ram, tracer)
        self._deflate = DeflateQueue(dialect, ram, tracer)
        self.misc = MiscQueue(ram, self._complete_with(Role.MISC), tracer)
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
        self._longest = {role: _longest_message(role, dialect) for role in self._handlers}
        self._roles: dict[int, Role] | None = None

    @property
    def num_pages(self) -> int:
        """Pages the device wants in the balloon."""
        return self.config["num_pages"]

    @property
    def actual(self) -> int:
        """Pages the driver says are in the balloon, at most all of RAM."""
        return min(self.config["actual"], self._ram.pages.pages)

    @property
    def poison_val(self) -> int:
        """What the driver says its free pages hold; 0, too, from one that does not care."""
        feature = self.dialect.features.options.get("page-poison", 0)
        return self.config["poison_val"] if self.accepted & feature else 0

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
        return self.live and role in self.roles.values()

    def ask_for_stats(self) -> bool:
        """Ask the driver for fresh statistics, which go to `stats.on_report`; False if one cannot.

        That is so while no driver runs, without STATS_VQ, or as long as a question is open.
        """
        return self.live and self.stats.ask()

    @property
    def counters(self) -> BalloonCounters:
        """Snapshot of all counters."""
        used = sum(queue.counters.interrupts for queue in self.queues)
        return BalloonCounters(
            inflate=self._traffic(INFLATE, self._inflate.pages),
            deflate=self._traffic(DEFLATE, self._deflate.pages),
            discarded_bytes=self._inflate.discarded_bytes,
            reported_pages=self._reporting.pages,
            reported_bytes=self._reporting.discarded_bytes,
            interrupts=used + self.config_notifications,
        )

    @property
    def roles(self) -> dict[int, Role]:
        """What each queue is for, by number, for as long as the driver runs the device.

        Settled when it is first asked for: the driver has enabled its queues before it set
        DRIVER_OK (3.1.1), and a buffer that is kept must go back to the queue it came from.
        """
        if self._roles is None:
            enabled = [queue.index for queue in self.queues if queue.enabled]
            roles = self.dialect.roles(self.accepted, enabled)
            if not self.running:
                return roles
            self._roles = roles
        return self._roles

    def feature_refusal(self, accepted: int) -> str | None:
        """A driver without PAGE_BITMAP cannot speak the bitmap dialect, only PFN arrays.

        It is turned away here (3.1.1), before it has given a page: the device has one language.
        """
        missing = self.dialect.features.required & ~accepted
        if missing:
            return f"{names(missing, self.feature_names)} was not accepted"
        return super().feature_refusal(accepted)

    def serve(self, queue: int, chain: Chain) -> int | None:
        """One request, for the handler of its queue."""
        role = self.roles.get(queue)
        if role is None:
            raise BadPayload("the feature of this queue was not accepted")
        if len(chain.readable) > self._longest[role]:
            raise BadPayload(f"{len(chain.readable)} bytes are too many on the {role} queue")
        return self._handlers[role].serve(chain)

    def on_bad_payload(self, queue: int, chain: Chain) -> int | None:
        """Handlers for which a bad buffer means more than that it goes back empty have their say.

        On the statistics queue giving it back is a question, on the misc queue it was an answer.
        """
        role = self.roles.get(queue)
        if role is Role.STATS:
            return self.stats.on_bad_payload(chain)
        if role is Role.MISC:
            return self.misc.on_bad_payload(chain)
        return super().on_bad_payload(queue, chain)

    def has_queue(self, index: int) -> bool:
        """5.5.2: a queue that belongs to a feature exists only with it, in either numbering."""
        settled = self.status & Status.FEATURES_OK
        negotiated = self.accepted if settled else self.offered
        return index in self.dialect.roles(negotiated, [index])

    def on_reset(self) -> None:
        """A driver that starts anew has nothing in the balloon; the target stays."""
        for handler in self._handlers.values():
            handler.reset()
        self._roles = None
        target, actual = self.config["num_pages"], self.config["actual"]
        self.config.reset()
        self.config["num_pages"] = target
        if actual:
            self.config_changed()
            self._on_actual(0)

    def on_queue_reset(self, queue: int) -> None:
        """The handler of one queue starts anew."""
        role = self.roles.get(queue)
        if role is not None:
            self._handlers[role].reset()

    def compatibility_key(self) -> dict[str, str]:
        """A driver cannot be given another dialect."""
        return {"dialect": self.dialect.name}

    def save_own_state(self) -> Payload:
        """The target, which queue is for what once that is settled, and what the handlers keep."""
        return {
            "num_pages": self.num_pages,
            "numbers": list(self._roles or ()),
            **{role: handler.save_state() for role, handler in self._handlers.items()},
        }

    def check_own_state(self, state: Fields, saved: SavedDevice) -> Restore:
        """As `VirtioDevice.check_own_state`; the numbers of the queues tell what each is for."""
        num_pages = state.number("num_pages", below=self._ram.pages.pages + 1)
        numbers = state.numbers("numbers", at_most=len(saved.queues), below=len(saved.queues))
        roles = self.dialect.roles(saved.accepted, numbers) if numbers else {}
        if list(roles) != numbers or (numbers and not saved.status & Status.DRIVER_OK):
            raise state.error("numbers", f"of the queues cannot be {numbers}")
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
                # Whoever wanted hints is gone: the driver may have its pages back.
                self.config["free_page_hint_cmd_id"] = DONE

        return restore

    def _complete_with(self, role: Role) -> CompleteBuffer:
        """How the handler of `role` returns a buffer, wherever the driver numbered its queue."""

        def give_back(chain: Chain, written: int) -> None:
            number = next(number for number, each in self.roles.items() if each is role)
            self.complete(number, chain, written)

        return give_back

    def _set_command_id(self, command_id: int) -> None:
        self.config["free_page_hint_cmd_id"] = command_id
        self.config_changed()

    def _actual_written(self, pages: int) -> None:
        self._on_actual(self.actual)

    def _traffic(self, queue: int, pages: int) -> Traffic:
        counters = self.queues[queue].counters
        return Traffic(counters.requests, pages, counters.readable_bytes, counters.bad_payloads)


def _queue_specs(dialect: Dialect, offered: int) -> list[QueueSpec]:
    """The queues to show. What those after the first two are for is settled by the driver."""
    inflate, deflate, *further = dialect.roles(offered).values()
    longest = max((_longest_message(role, dialect) for role in further), default=0)
    pages = dialect.max_request_bytes
    return [
        QueueSpec(inflate, QUEUE_SIZE, pages),
        QueueSpec(deflate, QUEUE_SIZE, pages),
        *(
            QueueSpec(f"queue {number}", QUEUE_SIZE, longest)
            for number in range(2, dialect.queue_count(offered))
        ),
    ]


def _longest_message(role: Role, dialect: Dialect) -> int:
    """Device-readable bytes of the longest buffer that makes sense."""
    further = {Role.STATS: MAX_STATS_BYTES, Role.FREE_PAGE_HINT: COMMAND_ID.size, Role.REPORTING: 0}
    return further.get(role, dialect.max_request_bytes)
