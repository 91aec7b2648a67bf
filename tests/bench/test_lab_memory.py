# SPDX-License-Identifier: Apache-2.0
"""The lab's free memory is touched before a benchmark, and no host's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("bench")

from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE
from pyvmm.units import MIB

TOUCHED_MIB, LEEWAY_MIB = 256, 128

PROGRAM = f"""
import resource
from bench.lab_memory import free_bytes, touch_lab_memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
touch_lab_memory(spared_bytes=free_bytes() - {TOUCHED_MIB * MIB})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def touched_mib(in_lab: str) -> int:
    """Return the memory that a process touches at once that is in the lab, or is not."""
    environment = os.environ | {IN_LAB_VARIABLE: in_lab}
    if not in_lab:
        del environment[IN_LAB_VARIABLE]
    command = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    return int(output) * 1024 // MIB


def test_free_memory_of_the_lab_is_touched() -> None:
    assert abs(touched_mib("1") - TOUCHED_MIB) <= LEEWAY_MIB


def test_memory_of_a_host_is_not_touched() -> None:
    assert touched_mib("") < LEEWAY_MIB
