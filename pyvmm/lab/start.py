# SPDX-License-Identifier: Apache-2.0
"""Start the lab: boot its kernel the first time, resume from the boot snapshot from then on.

The first start boots the emulated machine until its agent reports `booted`, writes the snapshot and
ends the machine; then, like every later start, it resumes from the snapshot. So all labs behave
alike, the first included. If no snapshot can be made, the lab boots its kernel at every start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from pyvmm.lab.boot_snapshot import BootSnapshotError, resume, save, snapshot_path
from pyvmm.lab.errors import LabError
from pyvmm.lab.frame_link import LinkClosedError
from pyvmm.lab.mux import Multiplexer
from pyvmm.lab.qemu import LabProcess, machine_arguments

START_TIMEOUT_S = 180.0
CLOCK_CHECK_S = 1.0
"""Time for which a booted lab's clock is compared with the host's."""
CLOCK_TOLERANCE = 2.0
"""Largest factor between the two; the clocks are read a moment apart."""


class StartInterrupted(Exception):
    """The signal `number` has ended the start of the lab."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def start(*, memory_mib: int, cpus: int, signals: int) -> LabProcess:
    """Start the emulated machine; its agent has booted (if a snapshot is resumed) or will boot.

    `signals` is the descriptor of `pyvmm.lab.signals.signal_pipe`. Raises NotInstalled or
    LabKernelUnreadable for a part, LabError if the machine does not start, `StartInterrupted`.
    """
    machine = machine_arguments(memory_mib, cpus)
    snapshot = snapshot_path(machine)
    if snapshot is not None:
        for _ in range(2):  # a snapshot that does not resume is replaced once
            if not snapshot.exists() and not _boot_and_save(machine, snapshot, signals):
                break
            with contextlib.suppress(BootSnapshotError):
                return _resume(machine, snapshot, signals)
    return LabProcess(machine)


def _boot_and_save(machine: list[str], snapshot: Path, signals: int) -> bool:
    """Boot `machine` and write its snapshot; return False if that fails. Raises LabError.

    A machine whose clock is wrong is booted again, once.
    """
    for _ in range(2):
        lab = LabProcess(machine)
        lab.monitor.watch(signals, lambda: _interrupt(signals))
        try:
            if _boot(lab, signals):
                save(lab.monitor, snapshot)
                return True
        except BootSnapshotError:
            return False
        finally:
            lab.end()
    return False


def _boot(lab: LabProcess, signals: int) -> bool:
    """Wait for the agent; return whether the lab's clock is right.

    Raises LabError and `StartInterrupted`.

    Linux measures the frequency of its clock against a timer when it boots. On a busy host both are
    emulated in bursts, and the result, which the snapshot would keep, can be far off.
    """
    answers: dict[str, float] = {}
    link = Multiplexer(lab.link.fileno(), answers.update)
    link.watch(signals, lambda: _interrupt(signals))
    _wait_for(lab, link, answers, "booted")
    begin = time.monotonic()
    time.sleep(CLOCK_CHECK_S)
    link.send_control({"ping": 0})
    _wait_for(lab, link, answers, "pong")
    ratio = (answers["pong"] - answers["booted"]) / (time.monotonic() - begin)
    return 1 / CLOCK_TOLERANCE <= ratio <= CLOCK_TOLERANCE


def _interrupt(signals: int) -> None:
    for number in os.read(signals, 512):
        if number != signal.SIGWINCH:
            raise StartInterrupted(number)


def _wait_for(lab: LabProcess, link: Multiplexer, answers: dict[str, float], key: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while key not in answers:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise lab_error(lab, f"the lab did not start in {START_TIMEOUT_S:.0f} s")
        try:
            link.turn(int(left_s * 1000) + 1)
        except LinkClosedError:
            raise lab_error(lab, "the lab ended while it started") from None


def _resume(machine: list[str], snapshot: Path, signals: int) -> LabProcess:
    """Resume `machine`; remove a snapshot that does not resume and raise BootSnapshotError."""
    lab = LabProcess(machine, snapshot)
    lab.monitor.watch(signals, lambda: _interrupt(signals))
    try:
        resume(lab.monitor, snapshot)
        lab.monitor.unwatch()
    except BootSnapshotError:
        lab.end()
        snapshot.unlink(missing_ok=True)
        raise
    except BaseException:
        lab.end()
        raise
    return lab


def lab_error(lab: LabProcess, message: str) -> LabError:
    """Return an error with `message` and the last lines that the lab's kernel printed."""
    tail = " / ".join(lab.console(3))
    return LabError(f"{message}: {tail}" if tail else message)
