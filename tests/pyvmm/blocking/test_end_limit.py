# SPDX-License-Identifier: Apache-2.0
"""The limit begins once, and a signal that arrives meanwhile does not wait for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from pyvmm.blocking.end_limit import EndLimit

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


def test_a_second_signal_while_the_first_starts_it() -> None:
    """As at the end of a systemd session, which sends SIGTERM and SIGHUP together."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_without_a_thread_the_signals_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refused)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(RuntimeError, match="new thread"):
        EndLimit(600, lambda: None, lambda: 1).start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
