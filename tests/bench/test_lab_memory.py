# SPDX-License-Identifier: Apache-2.0
"""The lab's free memory is touched before a benchmark, and no host's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("bench")

from bench.lab_memory import free_bytes
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE
from pyvmm.units import MIB

SPARED_MIB, TOUCHED_MIB, LEEWAY_MIB = 64, 256, 128

PROGRAM = f"""
from bench import lab_memory
from tests.peak_memory import peak_kib

# What other processes leave free may change between two looks.
lab_memory.free_bytes = lambda: {SPARED_MIB + TOUCHED_MIB} * {MIB}
before = peak_kib()
lab_memory.touch_lab_memory(spared_bytes={SPARED_MIB} * {MIB})
print(peak_kib() - before)
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


def test_free_memory_is_found() -> None:
    pages = os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_bytes() < pages * os.sysconf("SC_PAGE_SIZE")
