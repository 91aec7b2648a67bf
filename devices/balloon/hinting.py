# SPDX-License-Identifier: Apache-2.0
"""The free page queue (VIRTIO 1.2, section 5.5.6.5): which pages does the guest not need now?

The device begins a round by writing a new command id to `free_page_hint_cmd_id`. The driver puts
that id on the queue in a buffer of 4 bytes, then buffers whose device-writable elements are free
pages, which it allocates so that nobody else does, and at last the id STOP. It keeps the pages
until the field says DONE, unless it needs them sooner. So::

    hinting.start(on_end)      a round; on_end is told when the driver has no more pages
    hinting.pages              all hints since the last `finish`
    hinting.stop()             no more hints, please; those given stay valid
    hinting.finish()           thank you: DONE, the driver may have its pages back

A hint is no gift: the guest may use the page again at any moment, even before the device has seen
the hint, and writes to it before it relies on it. A copy of memory may therefore leave out `pages`
if writes are logged since before `start`, and must still take every page that the log then names.
Nothing is ever discarded because of a hint, and nothing here could.

Ids only ever grow, over resets too. Pages that come under an id that is not the current one, or
under none, MUST be ignored (5.5.6.5.2). What a driver can have us keep is bounded by `MAX_RUNS`:
beyond it the round is ended.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum

from devices.balloon.page_queues import writable_pages
from devices.errors import BadPayload
from devices.ports import Tracer
from devices.state import Fields, Payload, Restore
from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns

COMMAND_ID = struct.Struct("<I")
STOP, DONE, FIRST_ID = 0, 1, 2
LAST_ID = 2**32 - 1

MAX_RUNS = 64 * 1024
"""Most separate runs of pages kept, 1 MiB of them. Linux hints blocks of 4 MiB, of which 16 GiB
are 4,096."""


class HintingResult(Enum):
    """How a round of hinting ended."""

    COMPLETE = "complete"
    """The driver had no more pages."""
    STOPPED = "stopped"
    """The device did not want more."""
    RESET = "reset"
    """The driver is gone, and its hints with it."""


class FreePageQueue:
    """Collects hints; `set_command_id` writes the configuration field and tells the driver."""

    def __init__(self, set_command_id: Callable[[int], None], tracer: Tracer) -> None:
        self._set_command_id = set_command_id
        self._tracer = tracer
        self.last_id = FIRST_ID - 1
        """Id of the last round; FIRST_ID - 1 before the first."""
        self._on_end: Callable[[HintingResult], None] | None = None
        self._begun = False
        """The driver has said that what follows belongs to the round that is open."""
        self.pages = PageRuns()
        self.ignored = 0
        """Buffers of pages that belonged to no open round, since the device was made."""

    # What the machine calls.

    def start(self, on_end: Callable[[HintingResult], None]) -> None:
        """Begin a round; `on_end` is called once. One round at a time: the last one has ended."""
        assert self._on_end is None, "one round at a time"
        self._on_end = on_end
        self.last_id = self.last_id + 1 if self.last_id < LAST_ID else FIRST_ID
        self._set_command_id(self.last_id)

    def stop(self) -> None:
        """End the round that is open, if any; the driver keeps what it has hinted."""
        if self._on_end is not None:
            self._end(HintingResult.STOPPED)

    def finish(self) -> None:
        """Forget all hints and have the driver use its pages again; ends an open round."""
        self.stop()
        self.pages = PageRuns()
        self._set_command_id(DONE)

    # What the device calls.

    def serve(self, chain: Chain) -> int:
        if chain.readable_bytes and chain.writable_bytes:
            raise BadPayload("a buffer cannot be both a command and pages")
        if chain.readable_bytes:
            self._serve_command(chain.readable)
        elif not self._begun:
            self.ignored += 1
        else:
            self.pages = self.pages.union(writable_pages(chain))
            if len(self.pages) > MAX_RUNS:
                self._end(HintingResult.STOPPED)
        return 0

    def reset(self) -> None:
        """The driver has its pages, and will not hint any more."""
        self.pages = PageRuns()
        if self._on_end is not None:
            self._end(HintingResult.RESET)
        else:
            self._set_command_id(STOP)

    def save_state(self) -> Payload:
        """The last id. A round and its hints belong to the process that began it."""
        return {"ignored": self.ignored, "last_id": self.last_id}

    def check_state(self, fields: Fields, ring: SplitQueue | None) -> Restore:
        """As `QueueHandler.check_state`."""
        ignored = fields.counter("ignored")
        last_id = fields.number("last_id", at_least=FIRST_ID - 1, below=LAST_ID + 1)

        def restore() -> None:
            self.ignored, self.last_id = ignored, last_id
            self.pages = PageRuns()
            self._on_end = None
            self._begun = False

        return restore

    def _serve_command(self, payload: bytes) -> None:
        if len(payload) != COMMAND_ID.size:
            raise BadPayload(f"a command id of {len(payload)} bytes")
        (command_id,) = COMMAND_ID.unpack(payload)
        if command_id == STOP and self._begun:
            self._end(HintingResult.COMPLETE)
        else:
            self._begun = self._on_end is not None and command_id == self.last_id

    def _end(self, ending: HintingResult) -> None:
        """The round that is open is over; a field that says STOP keeps more from coming."""
        on_end, self._on_end = self._on_end, None
        self._begun = False
        self._set_command_id(STOP)
        self._tracer.event("balloon.hints", ending=ending.value, pages=self.pages.pages)
        assert on_end is not None
        on_end(ending)
