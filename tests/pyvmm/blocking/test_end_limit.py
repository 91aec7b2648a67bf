# SPDX-License-Identifier: Apache-2.0
"""The limit begins once, and a signal that arrives meanwhile does not wait for it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pyvmm.blocking.end_limit import EndLimit
from tests.pyvmm.blocking.refused_threads import refused_threads

PROGRAM = """
import os, signal, threading
from pyvmm.blocking.end_limit import EndLimit

def start(timer, start=threading.Timer.start):
    print("started", flush=True)
    start(timer)
    os.kill(os.getpid(), signal.SIGHUP)

threading.Timer.start = start
limit = EndLimit(600, lambda: None, lambda: 1)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: limit.start())
os.kill(os.getpid(), signal.SIGTERM)
limit.cancel()
"""

WITHOUT_THREADS = """
import signal, sys, threading
from pyvmm.blocking.end_limit import EndLimit

allowed = int(sys.argv[1])

def start(timer, start=threading.Thread.start):
    global allowed
    if not allowed:
        threading.stack_size(1 << 47)  # no address space is as large
    allowed -= 1
    start(timer)

threading.Thread.start = start
EndLimit(0.1, lambda: print("released", flush=True), lambda: 7).start()
signal.sigwait([signal.SIGUSR1])
"""


def test_a_second_signal_while_the_first_starts_it() -> None:
    """As at the end of a systemd session, which sends SIGTERM and SIGHUP together."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_without_a_thread_the_kernel_limits_the_time() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    limit = EndLimit(600, lambda: None, lambda: 1)
    with refused_threads():
        limit.start()
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    limit.cancel()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(("allowed", "status"), [(0, -signal.SIGALRM), (1, 7), (2, 7)])
def test_without_threads_the_process_ends(allowed: int, status: int) -> None:
    """At the limit, or when the one that is to release would be started."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS, str(allowed)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout == ("released\n" if allowed else "")
