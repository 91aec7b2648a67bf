# SPDX-License-Identifier: Apache-2.0
"""Commands that take a snapshot; both are pyvmm's own.

QEMU's snapshot-save stores a snapshot in a disk image, which this VM does not have. These work like
its dump-guest-memory with "detach" and query-dump: the first starts the snapshot and returns at
once, the second reports its progress.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.balloon.guest_requests import DEFAULT_TIMEOUT_S
from pyvmm.qmp.command import Command, Parameter
from pyvmm.qmp.guest_request_commands import TIMEOUT
from pyvmm.qmp.messages import QmpError
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.qmp.vm_control import VmControl


def snapshot_to_file(
    vm: VmControl,
    path: str,
    keep_running: bool = True,
    unused: bool = True,
    timeout: float = DEFAULT_TIMEOUT_S,
    force: bool = False,
) -> dict[str, Any]:
    """Start a snapshot of the guest; `query-snapshot` reports its progress.

    The guest runs while its memory is copied, and is paused for the rest. `cont` is refused
    meanwhile. After a failure the guest runs again, and there is no file.

    Arguments:
        path: the file, which takes its name when it is complete; an older snapshot there is
            replaced, anything else is refused
        keep-running: resume the guest after success if it was running; else it stays paused
        unused: leave out the pages that the guest reports as unused
        timeout: the longest wait for that report; without one, all pages are saved
        force: replace another regular file, too
    Errors:
        GenericError: a snapshot or a migration is in progress, or the guest has ended
    In QEMU:
        no such command; `dump-guest-memory` with "detach" is its model
    """
    # Imported at the first snapshot: 14 ms of start-up time (pyvmm.snapshot and its imports).
    from pyvmm.snapshot.saver import (
        MachineEnded,
        MigrationActive,
        SnapshotActive,
        SnapshotRequest,
    )

    request = SnapshotRequest(Path(path), keep_running, unused, timeout, force)
    try:
        vm.snapshots.start(request)
    except SnapshotActive:
        raise QmpError("There is a snapshot in process, please wait") from None
    except MigrationActive:
        raise QmpError("There's a migration process in progress") from None
    except MachineEnded:
        raise QmpError("Resetting the Virtual Machine is required") from None
    return {}


def query_snapshot(vm: VmControl) -> dict[str, Any]:
    """Return the progress or the result of the last snapshot.

    Returns:
        status: `none`, `active`, `completed` or `failed`
        completed: bytes of guest pages copied so far
        total: bytes of guest pages to copy; grows while the guest changes pages already copied
        error-desc?: the reason of a failure
        file-bytes?: size of the complete file
        seconds?: duration of the complete snapshot
        stopped-seconds?: the time of it for which the guest was paused
        pages.stored?: pages of 4 KiB in the complete file
        pages.zero?: pages left out because they are zero throughout
        pages.unused?: pages left out because the guest reported them as unused
        pages.absent?: pages without host memory: never touched, or in the balloon
        pages.ballooned?: absent pages in the balloon, as the guest's driver counts
        pages.asked?: the request that the guest answered, or the reason why it has not
    In QEMU:
        no such command; `query-dump` is its model
    """
    status = vm.snapshots.status
    result: dict[str, Any] = {
        "status": status.status,
        "completed": status.completed_pages * PAGE_BYTES,
        "total": status.total_pages * PAGE_BYTES,
    }
    if status.status == "failed":
        result["error-desc"] = status.error
    if status.status == "completed" and status.report is not None:
        result["file-bytes"] = status.file_bytes
        result["seconds"] = round(status.seconds, 6)
        result["stopped-seconds"] = round(status.stopped_seconds, 6)
        result["pages"] = asdict(status.report)
    return result


_SNAPSHOT = (
    Parameter("path", str, expects="an absolute path", accepts=lambda path: path.startswith("/")),
    Parameter("keep-running", bool, required=False),
    Parameter("unused", bool, required=False),
    TIMEOUT,
    Parameter("force", bool, required=False),
)

COMMANDS = {
    "snapshot-to-file": Command(snapshot_to_file, _SNAPSHOT),
    "query-snapshot": Command(query_snapshot),
}
