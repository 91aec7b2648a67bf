# SPDX-License-Identifier: Apache-2.0
"""The free page queue (VIRTIO 1.2, section 5.5.6.5): pages that the guest does not need now.

The device starts a round by writing a new command id to `free_page_hint_cmd_id`. The driver puts
that id on the queue in a buffer of 4 bytes, then buffers whose device-writable elements are free
pages, which it allocates so that no other code can, and finally the id STOP. It keeps the pages
until the field says DONE, unless it needs them sooner:

    hinting.start(on_end)      start a round; on_end is called when the driver has no more pages
    hinting.pages              all hints since the last `finish`
    hinting.stop()             request no more hints; those given stay valid
    hinting.finish()           DONE: let the driver reuse its pages

The guest may use a hinted page again at any moment, even before the device has seen the hint, and
writes to it before it relies on it. A copy of memory may therefore leave out `pages` if writes are
logged since before `start`, and must still copy every page that the log then names. Nothing is ever
discarded because of a hint.

Ids increase, across resets too, and wrap after `LAST_ID`. Pages under an id other than the current
one, or under none, MUST be ignored (5.5.6.5.2). The memory that a driver can cause the device to
use is bounded by `MAX_RUNS`: beyond it the round is ended.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum

from devices.balloon.page_queues import writable_pages
from devices.balloon.queue_handler import QueueHandler
from devices.errors import BadPayload
from devices.ports import Tracer
from devices.state import Fields, Payload, Restore
from pyvmm_native.ring import Chain, SplitQueue
from pyvmm_native.runs import PageRuns

COMMAND_ID = struct.Struct("<I")
"""A command id in the configuration space and on the queue."""
STOP, DONE, FIRST_ID = 0, 1, 2
"""VIRTIO_BALLOON_CMD_ID_STOP and _DONE (5.5.6.5), and the first id of a round."""
LAST_ID = 2**32 - 1
"""After it, ids start again at FIRST_ID."""

MAX_RUNS = 64 * 1024
"""Most separate runs of pages kept, 1 MiB of them. Linux hints blocks of 4 MiB, of which 16 GiB
are 4,096."""


class HintingResult(Enum):
    """Outcome of a round of hinting."""

    COMPLETE = "complete"
    """The driver had no more pages."""
    STOPPED = "stopped"
    """The device ended the round."""
    RESET = "reset"
    """The driver was reset; its hints are void."""


class FreePageQueue(QueueHandler):
    """Collects hints; `set_command_id` writes the configuration field and notifies the driver."""

    max_readable_bytes = COMMAND_ID.size

    def __init__(self, set_command_id: Callable[[int], None], tracer: Tracer) -> None:
        self._set_command_id = set_command_id
        self._tracer = tracer
        self.last_id = FIRST_ID - 1
        """Id of the last round; FIRST_ID - 1 before the first."""
        self._on_end: Callable[[HintingResult], None] | None = None
        self._begun = False
        """The driver has sent the id of the current round: the pages that follow belong to it."""
        self.pages = PageRuns()
        """Pages hinted in the current or last round, in 4 KiB frames."""
        self.ignored = 0
        """Buffers of pages outside any round, since the device was created."""

    # Called by the machine.

    def start(self, on_end: Callable[[HintingResult], None]) -> None:
        """Start a round, after the previous one has ended; `on_end` is called once."""
        assert self._on_end is None, "one round at a time"
        self._on_end = on_end
        self.last_id = self.last_id + 1 if self.last_id < LAST_ID else FIRST_ID
        self._set_command_id(self.last_id)

    def stop(self) -> None:
        """End the current round, if any; the driver keeps the pages that it has hinted."""
        if self._on_end is not None:
            self._end(HintingResult.STOPPED)

    def finish(self) -> None:
        """Forget all hints and let the driver reuse its pages; ends the current round."""
        self.stop()
        self.pages = PageRuns()
        self._set_command_id(DONE)

    # Called by the device.

    def serve(self, chain: Chain) -> int:
        """Take a command id or hinted pages."""
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
        """Forget all hints and end the current round: the driver has its pages back."""
        self.pages = PageRuns()
        if self._on_end is not None:
            self._end(HintingResult.RESET)
        else:
            self._set_command_id(STOP)

    def save_state(self) -> Payload:
        """Return the counter and the last id. A round and its hints belong to this process."""
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

    def _end(self, result: HintingResult) -> None:
        """End the current round; STOP in the field requests no more hints."""
        on_end, self._on_end = self._on_end, None
        self._begun = False
        self._set_command_id(STOP)
        self._tracer.event("balloon.hints", result=result.value, pages=self.pages.pages)
        assert on_end is not None
        on_end(result)
