# SPDX-License-Identifier: Apache-2.0
"""Runnable part of chapter 1: run the guest, and print and record each exit."""

from __future__ import annotations

from pykvm import abi, exits
from pyvmm.learn.chapter_01 import solution
from pyvmm.learn.chapter_01.guest import ready_vcpu
from pyvmm.learn.stage import Stage, record_events

TEXT = b"Hi!\n\0"


def run(stage: Stage) -> None:
    """Run a guest that sends `TEXT`."""
    sent = bytearray()
    with record_events(stage.recording) as events, ready_vcpu(TEXT) as vcpu:
        reason = 0
        while reason != abi.KVM_EXIT_HLT:
            reason = vcpu.run()
            line = exits.describe(vcpu.kvm_run)
            io = vcpu.kvm_run.io
            if reason == abi.KVM_EXIT_IO:
                write = io.direction == abi.KVM_EXIT_IO_OUT
                events.event(
                    "vm_exit", vcpu=0, reason="pio", address=io.port, size=io.size, write=int(write)
                )
                if write:
                    sent.append(vcpu.run_area[io.data_offset])
                    line += f": {chr(sent[-1])!r}"
                else:
                    serial = io.port == solution.SERIAL_STATUS
                    value = solution.CAN_SEND if serial else solution.NO_DEVICE
                    vcpu.run_area[io.data_offset] = value
                    line += f": answer {value:#x}"
            else:
                events.event("vm_exit", vcpu=0, reason="other", address=0, size=0, write=0)
            stage.say(f"  {line}")
    stage.say(f"\nThe guest has sent: {sent.decode()!r}")
