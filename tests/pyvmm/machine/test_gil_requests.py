# SPDX-License-Identifier: Apache-2.0
"""Threads that accept requests for the GIL; tests/kvm/test_gil_request.py tests the requests."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pyvmm.machine.vcpu_thread import GIL_SIGNAL, accept_gil_requests
from pyvmm_native import gil_request


@pytest.mark.parametrize(
    ("processors", "on_main_thread", "accepted"),
    [({0, 1}, True, True), ({0}, True, False), ({0, 1}, False, False)],
)
def test_the_main_thread_accepts_requests_with_several_processors(
    processors: set[int], on_main_thread: bool, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: processors)
    signal.signal(GIL_SIGNAL, signal.SIG_IGN)
    if on_main_thread:
        accept_gil_requests()
    else:
        thread = threading.Thread(target=accept_gil_requests)
        thread.start()
        thread.join()
    assert (signal.getsignal(GIL_SIGNAL) is gil_request.let_in) == accepted
