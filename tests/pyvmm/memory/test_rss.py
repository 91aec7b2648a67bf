# SPDX-License-Identifier: Apache-2.0
"""Resident memory, and its samples over time."""

from __future__ import annotations

import gc
import mmap
import os
import time

import pytest

from pyvmm.memory.rss import RssSampler, resident_bytes
from pyvmm.units import MIB


@pytest.mark.resident_memory
def test_resident_memory_grows_with_what_is_touched() -> None:
    gc.collect()  # what other tests have left would be freed meanwhile
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        before = resident_bytes()
        for offset in range(0, len(area), mmap.PAGESIZE):
            area[offset] = 1
        grown = resident_bytes(os.getpid()) - before
    assert 56 * MIB < grown < 96 * MIB


def test_samples_are_taken_until_the_sampler_is_stopped() -> None:
    sampler = RssSampler(interval_s=0.01)
    sampler.start()
    deadline = time.monotonic() + 20
    while len(sampler.samples) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    sampler.stop()
    assert not sampler.is_alive()
    seconds = [sample.seconds for sample in sampler.samples]
    assert len(seconds) >= 3
    assert seconds == sorted(seconds)
    assert 0.01 <= seconds[0] <= seconds[-1] <= sampler.elapsed_s < 60
    assert all(sample.rss_bytes > MIB for sample in sampler.samples)
