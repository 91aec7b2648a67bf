# SPDX-License-Identifier: Apache-2.0

from typing import NamedTuple

from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

class Discarded(NamedTuple):
    bytes: int
    calls: int

def discard(memory: GuestMemory, runs: PageRuns) -> Discarded: ...
def have_process_madvise() -> bool: ...
def private_anonymous_ranges() -> list[tuple[int, int]]: ...
def is_within(ranges: list[tuple[int, int]], start: int, end: int) -> bool: ...
