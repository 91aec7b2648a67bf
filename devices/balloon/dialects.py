# SPDX-License-Identifier: Apache-2.0
"""The two languages a balloon driver can speak, as data.

A dialect says which features and queues the balloon offers and how a request on the inflate or
deflate queue is decoded to `PageRuns`. It is chosen by configuration and never inferred from
feature bits: bit 3 means PAGE_BITMAP in one dialect and FREE_PAGE_HINT in the other, and a device
that reads PFN arrays as bitmap headers discards the wrong memory.

* `STANDARD`: VIRTIO 1.2, section 5.5. A request is an array of 32-bit page frame numbers.
* `BITMAP`: the virtio-balloon bitmap extension of 2016. A request is a header and a bitmap, see
  `devices.balloon.bitmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from devices.balloon import bitmap, features
from devices.balloon.features import (
    FREE_PAGE_HINT,
    MISC_VQ,
    REPORTING,
    STATS_VQ,
    Features,
)
from devices.errors import BadPayload
from pyvmm_native.ring import Chain
from pyvmm_native.runs import PageRuns

PFN_BYTES = 4
MAX_PFNS = 64 * 1024
"""Longest PFN array taken, 256 MiB of pages a request; Linux sends at most 256 at a time."""


class Role(StrEnum):
    """What a queue is for (VIRTIO 1.2, 5.5.2)."""

    INFLATE = "inflate"
    DEFLATE = "deflate"
    STATS = "stats"
    MISC = "misc"
    FREE_PAGE_HINT = "free_page_hint"
    REPORTING = "reporting"


GiveBack = Callable[[Chain, int], None]
"""Returns a buffer that a queue's handler kept, with how many bytes were written to it."""


@dataclass(frozen=True, eq=False)
class Dialect:
    """Features, queues and request format of one balloon protocol."""

    name: str
    features: Features
    max_request_bytes: int
    """Longest valid inflate or deflate request."""
    decode: Callable[[bytes], PageRuns]
    """Pages named by an inflate or deflate request, in 4 KiB frames; raises BadPayload."""

    further_queues: tuple[tuple[int, Role], ...]
    """(feature bit, role) of the queues after inflate and deflate, in order of their numbers."""

    def roles(self, negotiated: int) -> tuple[Role, ...]:
        """What each queue is for, by queue number, once `negotiated` features are settled.

        The only place that knows queue numbers. Drivers number the queues that exist without
        gaps, so a queue whose feature is missing shifts every later one.
        """
        further = (role for feature, role in self.further_queues if negotiated & feature)
        return (Role.INFLATE, Role.DEFLATE, *further)


def decode_pfns(payload: bytes) -> PageRuns:
    """Pages of a PFN array: little-endian u32, address / 4096 each (VIRTIO 1.2, 5.5.6)."""
    if not payload or len(payload) % PFN_BYTES:
        raise BadPayload(f"{len(payload)} bytes are not an array of 32-bit page frame numbers")
    return PageRuns.from_pfns(payload)


STANDARD = Dialect(
    name="standard",
    features=features.STANDARD,
    max_request_bytes=MAX_PFNS * PFN_BYTES,
    decode=decode_pfns,
    further_queues=(
        (STATS_VQ, Role.STATS),
        (FREE_PAGE_HINT, Role.FREE_PAGE_HINT),
        (REPORTING, Role.REPORTING),
    ),
)

BITMAP = Dialect(
    name="bitmap",
    features=features.BITMAP,
    max_request_bytes=bitmap.MAX_REQUEST_BYTES,
    decode=bitmap.decode,
    further_queues=((STATS_VQ, Role.STATS), (MISC_VQ, Role.MISC)),
)

_BY_NAME = {dialect.name: dialect for dialect in (STANDARD, BITMAP)}
NAMES = tuple(_BY_NAME)


def by_name(name: str) -> Dialect:
    """The dialect called `name`, one of `NAMES`; KeyError for any other."""
    return _BY_NAME[name]
