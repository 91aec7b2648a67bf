# SPDX-License-Identifier: Apache-2.0
"""Run the tests that need a working KVM: `python -m tests.with_kvm [pytest's arguments]`.

They run here where this machine's KVM is fit, else in the lab. A lab has one processor, so there
are two of them side by side, and each takes the next file of tests that neither has taken yet
(`tests.resume`). Without arguments all of tests/kvm is run; collecting the others takes minutes in
a lab.

The lab is an emulated machine, and an emulator may fail in ways that no test means. So what did not
pass in the labs is run once more in new ones, and fails if it fails there. On real KVM nothing is.
A test that takes too long ends the whole run, saying where each thread is: an exception in the main
thread would be left waiting for whatever hangs.

Environment: LABS (2), LAB_MIB (6144) for each, LIMIT_S (1500) for each run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pyvmm.lab.choose import Choice, choose_kvm
from tests.kvm.verifying_guest import GUEST_CORRUPTED

ROOT = Path(__file__).parents[1]
MISUNDERSTOOD = 4
"""pytest's status for a command line that it does not understand."""


def pytest_here(record: Path, arguments: list[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "pytest", "-p", "tests.resume", f"--resume={record}", "-m", "kvm"),
        *("-v", "--no-header", "--timeout-method=thread", "--durations=10", *arguments),
    ]


def in_a_lab(command: list[str]) -> list[str]:
    memory, limit = os.environ.get("LAB_MIB", "6144"), os.environ.get("LIMIT_S", "1500")
    lab = ["lab", "--memory", memory, "--timeout", limit, "--"]
    return [sys.executable, "-m", "pyvmm", *lab, *command]


def side_by_side(command: list[str], count: int) -> int:
    """Run `command` so many times at once; the gravest status. Lines say where they come from."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
        for _ in range(count)
    ]
    threads = [
        threading.Thread(target=_relay, args=(process, f"lab {number}: ".encode()))
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


def _relay(process: subprocess.Popen[bytes], label: bytes) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.buffer.write(label + line)
        sys.stdout.buffer.flush()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory)
        command = pytest_here(record, arguments or ["tests/kvm"])
        if choose_kvm("auto") is Choice.HOST:
            return subprocess.run(command, check=False, cwd=ROOT).returncode
        labs = int(os.environ.get("LABS", "2"))
        status = side_by_side(in_a_lab(command), labs)
        if status in (0, MISUNDERSTOOD, GUEST_CORRUPTED):  # what a guest has lost is never excused
            return status
        print(f"status {status}; once more, in new labs, for what has not passed", flush=True)
        for claim in record.glob("*.taken"):
            claim.unlink()
        return side_by_side(in_a_lab(command), labs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
