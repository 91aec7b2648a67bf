# SPDX-License-Identifier: Apache-2.0
"""Run the tests that need a working KVM: `python -m tests.with_kvm [pytest's arguments]`.

They run on this host if its KVM is usable, else in the lab. A lab has one processor, so two of them
run concurrently and share the test files (`tests.resumable_run`). Without arguments they run all of
tests/kvm; collecting the other tests takes minutes in a lab.

The lab is an emulated machine, and its emulator may fail in ways that no test is about. So tests
that have not passed are retried once, in new labs; with a real KVM none is. A test that exceeds its
time-out ends the whole run and prints the stack of each thread: an exception in the main thread
would wait for the thread that hangs.

Environment: LABS (2), LAB_MIB (6144) and LAB_CPUS (pyvmm's default) for each, LIMIT_S (1500) for
each run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pyvmm.lab.choose import KvmProvider, choose_kvm
from pyvmm.lab.processors import DEFAULT_CPUS
from tests.kvm.verifying_guest import GUEST_CORRUPTED

ROOT = Path(__file__).parents[1]
USAGE_ERROR = 4
"""pytest's exit status for a command line error."""


def pytest_here(record: Path, arguments: list[str]) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.resumable_run",
            f"--resume={record}",
            "-m",
            "kvm",
        ),
        *("-v", "--no-header", "--timeout-method=thread", "--durations=10", *arguments),
    ]


def in_a_lab(command: list[str]) -> list[str]:
    memory, limit = os.environ.get("LAB_MIB", "6144"), os.environ.get("LIMIT_S", "1500")
    cpus = os.environ.get("LAB_CPUS", str(DEFAULT_CPUS))
    lab = ["lab", "--memory", f"{memory}M", "--cpus", cpus, "--timeout", limit, "--"]
    return [sys.executable, "-m", "pyvmm", *lab, *command]


def run_concurrently(command: list[str], count: int) -> int:
    """Run `command` in `count` processes; label their output, and return the worst status."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
        for _ in range(count)
    ]
    threads = [
        threading.Thread(target=_copy_lines, args=(process, f"lab {number}: ".encode()))
        for number, process in enumerate(running, 1)
    ]
    for thread in threads:
        thread.start()
    try:
        statuses = [process.wait() for process in running]
    finally:
        for process in running:
            process.kill()
        for thread in threads:
            thread.join()
    return GUEST_CORRUPTED if GUEST_CORRUPTED in statuses else max(statuses, key=abs)


def _copy_lines(process: subprocess.Popen[bytes], label: bytes) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.buffer.write(label + line)
        sys.stdout.buffer.flush()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory)
        command = pytest_here(record, arguments or ["tests/kvm"])
        if choose_kvm("auto") is KvmProvider.HOST:
            return subprocess.run(command, check=False, cwd=ROOT).returncode
        labs = int(os.environ.get("LABS", "2"))
        status = run_concurrently(in_a_lab(command), labs)
        if status in (0, USAGE_ERROR, GUEST_CORRUPTED):  # lost data is never retried
            return status
        print(f"status {status}; retrying the tests that have not passed in new labs", flush=True)
        for claim in record.glob("*.claimed"):
            claim.unlink()
        return run_concurrently(in_a_lab(command), labs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
