# SPDX-License-Identifier: Apache-2.0
"""The library that notes the first KVM_RUN of a guest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from bench.launch import TIMES_FD
from bench.native import shared_library

PROGRAM = """
import ctypes, sys
libc = ctypes.CDLL(None)
KVM_SET_USER_MEMORY_REGION, KVM_RUN = 0x4020AE46, 0xAE80
def set_region(size):
    region = (ctypes.c_uint64 * 4)(0, 0, size, 0)
    libc.ioctl(-1, ctypes.c_ulong(KVM_SET_USER_MEMORY_REGION), region)
set_region(1 << 16)
libc.ioctl(-1, ctypes.c_ulong(KVM_RUN), None)
print("probed", flush=True)
set_region(1 << 29)
libc.ioctl(-1, ctypes.c_ulong(KVM_RUN), None)
print("not reached", flush=True)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_process_ends_at_the_first_kvm_run_of_its_guest() -> None:
    library = shared_library("first_run")
    reader, writer = os.pipe()
    begin_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "LD_PRELOAD": str(library), TIMES_FD: str(writer)},
        pass_fds=(writer,),
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(writer)
    with open(reader) as times:
        taken_ns = int(times.read())
    assert done.stdout == "probed\n"
    assert begin_ns < taken_ns < time.clock_gettime_ns(time.CLOCK_MONOTONIC)
