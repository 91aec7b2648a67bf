# SPDX-License-Identifier: Apache-2.0
"""A started call runs beside its caller, which gets its result or its exception."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from pyvmm.blocking.signal_mask import END_SIGNALS
from pyvmm.blocking.started_call import StartedCall


def test_the_call_continues_while_its_caller_does() -> None:
    begun, continues = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert continues.wait(10)
        return threading.current_thread().name

    call = StartedCall("worker", work)
    assert begun.wait(10)
    continues.set()
    assert call.result() == "worker"
    assert call.result() == "worker"


def test_its_exception_is_raised_where_the_result_is_taken() -> None:
    def work() -> None:
        raise KeyError("refused")

    call = StartedCall("worker", work)
    with pytest.raises(KeyError, match="refused"):
        call.result()


def test_the_signals_that_end_a_vm_are_left_to_other_threads() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    blocked = StartedCall("worker", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())).result()
    assert set(END_SIGNALS) <= blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_process_ends_while_its_call_continues() -> None:
    program = (
        "import threading\n"
        "from pyvmm.blocking.started_call import StartedCall\n"
        "StartedCall('worker', threading.Event().wait)\n"
        "raise SystemExit(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 3
