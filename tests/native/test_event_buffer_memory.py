# SPDX-License-Identifier: Apache-2.0
"""The buffer of events takes no memory while nothing is watched, and little until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HALF_MIB = 64
PROGRAM = f"""
from pyvmm.trace.tracer import EventTracer

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

tracer = EventTracer()
before = resident_mib()
def show():
    print(resident_mib() - before)

for _ in range(20000):
    tracer.native.event("used", text="x" * 300)
show()
tracer.start({HALF_MIB} << 20)
show()
for _ in range(20000):
    tracer.native.event("used", text="x" * 300)
show()
tracer.stop()
show()
"""


@pytest.mark.resident_memory
def test_memory_for_events_is_taken_as_they_come() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    unwatched, watched, used, stopped = map(float, done.stdout.split())
    assert unwatched < 0.5
    assert watched < 0.5
    assert 5 < used < 8
    assert stopped < 1
