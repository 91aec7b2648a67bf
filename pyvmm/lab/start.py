# SPDX-License-Identifier: Apache-2.0
"""Starting the lab: once from its kernel, ever after from a snapshot.

The first start boots the emulated machine until its agent is awake, writes the snapshot and ends
it; then, like every later start, it resumes from the snapshot. So all labs behave alike, whichever
came first. Where no snapshot can be had the lab boots from its kernel, as slowly every time.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from pyvmm.errors import UserError
from pyvmm.lab.boot_snapshot import SnapshotError, path_for, resume, save
from pyvmm.lab.mux import LinkClosedError, Multiplexer
from pyvmm.lab.qemu import LabProcess, machine_arguments

START_TIMEOUT_SECONDS = 180.0


class LabError(UserError):
    """The lab did not start, or ended or broke while a command was running in it."""

    exit_status = 125


def start(*, memory_mib: int, cpus: int) -> LabProcess:
    """Start the emulated machine; its agent is awake (`resumed`) or about to be.

    UserError for anything that is not installed, LabError when the machine does not start.
    """
    machine = machine_arguments(memory_mib, cpus)
    kept = path_for(machine)
    for _ in ("with what is kept, if it is any good", "with a new one"):
        with contextlib.suppress(SnapshotError):
            if not kept.exists():
                _keep(machine, kept)
            return _resumed(machine, kept)
    return LabProcess(machine, kept, resumed=False)


def _keep(machine: list[str], kept: Path) -> None:
    """Boot `machine` and write its snapshot. LabError, SnapshotError."""
    lab = LabProcess(machine, kept, resumed=False)
    try:
        _wait_until_awake(lab)
        save(lab.monitor, kept)
    finally:
        lab.end()


def _wait_until_awake(lab: LabProcess) -> None:
    awake = False

    def control(message: dict[str, Any]) -> None:
        nonlocal awake
        awake = awake or "awake" in message

    link = Multiplexer(lab.link.fileno(), control)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not awake:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise broken(lab, f"the lab did not start in {START_TIMEOUT_SECONDS:.0f} s")
        try:
            link.turn(int(left_s * 1000) + 1)
        except LinkClosedError:
            raise broken(lab, "the lab ended while it started") from None


def _resumed(machine: list[str], kept: Path) -> LabProcess:
    """Resume `machine`; a snapshot that is no good is removed. SnapshotError."""
    lab = LabProcess(machine, kept, resumed=True)
    try:
        resume(lab.monitor, kept)
    except SnapshotError:
        lab.end()
        kept.unlink(missing_ok=True)
        raise
    except BaseException:
        lab.end()
        raise
    return lab


def broken(lab: LabProcess, what: str) -> LabError:
    """`what` happened to `lab`, with the last words of its kernel."""
    tail = " / ".join(lab.console(3))
    return LabError(f"{what}: {tail}" if tail else what, "see 'pyvmm doctor', or try again")
