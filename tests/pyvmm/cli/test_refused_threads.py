# SPDX-License-Identifier: Apache-2.0
"""A command that may not start one of its threads ends with one line, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm import KvmError, System
from tests.pyvmm.blocking.refused_threads import STACK_BYTES
from tests.pyvmm.boot.elf_kernel import elf_kernel

PROGRAM = """
import sys, threading
allowed, stack_bytes = int(sys.argv[1]), int(sys.argv[2])

def start(thread, start=threading.Thread.start):
    global allowed
    if not allowed:
        threading.stack_size(stack_bytes)
    allowed -= 1
    start(thread)

threading.Thread.start = start
from pyvmm.cli.main import main
from pyvmm.machine import kvm_verdict
kvm_verdict.record_fit()
main(sys.argv[3:])
"""
REFUSED = (
    "pyvmm: the host lets this process start no more threads;"
    " raise the limit of processes and threads, for example: ulimit -u 4096\n"
)


@pytest.mark.parametrize("allowed", range(9))
def test_each_thread_of_a_start(tmp_path: Path, allowed: int) -> None:
    try:
        with System() as system, system.create_vm():
            pass
    except KvmError as error:
        pytest.skip(f"no KVM here: {error}")
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf_kernel())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(allowed), str(STACK_BYTES), "run", "--kernel", kernel,
         "--memory", "128M", "--cpus", "4", "--qmp", f"unix:{tmp_path}/control"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", REFUSED)
    assert [path for path in tmp_path.rglob("*") if path.is_socket()] == []
