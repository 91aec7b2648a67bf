# SPDX-License-Identifier: Apache-2.0
"""A fake guest: a ring and a driver that sends the requests of a real one, without a VM.

A `BalloonDriver` brings its balloon up in RAM that is never discarded. `inflate` then sends
requests one after the other, as Linux does, which waits for each; only the device's part is timed,
from the notification to the used entry (and the interrupt after it).

The driver of guest.img sends two kinds of requests in the bitmap dialect: a bit for each block of
2 MiB where it finds these, up to 1 GiB at a time, and a bit for each page elsewhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import chain
from time import perf_counter
from typing import cast

from devices.balloon.bitmap import HEADER, PAGE_SHIFT
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect
from devices.testing.balloon.driver import INFLATE, BalloonDriver
from devices.testing.balloon.requests import (
    bitmap_request,
    hybrid_records,
    range_records,
    record_request,
)
from devices.testing.ram import AnonymousRam
from pyvmm.memory.ram import Ram
from pyvmm_native.runs import PageRuns

ROUND_PAGES = 65536
"""Pages our guest driver collects for one request: ROUND_PAGES of its patches."""
BLOCK_SHIFT = 21
BLOCK_PAGES = 1 << BLOCK_SHIFT - PAGE_SHIFT
ROUND_BLOCKS = 512
"""Blocks of 2 MiB that it collects for one request: BLOCK_ROUND_PAGES of its patches, 1 GiB."""
PIECE_BYTES = 32 * 1024
"""The bitmap is in buffers of this size, each a descriptor."""
PFNS_PER_ARRAY = 256
"""Page numbers in one request of Linux's own driver."""
WORD_PAGES = 64

Request = list[bytes]
"""The contents of one buffer's device-readable descriptors."""


class FakeGuest:
    """The driver of a balloon that speaks `dialect`; its rings take 20 MiB from `rings_gpa`.

    With `blocks`, which is for the bitmap dialect, it names blocks of 2 MiB.
    """

    def __init__(self, dialect: Dialect, ram: Ram, rings_gpa: int, *, blocks: bool = False) -> None:
        memory = cast(AnonymousRam, ram)
        self._driver = BalloonDriver(dialect, ram=memory, rings_gpa=rings_gpa).start()
        self._encode = block_requests if blocks else ENCODERS[dialect.name]

    def requests(self, pages: PageRuns) -> list[Request]:
        """Return the driver's requests to inflate by `pages`, ascending."""
        return list(self._encode(pages))

    def inflate(self, requests: list[Request]) -> float:
        """Send the requests; return the seconds in which the device served them."""
        board, queue = self._driver.board, self._driver.queues[INFLATE]
        notify, balloon = board.transport.serve_queue, board.balloon
        seconds = 0.0
        for request in requests:
            queue.add(request)
            begin = perf_counter()
            while notify(INFLATE):
                pass
            seconds += perf_counter() - begin
            assert len(queue.take_used()) == 1
        assert balloon.counters.inflate.bad_payloads == 0
        board.tracer.events.clear()
        board.msi.triggered.clear()
        return seconds


def bitmap_requests(pages: PageRuns) -> Iterator[Request]:
    """Yield a header and a bitmap for each round."""
    for first, words in _rounds(pages):
        bits = words.tobytes()
        yield [
            HEADER.pack(0, PAGE_SHIFT, 0, 0, 0, first, len(bits)),
            *(bits[i : i + PIECE_BYTES] for i in range(0, len(bits), PIECE_BYTES)),
        ]


def bitmap_pieces(pages: PageRuns) -> Iterator[PageRuns]:
    """Yield the pages of each of `bitmap_requests`."""
    for first, words in _rounds(pages):
        yield PageRuns.from_bitmap(words.tobytes(), first)


def block_requests(pages: PageRuns) -> Iterator[Request]:
    """Yield a header and a bitmap of blocks for each round; `pages` are whole blocks."""
    for blocks in _round_blocks(pages):
        yield bitmap_request(blocks, page_shift=BLOCK_SHIFT)


def block_pieces(pages: PageRuns) -> Iterator[PageRuns]:
    """Yield the pages of each of `block_requests`."""
    for blocks in _round_blocks(pages):
        yield PageRuns((block * BLOCK_PAGES, BLOCK_PAGES) for block in blocks)


def pfn_requests(pages: PageRuns) -> Iterator[Request]:
    """Yield an array of PFNs for each `PFNS_PER_ARRAY` pages (VIRTIO 1.2, 5.5.6)."""
    pfns = array("I")
    for start, count in pages:
        pfns.extend(range(start, start + count))
    for i in range(0, len(pfns), PFNS_PER_ARRAY):
        yield [pfns[i : i + PFNS_PER_ARRAY].tobytes()]


def hybrid_requests(pages: PageRuns) -> Iterator[Request]:
    """Yield a header and records for each round: blocks, and bitmaps of 64 pages."""
    return (record_request(hybrid_records(pfns)) for pfns in _round_pfns(pages))


def range_requests(pages: PageRuns) -> Iterator[Request]:
    """Yield a header and records for each round: ranges."""
    return (record_request(range_records(pfns)) for pfns in _round_pfns(pages))


Encoder = Callable[[PageRuns], Iterator[Request]]
ENCODERS: dict[str, Encoder] = {
    STANDARD.name: pfn_requests,
    BITMAP.name: bitmap_requests,
    HYBRID.name: hybrid_requests,
    RANGES.name: range_requests,
}
"""By dialect."""


def _round_pfns(pages: PageRuns) -> Iterator[Iterator[int]]:
    """Yield the page numbers of each round."""
    for piece in bitmap_pieces(pages):
        yield chain.from_iterable(range(start, start + count) for start, count in piece)


def _round_blocks(pages: PageRuns) -> Iterator[list[int]]:
    """Yield the numbers of the blocks of each round."""
    assert pages.whole(BLOCK_PAGES) == pages, "not whole blocks"
    blocks = [
        block
        for start, count in pages
        for block in range(start // BLOCK_PAGES, (start + count) // BLOCK_PAGES)
    ]
    for i in range(0, len(blocks), ROUND_BLOCKS):
        yield blocks[i : i + ROUND_BLOCKS]


def _rounds(pages: PageRuns) -> Iterator[tuple[int, array[int]]]:
    """Yield (page number of bit 0, bitmap) of each round, without empty words around it."""
    first, words = 0, array("Q")
    collected = 0
    for word_pfn, word in _words(pages):
        if words and (collected >= ROUND_PAGES or word_pfn - first >= 1 << 20):
            yield first, words
            words, collected = array("Q"), 0
        if not words:
            first = word_pfn
        words.extend([0] * ((word_pfn - first) // WORD_PAGES - len(words)))
        words.append(word)
        collected += word.bit_count()
    if words:
        yield first, words


def _words(pages: PageRuns) -> Iterator[tuple[int, int]]:
    """Yield (page number of bit 0, word) of each non-zero word of a bitmap of `pages`."""
    waiting_pfn, waiting = -1, 0
    for start, count in pages:
        end = start + count
        while start < end:
            pfn = start - start % WORD_PAGES
            stop = min(end, pfn + WORD_PAGES)
            if pfn != waiting_pfn:
                if waiting:
                    yield waiting_pfn, waiting
                waiting_pfn, waiting = pfn, 0
            waiting |= (1 << stop - pfn) - (1 << start - pfn)
            start = stop
    if waiting:
        yield waiting_pfn, waiting
