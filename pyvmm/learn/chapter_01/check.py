# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 1: the exercise's `run` serves guests on KVM, within a number of exits."""

from __future__ import annotations

from typing import Any

from pykvm import abi, exits
from pykvm.vcpu import Vcpu
from pyvmm.learn.chapter_01.guest import ready_vcpu
from pyvmm.learn.checking import CheckFailed, expect

MAX_EXITS = 200
"""More exits than a correct monitor needs for the texts here."""
ABSENT_PORT, SERIAL_STATUS = 0x2FD, 0x3FD


class CountingVcpu:
    """The vCPU `vcpu`, which ends after `MAX_EXITS` exits, and keeps the ports that were read."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.reads: list[int] = []
        self._exits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vcpu, name)

    def run(self) -> int:
        """Run the vCPU. Raises CheckFailed after `MAX_EXITS` exits."""
        reason = self._vcpu.run()
        self._exits += 1
        io = self._vcpu.kvm_run.io
        if reason == abi.KVM_EXIT_IO and io.direction == abi.KVM_EXIT_IO_IN:
            self.reads.append(io.port)
        if self._exits > MAX_EXITS:
            raise CheckFailed(
                f"After {MAX_EXITS} exits the guest still runs; the last one was"
                f" {exits.describe(self._vcpu.kvm_run)}. The guest repeats a read until the value"
                " has bit 5 set. KVM completes the instruction IN at the next KVM_RUN: from where"
                " does it take the value? (KVM API, section 5, KVM_EXIT_IO)"
            )
        return reason


def check(exercise: Any) -> None:
    """Check `run` of the module `exercise`."""
    for text in (b"Hi!\n", b"A longer text, with all of its characters.\n"):
        _check_text(exercise, text)
    _check_other_exit(exercise)


def _check_text(exercise: Any, text: bytes) -> None:
    sent = bytearray()
    with ready_vcpu(text + b"\0") as vcpu:
        counting = CountingVcpu(vcpu)
        exercise.run(counting, sent)
        final_al = vcpu.get_regs().rax & 0xFF
    if SERIAL_STATUS not in counting.reads:
        raise CheckFailed(
            f"The guest has read port {ABSENT_PORT:#x}, where no device is, and got {final_al:#x}."
            " Without a device a read returns all ones, 0xff, and this guest halts at any other"
            " value. Is the answer in the data area of the exit, and does it depend on the port?"
        )
    expect(
        bytes(sent) == text,
        f"The guest was to send {text!r}, and the serial port has sent {bytes(sent)!r}. Append"
        " each byte written to port 0x3f8, and leave the registers of the vCPU to KVM: it puts the"
        " value of a read into AL alone, from the data area of the exit (KVM API, section 5).",
    )


def _check_other_exit(exercise: Any) -> None:
    """Fail if a read of memory that does not exist passes for the end of the guest."""
    read_memory = bytes.fromhex(
        "b8 00 90"  # mov ax, 0x9000
        "8e d8"  # mov ds, ax
        "a0 00 00"  # mov al, [0x90000]
        "f4"  # hlt
    )
    with ready_vcpu(b"\0", read_memory) as vcpu:
        try:
            exercise.run(CountingVcpu(vcpu), bytearray())
        except CheckFailed:
            raise
        except Exception:
            return
    expect(
        False,
        "The guest has read memory at 0x90000, where it has none: KVM_EXIT_MMIO. `run` has"
        " returned as if the guest had halted. Report each exit that `run` does not serve.",
    )
