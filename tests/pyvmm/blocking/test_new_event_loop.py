# SPDX-License-Identifier: Apache-2.0
"""An event loop that cannot be created is one error, and nothing is printed besides."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyvmm.blocking.event_loop import LOOP_DESCRIPTORS

PROGRAM = """
import os, resource, sys
from pyvmm.blocking.event_loop import run_on_new_loop
from pyvmm.blocking.loop_thread import LoopThread

async def main():
    return "has run"

def in_thread():
    thread = LoopThread("test")
    try:
        return thread.call(main())
    finally:
        thread.close()

lowest = os.open("/dev/null", os.O_RDONLY)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + int(sys.argv[1]), 4096))
try:
    print(in_thread() if sys.argv[2] == "thread" else run_on_new_loop(main))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("where", ["here", "thread"])
@pytest.mark.parametrize("left", range(LOOP_DESCRIPTORS + 1))
def test_with_few_descriptors(left: int, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(left), where],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    expected = "has run\n" if left == LOOP_DESCRIPTORS else "Too many open files\n"
    assert done.stdout == expected
