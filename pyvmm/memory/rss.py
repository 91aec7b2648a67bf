# SPDX-License-Identifier: Apache-2.0
"""Resident memory of this process over time, as the host's kernel counts it (proc(5), statm)."""

from __future__ import annotations

import mmap
import threading
import time
from dataclasses import dataclass
from pathlib import Path


def resident_bytes(pid: int | None = None) -> int:
    """Return the RSS of process `pid`, or of this one, in bytes, guest RAM included."""
    return int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]) * mmap.PAGESIZE


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
