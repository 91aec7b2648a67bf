# SPDX-License-Identifier: Apache-2.0
"""A vCPU whose exit needs Python is let in by a main thread that computes."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from pykvm import abi
from pyvmm.machine.vcpu_thread import accept_gil_requests
from pyvmm_native import kvm_run
from tests.kvm.bare_metal import Devices, guest

pytestmark = pytest.mark.kvm

READS = 200
"""As many, each after a while in which the main thread takes the GIL."""
PAUSED_READS = """
    bf c8 00        mov di, 200
    66 b9 e0 93 04 00   mov ecx, 300000
    67 e2 fd        loop, by ecx
    ba 80 00        mov dx, 0x80
    ec              in al, dx
    4f              dec di
    75 f0           jnz to the loop
    f4              hlt
"""
SWITCH_INTERVAL_S = 0.2
SHARE_OF_INTERVALS = 0.25
"""On a busy host a few reads wait for the interval: those after many that did not wait at all."""


@pytest.mark.timeout(60)
def test_accesses_do_not_wait_for_the_switch_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they in a lab with one processor, where a machine would not request the GIL."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    devices, before = Devices(answers=[7] * READS), sys.getswitchinterval()
    with guest(PAUSED_READS) as machine:
        vcpu, reasons = machine.vcpu, []
        vcpu_thread = threading.Thread(
            target=lambda: reasons.append(kvm_run.run(vcpu.fileno(), vcpu.run_area, devices)),
            daemon=True,
        )
        accept_gil_requests()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            begin = time.monotonic()
            vcpu_thread.start()
            while vcpu_thread.is_alive():
                sum(range(1000))
            duration_s = time.monotonic() - begin
        finally:
            sys.setswitchinterval(before)
    assert reasons == [abi.KVM_EXIT_HLT]
    assert len(devices.accesses) == READS
    assert duration_s < SHARE_OF_INTERVALS * READS * SWITCH_INTERVAL_S
