# SPDX-License-Identifier: Apache-2.0
"""Sets of guest page frames as runs of consecutive ones."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, final

from typing_extensions import Buffer

@final
class PageRuns:
    """An immutable set of 4 KiB guest page frames, kept as ascending, separate runs.

    `runs` are (start_pfn, count) pairs in any order; overlapping and touching ones are merged.
    ValueError when a count is not positive or a run is not within [0, 2**52) frames.

    Iterating gives (start_pfn, count), `len` is the number of runs, `pfn in runs` asks for one
    frame in O(log runs). Two are equal when they hold the same frames. Not hashable.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None: ...
    @classmethod
    def from_bitmap(cls, bitmap: Buffer, start_pfn: int = 0) -> PageRuns:
        """The frames whose bits are set: bit 0 of byte 0 is frame `start_pfn`.

        `bitmap` is a little-endian bit string of any length in bytes, at any alignment. Reads it
        once and takes memory in proportion to the runs found. ValueError when it reaches beyond
        2**52 frames or `start_pfn` is negative.
        """

    @classmethod
    def from_pfns(cls, pfns: Buffer) -> PageRuns:
        """The frames of an array of little-endian 32-bit PFNs (VIRTIO 1.2, 5.5.6).

        In any order; duplicates count once. ValueError when the length in bytes is not a multiple
        of 4.
        """

    def scaled(self, factor: int) -> PageRuns:
        """The 4 KiB frames of these, taken as frames of `factor` times 4 KiB.

        ValueError when `factor` is not positive or the result exceeds 2**52 frames.
        """

    def intersect(self, other: PageRuns) -> PageRuns:
        """The frames in both."""

    def subtract(self, other: PageRuns) -> PageRuns:
        """The frames in this and not in `other`."""

    def union(self, other: PageRuns) -> PageRuns:
        """The frames in either."""

    def whole(self, pages_per_unit: int) -> PageRuns:
        """The frames of those units of `pages_per_unit` frames that are wholly in the set.

        Units are aligned to their size in guest-physical address space. For host pages larger
        than 4 KiB: only whole ones can be given back. ValueError unless positive.
        """

    def per_cell(self, pages_per_cell: int, cells: int) -> list[int]:
        """How many frames lie in each of `cells` chunks of `pages_per_cell` frames, from 0 on.

        Frames beyond the last cell are not counted. ValueError unless `pages_per_cell` is positive
        and `cells` not negative, both at most 2**52.
        """

    @property
    def pages(self) -> int:
        """Number of frames."""

    @property
    def largest(self) -> int:
        """Frames in the longest run; 0 when empty."""

    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __iter__(self) -> Iterator[tuple[int, int]]: ...
    def __contains__(self, pfn: int) -> bool: ...
    def __eq__(self, other: object) -> bool: ...
