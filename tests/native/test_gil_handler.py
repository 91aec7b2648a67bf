# SPDX-License-Identifier: Apache-2.0
"""The handler of GIL requests; tests/kvm/test_gil_request.py tests requests of a vCPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from pyvmm_native import gil_request

SIGNAL = signal.SIGRTMIN + 1
TIMEOUT_S = 30
# The signal arrives after Python has restored default actions, as that of a vCPU may.
SIGNALLED_AT_THE_END = f"""
import signal
from pyvmm_native import gil_request

gil_request.install_request_handler({SIGNAL})

class Last:
    def __del__(self, raise_signal=signal.raise_signal):
        raise_signal({SIGNAL})

import sys
sys.last = Last()
"""


@pytest.fixture
def installed() -> None:
    """Install the handler, and leave it, as a machine does."""
    gil_request.install_request_handler(SIGNAL)


@pytest.mark.usefixtures("installed")
def test_a_request_that_was_granted_already_changes_nothing() -> None:
    assert signal.getsignal(SIGNAL) is gil_request.let_in
    signal.raise_signal(SIGNAL)


def test_a_handler_is_installed_on_the_main_thread_only() -> None:
    raised: list[BaseException] = []

    def install() -> None:
        try:
            gil_request.install_request_handler(SIGNAL)
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert len(raised) == 1


def test_a_request_while_python_ends_does_not_end_the_process_by_a_signal() -> None:
    argv = [sys.executable, "-c", SIGNALLED_AT_THE_END]
    done = subprocess.run(argv, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0


@pytest.mark.usefixtures("installed")
def test_a_child_starts_with_the_default_action() -> None:
    program = f"import signal; print(signal.getsignal({SIGNAL}) is signal.SIG_DFL)"
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, timeout=TIMEOUT_S, check=True, capture_output=True)
    assert done.stdout == b"True\n"


@pytest.mark.usefixtures("installed")
def test_requests_are_left_out_of_the_signals_that_are_read() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, bytes([SIGNAL, signal.SIGINT, SIGNAL, SIGNAL, signal.SIGTERM]))
        assert gil_request.read_signals(reader) == bytes([signal.SIGINT, signal.SIGTERM])
        os.write(writer, bytes([SIGNAL]))
        os.close(writer)
        assert gil_request.read_signals(reader) == b""
    finally:
        os.close(reader)
    with pytest.raises(OSError, match="Bad file descriptor"):
        gil_request.read_signals(reader)
