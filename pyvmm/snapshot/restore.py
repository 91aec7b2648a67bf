# SPDX-License-Identifier: Apache-2.0
"""From a snapshot to a machine that goes on where the saved one stopped.

The machine is made from the snapshot's own configuration, without anything to boot. Every part
checks what it is given, and KVM refuses what cannot be; only then does the guest run. Its pages
follow as they are touched, each checked before the guest sees it; where the kernel does not let us
do that, all of them are there before it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.state import StateError
from pyvmm.errors import UserError
from pyvmm.snapshot.reader import OnPages

if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine
    from pyvmm.snapshot.reader import SnapshotFile


def restore(snapshot: SnapshotFile, machine: Machine, on_pages: OnPages = lambda _: None) -> None:
    """Make `machine`, made with `boot=False` from `snapshot.config`, what was saved.

    Raises `UserError` for a snapshot that is damaged or does not fit this host; the machine must
    not run then.
    """
    try:
        machine.load_lazily(snapshot)
    except PermissionError:
        snapshot.load(machine.ram.memory, on_pages)
    try:
        machine.restore_parts(snapshot.parts)
    except StateError as error:
        raise UserError(
            f"the snapshot {snapshot.path} cannot be restored here: {error}",
            "restore it where it was taken, or with that version of pyvmm",
        ) from error
