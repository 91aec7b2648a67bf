# SPDX-License-Identifier: Apache-2.0
"""The dialects of the balloon protocol, as data.

A dialect defines which features and queues the balloon offers and how a request on the inflate or
deflate queue is decoded to `PageRuns` (`pyvmm_native.page_requests`). It is chosen by configuration
and never inferred from feature bits: bit 3 means PAGE_BITMAP in one dialect and FREE_PAGE_HINT in
another, and a device that reads PFN arrays as bitmap headers discards the wrong memory.

* `STANDARD`: VIRTIO 1.2, section 5.5. A request is an array of 32-bit page frame numbers, address
  / 4096 each, little-endian (5.5.6). A page is in the balloon or not, so no valid array names one
  twice. Refusing those that do costs nothing and keeps the dialects apart: see
  `devices.balloon.bitmap`.
* `BITMAP`: version 3 of the extension proposed in 2016. A request is a header and a bitmap, see
  `devices.balloon.bitmap`.
* `HYBRID`: version 5. A request is a header and records of blocks and short bitmaps, see
  `devices.balloon.records`.
* `RANGES`: version 6. A request is a header and records of page ranges, see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import StrEnum
from typing import NamedTuple

from devices.balloon import bitmap, features, records
from devices.balloon.features import (
    FREE_PAGE_HINT,
    HOST_REQ_VQ,
    MISC_VQ,
    PAGE_POISON,
    REPORTING,
    STATS_VQ,
    Features,
)
from devices.balloon.messages import ResponseFormat, pages_of
from devices.registers import Access, Register
from pyvmm_native.ring import Chain
from pyvmm_native.runs import PageRuns

PFN_BYTES = 4
"""Bytes of a page frame number in a PFN array."""
MAX_PFNS = 64 * 1024
"""Longest PFN array accepted, 256 MiB of pages a request; Linux sends at most 256 at a time."""


class Role(StrEnum):
    """Purpose of a queue (VIRTIO 1.2, 5.5.2)."""

    INFLATE = "inflate"
    DEFLATE = "deflate"
    STATS = "stats"
    MISC = "misc"
    FREE_PAGE_HINT = "free_page_hint"
    REPORTING = "reporting"


CompleteBuffer = Callable[[Chain, int], None]
"""Returns a buffer that a handler kept to the driver, with the number of bytes written to it."""


class Dialect(NamedTuple):
    """Features, queues and request format of one balloon protocol."""

    name: str
    features: Features
    max_request_bytes: int
    """Longest valid inflate or deflate request."""
    further_queues: tuple[tuple[int, Role], ...]
    """(feature bit, role) of the queues after inflate and deflate, in order of their numbers."""
    further_config: tuple[tuple[int, Register], ...] = ()
    """(feature bit, field) of the configuration space after `actual`."""
    responses: ResponseFormat | None = None
    """Format of messages on the misc queue, if the dialect has one."""

    def decode(self, payload: bytes) -> PageRuns:
        """Return the pages of an inflate or deflate request, in 4 KiB frames; raises BadPayload."""
        return pages_of(self.name, payload, is_request=True)

    @property
    def _numbered(self) -> tuple[tuple[int, Role], ...]:
        """Return (feature, role) of every queue of the dialect, in the order of 5.5.2."""
        return ((0, Role.INFLATE), (0, Role.DEFLATE), *self.further_queues)

    def roles(self, negotiated: int, enabled: Collection[int] = ()) -> dict[int, Role]:
        """Return the role of each queue, by its number.

        The list of 5.5.2 can be read in two ways if a feature before another was not negotiated.
        Real drivers number the queues that exist without gaps: Linux has done so since it supports
        absent queues (4.20), in 6.1 and 6.12 too (`queue_idx++` in
        drivers/virtio/virtio_pci_common.c), and so does QEMU for the queues it offers.
        Patches of July 2024 that would have made Linux use the numbers of the list, with a fallback
        for QEMU, are not in 6.12. Drivers written from the specification may use the list's numbers
        and leave gaps: reporting_vq is 4 whether or not free_page_vq exists.

        The queues that the driver `enabled` tell the two apart. If the readings differ at all, the
        list's last number is one that numbering without gaps does not reach, so a driver that
        enabled it, and nothing outside the list, uses the list. Any other numbers without gaps.
        """
        listed = {
            number: role
            for number, (feature, role) in enumerate(self._numbered)
            if not feature or negotiated & feature
        }
        if any(number >= len(listed) for number in enabled) and set(enabled) <= listed.keys():
            return listed
        return dict(enumerate(listed.values()))

    def queue_count(self, offered: int) -> int:
        """Return how many queues a device with `offered` has: enough for either numbering."""
        features = (feature for feature, _ in self._numbered)
        return 1 + max(n for n, feature in enumerate(features) if not feature or offered & feature)


STANDARD = Dialect(
    name="standard",
    features=features.STANDARD,
    max_request_bytes=MAX_PFNS * PFN_BYTES,
    further_queues=(
        (STATS_VQ, Role.STATS),
        (FREE_PAGE_HINT, Role.FREE_PAGE_HINT),
        (REPORTING, Role.REPORTING),
    ),
    further_config=(
        (FREE_PAGE_HINT, Register("free_page_hint_cmd_id", 8, 4, Access.RO)),
        (PAGE_POISON, Register("poison_val", 12, 4)),
    ),
)

BITMAP = Dialect(
    name="bitmap",
    features=features.BITMAP,
    max_request_bytes=bitmap.MAX_REQUEST_BYTES,
    further_queues=((STATS_VQ, Role.STATS), (MISC_VQ, Role.MISC)),
    responses=ResponseFormat(bitmap.read_message, bitmap.MAX_REQUEST_BYTES, bitmap.MAX_ID),
)

HYBRID = Dialect(
    name="hybrid",
    features=features.HYBRID,
    max_request_bytes=records.MAX_MESSAGE_BYTES,
    further_queues=((STATS_VQ, Role.STATS), (HOST_REQ_VQ, Role.MISC)),
    responses=ResponseFormat(records.read_hybrid, records.MAX_MESSAGE_BYTES, records.MAX_ID),
)

RANGES = Dialect(
    name="ranges",
    features=features.RANGES,
    max_request_bytes=records.MAX_MESSAGE_BYTES,
    further_queues=((STATS_VQ, Role.STATS), (HOST_REQ_VQ, Role.MISC)),
    responses=ResponseFormat(records.read_ranges, records.MAX_MESSAGE_BYTES, records.MAX_ID),
)

_BY_NAME = {dialect.name: dialect for dialect in (STANDARD, BITMAP, HYBRID, RANGES)}
NAMES = tuple(_BY_NAME)
"""The names of the dialects."""


def by_name(name: str) -> Dialect:
    """Return the dialect called `name`, one of `NAMES`; KeyError for any other."""
    return _BY_NAME[name]
