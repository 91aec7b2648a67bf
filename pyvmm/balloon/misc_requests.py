# SPDX-License-Identifier: Apache-2.0
"""Requests to the guest over the balloon's misc queue (every dialect but the standard one).

    unused = await vm.misc_requests.unused_pages(timeout_s=10)

The queue takes one request at a time (`devices.balloon.misc`), so callers take turns, first come
first served; a caller's time-out counts from its call and includes its wait for the turn. A request
that is not completed in time, or whose caller was cancelled, is cancelled: the device counts and
ignores a late response. Errors are those of `pyvmm.balloon.guest_requests`.
"""

from __future__ import annotations

from functools import partial

from devices.balloon.dialects import Role
from devices.balloon.misc import MiscCommand, MiscResponse, RequestStatus
from pyvmm.balloon.guest_requests import (
    DEFAULT_TIMEOUT_S,
    GuestAccess,
    GuestRequestChannel,
    GuestReset,
    InvalidResponse,
    RequestUnsupported,
)
from pyvmm_native.runs import PageRuns

UNAVAILABLE = (
    "the guest runs no balloon driver with MISC_VQ or HOST_REQ_VQ (not in the standard dialect)"
)
"""Message of `DriverUnavailable` for these requests."""


class MiscRequests:
    """Requests over the misc queue.

    Threads: event loop.
    """

    def __init__(self, access: GuestAccess) -> None:
        self._misc = access.balloon.misc
        self._channel: GuestRequestChannel[MiscResponse] = GuestRequestChannel(
            access, Role.MISC, UNAVAILABLE
        )
        self.close = self._channel.close
        """As `GuestRequestChannel.close`."""
        self.last_unused = PageRuns()
        """The pages that the last answer has named."""

    async def unused_pages(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> PageRuns:
        """Return pages that were unused at some moment after the call; all of them are RAM.

        They may be in use again. A copy of memory that has logged writes since before this call
        may leave them out; no other conclusion is valid. Raises `GuestRequestError`.
        """
        self.last_unused = (await self._request(MiscCommand.GET_UNUSED_PAGES, timeout_s)).pages
        return self.last_unused

    async def drop_caches(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Drop the guest's clean page cache, dentries and inodes. Raises `GuestRequestError`."""
        await self._request(MiscCommand.DROP_CACHE, timeout_s)

    async def sync_filesystems(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Have the guest write out its file systems. Raises `GuestRequestError`."""
        await self._request(MiscCommand.SYNC, timeout_s)

    async def _request(self, command: MiscCommand, timeout_s: float) -> MiscResponse:
        self._channel.check()
        async with self._channel.time_limit(timeout_s), self._channel.turn:
            send = partial(self._misc.request, command)
            with self._channel.issue(send, lambda _: self._misc.cancel()) as outstanding:
                response = await outstanding
        if response.status is RequestStatus.UNSUPPORTED:
            raise RequestUnsupported(f"the guest's balloon driver does not know {command.name}")
        if response.status is RequestStatus.INVALID_RESPONSE:
            raise InvalidResponse(f"invalid response of the guest's balloon driver: {response.why}")
        if response.status is RequestStatus.RESET:
            raise GuestReset("the guest's balloon driver was reset before it responded")
        return response
