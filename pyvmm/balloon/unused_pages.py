# SPDX-License-Identifier: Apache-2.0
"""Query the unused pages of the guest, with the request that its balloon driver supports.

The driver answers on the misc queue, in the standard dialect it gives free page hints
(VIRTIO 1.2, 5.5.6.5). Hinted pages are returned to the guest at once: its later writes to them are
in the dirty log, which must have been switched on before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.balloon.guest_requests import DriverUnavailable, GuestRequestError
from pyvmm.memory.precopy import NOT_QUERIED, UnusedPages
from pyvmm_native.runs import PageRuns

if TYPE_CHECKING:
    from devices.balloon.device import BalloonDevice
    from pyvmm.balloon.free_page_hints import FreePageHints
    from pyvmm.balloon.misc_requests import MiscRequests


async def query_unused_pages(
    balloon: BalloonDevice,
    misc_requests: MiscRequests,
    free_page_hints: FreePageHints,
    timeout_s: float,
) -> UnusedPages:
    """Return the pages that the guest reports as unused within `timeout_s`.

    If the guest does not answer, there are none, and `how` gives the reason. A time-out of 0
    disables the query.

    Threads: event loop.
    """
    if not timeout_s:
        return NOT_QUERIED
    none = PageRuns()
    if balloon.poison_val:
        # The guest's kernel checks a free page for the poison when it allocates the page.
        return UnusedPages(none, "query disabled: the guest poisons its free pages")
    try:
        return UnusedPages(
            await misc_requests.unused_pages(timeout_s), "answered on the misc queue"
        )
    except DriverUnavailable:
        pass
    except GuestRequestError as error:
        return UnusedPages(none, str(error))
    try:
        async with free_page_hints.held(timeout_s) as hints:
            return UnusedPages(hints.pages, "answered by free page hints")
    except GuestRequestError as error:
        return UnusedPages(none, str(error))
