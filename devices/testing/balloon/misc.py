# SPDX-License-Identifier: Apache-2.0
"""The driver of a misc queue (`devices.balloon.misc`), in any dialect that has one.

`MiscDriver` sends single buffers, `MiscGuest` responds to requests as the driver of our guest image
does.

    driver = MiscDriver(BalloonDriver(BITMAP).start())
    driver.offer_buffer()
    balloon.misc.request(Command.GET_UNUSED_PAGES, responses.append)
    (request,) = driver.take_requests()
    driver.respond(request, [1, 2, 3])
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from devices.balloon.dialects import BITMAP, Dialect
from devices.testing.balloon.driver import BalloonDriver, page_request
from devices.testing.driver import ALL_FEATURES
from devices.testing.driver_queue import Used
from devices.testing.ram import AnonymousRam

MISC = 3
"""Queue number with all features accepted."""
CONT, DONE, UNSUPPORTED = 0, 1, 2
"""Values of `flag` in a message."""
GET_UNUSED_PAGES, DROP_CACHE, SYNC = 0, 1, 2
"""Values of `cmd` in a request."""


class MiscRequest(NamedTuple):
    """`struct virtio_balloon_misc_req` as the driver reads it: `cmd` and the request's `id`."""

    cmd: int
    id: int


class MiscDriver:
    """Drives queue MISC of the balloon that `driver` has started."""

    def __init__(self, driver: BalloonDriver) -> None:
        self.driver = driver
        self.used: list[Used] = []
        """Buffers returned for messages and refused offers, in order."""
        self._offered: set[int] = set()
        self._requests: list[MiscRequest] = []

    def offer_buffer(self, *sizes: int, readable: Sequence[bytes] = ()) -> None:
        """Make a buffer available for a request: one element of 16 bytes, or of `sizes`."""
        queue = self.driver.queues[MISC]
        self._offered.add(queue.add(readable, sizes or (16,)))
        self._serve()

    def respond(
        self, request: MiscRequest | None, pfns: Iterable[int] = (), **header: int
    ) -> list[Used]:
        """Send a message about the pages `pfns` and return the used buffers.

        Its flag is DONE; `header` sets this and other fields as for `page_request`.
        """
        if request is not None:
            header = {"cmd": request.cmd, "req_id": request.id} | header
        header = {"flag": DONE} | header
        return self.send_message(page_request(self.driver.dialect, pfns, **header))

    def send_message(self, message: Sequence[bytes]) -> list[Used]:
        """Send device-readable elements and return the used buffers."""
        before = len(self.used)
        self.driver.queues[MISC].add(message)
        self._serve()
        return self.used[before:]

    def take_requests(self) -> list[MiscRequest]:
        """Return the requests received since the last call."""
        self._collect()
        requests, self._requests = self._requests, []
        return requests

    def _serve(self) -> None:
        self.driver.notify(MISC)
        self.driver.board.serve()
        self._collect()

    def _collect(self) -> None:
        for used in self.driver.queues[MISC].take_used():
            if used.head in self._offered and used.length:
                assert used.length == 16, "the used length of a request is 16"
                cmd, reserved, param = struct.unpack("<H6sQ", used.data)
                assert reserved == bytes(6)
                self._requests.append(MiscRequest(cmd, param))
            else:
                self.used.append(used)
            self._offered.discard(used.head)


class MiscGuest:
    """A guest with a balloon and RAM `regions`, by default those of `AnonymousRam`.

    `unused` are the page frames it does not use, `cached` those that dropping its caches would free
    and `dirty` those that must be synced before. Its driver speaks `dialect` and supports
    `commands`. It responds only when `respond` is called; `requests` are those it responded to.
    `driver` is its balloon driver, `board` the balloon's board and, after `start`, `misc` the
    driver of the queue.
    """

    def __init__(self, *regions: tuple[int, int], dialect: Dialect = BITMAP) -> None:
        self.driver = BalloonDriver(dialect, ram=AnonymousRam(*regions)).probe()
        self.board = self.driver.board
        self.unused: set[int] = set(range(1024, 2048))
        self.cached: set[int] = set()
        self.dirty: set[int] = set()
        self.commands = {GET_UNUSED_PAGES, DROP_CACHE, SYNC}
        self.requests: list[MiscRequest] = []

    def start(self, features: int = ALL_FEATURES) -> MiscGuest:
        """Bring the device up (again) and offer a buffer."""
        self.misc = MiscDriver(self.driver.start(features=features))
        if MISC in self.driver.queues:
            self.misc.offer_buffer()
        return self

    def respond(self) -> None:
        """Respond to the request that was received, if any, and offer the buffer again."""
        for request in self.misc.take_requests():
            self.requests.append(request)
            self._respond(request)
            self.misc.offer_buffer()

    def _respond(self, request: MiscRequest) -> None:
        if request.cmd not in self.commands:
            self.misc.respond(request, flag=UNSUPPORTED)
        elif request.cmd == GET_UNUSED_PAGES:
            half = sorted(self.unused)[: len(self.unused) // 2]
            self.misc.respond(request, half, flag=CONT)
            self.misc.respond(request, self.unused.difference(half))
        else:
            if request.cmd == SYNC:
                self.dirty.clear()
            else:
                self.unused |= self.cached - self.dirty
                self.cached &= self.dirty
            self.misc.respond(request)
