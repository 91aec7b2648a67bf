# SPDX-License-Identifier: Apache-2.0
"""Resident memory of this process over time, as the host's kernel counts it (proc(5)).

Huge pages of hugetlbfs are not part of the kernel's RSS, but they are memory of the process like
any other, and are added here.
"""

from __future__ import annotations

import mmap
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pyvmm.memory.huge_page_pool import hugetlbfs_bytes


def resident_bytes(pid: int | None = None) -> int:
    """Return the memory of process `pid`, or of this one, that is resident, in bytes.

    Guest RAM is part of it, in whatever pages.
    """
    rss_pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    return rss_pages * mmap.PAGESIZE + hugetlbfs_bytes(pid)


@dataclass(frozen=True)
class Sample:
    """RSS in bytes, `seconds` after the sampler started."""

    seconds: float
    rss_bytes: int


class RssSampler(threading.Thread):
    """Samples RSS every `interval_s` seconds from `start` to `stop`, in a thread of its own.

    Threads: any for its methods; `run` uses nothing of a VM.
    """

    def __init__(self, interval_s: float = 0.1) -> None:
        super().__init__(name="rss-sampler", daemon=True)
        self.samples: list[Sample] = []
        self._interval_s = interval_s
        self._begin = time.monotonic()
        self._stopped = threading.Event()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begin

    def run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.samples.append(Sample(self.elapsed_s, resident_bytes()))

    def stop(self) -> None:
        self._stopped.set()
        self.join()
