# SPDX-License-Identifier: Apache-2.0
"""Defects that the sanitizers must notice, each built into a copy of one native module.

They show that the modules are instrumented and that the tests reach what each defect breaks, so a
build without a sanitizer cannot pass. Some are faults that these modules have had.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.sanitizers.build import ADDRESS, THREAD, Defect, Sanitizer

RACE = "data race"
OVERFLOW = "heap-buffer-overflow"


class SeededDefect(NamedTuple):
    """A defect, the arguments of the Python process that must fail, and a part of its report."""

    title: str
    sanitizer: Sanitizer
    defect: Defect
    arguments: tuple[str, ...]
    report: str


def scenario(title: str, name: str, module: str, before: str, after: str) -> SeededDefect:
    arguments = ("-m", "tests.sanitizers.races", name)
    return SeededDefect(title, THREAD, Defect(module, before, after), arguments, RACE)


def unit_test(
    title: str, test: str, module: str, before: str, after: str, report: str = OVERFLOW
) -> SeededDefect:
    arguments = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"tests/native/{test}")
    return SeededDefect(title, ADDRESS, Defect(module, before, after), arguments, report)


DEFECTS = (
    scenario(
        "the dirty log is loaded before the flag",
        "log_copies",
        "memory",
        before="""\
        if not length or not self.logs_dirty_pages():
            return
        dirty = self._dirty
""",
        after="""\
        dirty = self._dirty
        if not length or not self.logs_dirty_pages():
            return
""",
    ),
    scenario(
        "the flag of dirty logging is loaded plainly",
        "log_copies",
        "memory",
        before="return load_acquire(&self._dirty_logging)",
        after="return self._dirty_logging",
    ),
    scenario(
        "a discard loads the flag of dirty logging plainly",
        "log_discards",
        "discard",
        before="memory.logs_dirty_pages()",
        after="memory._dirty_logging",
    ),
    scenario(
        "the available index is loaded without acquire order",
        "ring",
        "ring",
        before="avail_idx = load_acquire_u16(self._avail + RING_IDX)",
        after="avail_idx = load_u16(self._avail + RING_IDX)",
    ),
    scenario(
        "the used index is stored without release order",
        "ring_with_event_index",
        "ring",
        before="store_release_u16(self._used + RING_IDX, ",
        after="store_u16(self._used + RING_IDX, ",
    ),
    scenario(
        "the console's length is read without its mutex",
        "console",
        "serial",
        before="""\
        pthread_mutex_lock(&self.mutex)
        length = self.length
        pthread_mutex_unlock(&self.mutex)
""",
        after="        length = self.length\n",
    ),
    unit_test(
        "no bytes are copied to NULL",
        "test_native_serial.py",
        "serial",
        before="if length and not self.closed:",
        after="if not self.closed:",
        report="null pointer passed",
    ),
    unit_test(
        "a page beyond the dirty log is marked",
        "test_memory_properties.py",
        "memory",
        before="(end + PAGE_BYTES - 1) >> PAGE_SHIFT",
        after="(end + PAGE_BYTES) >> PAGE_SHIFT",
    ),
    unit_test(
        "a chain of one element too many is accepted",
        "test_native_ring.py",
        "ring",
        before="if self._segment_count == self.size:",
        after="if self._segment_count == self.size + 1:",
    ),
)
