# SPDX-License-Identifier: Apache-2.0
"""Free memory of the C heap is returned to the host."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
from pyvmm.memory.heap import free_unused_heap

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

del [bytes(8 << 20) for _ in range(2)][0]  # larger buffers than this are mapped from now on
before = resident_mib()
buffers = [b"x" * (4 << 20) for _ in range(8)]
kept = b"x" * (1 << 20)  # above them in the heap
buffers.clear()
freed = resident_mib()
free_unused_heap()
print(freed - before, resident_mib() - before, len(kept))
"""


@pytest.mark.resident_memory
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_free_memory_of_the_heap_is_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    before_mib, after_mib, _ = map(int, done.stdout.split())
    assert before_mib > 16  # glibc has kept it
    assert after_mib < 8
