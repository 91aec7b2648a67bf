# SPDX-License-Identifier: Apache-2.0
"""Commands that take a snapshot; both are pyvmm's own.

    snapshot-to-file   {"path": P, "keep-running": bool, "unused": bool, "timeout": S}
    query-snapshot

QEMU's snapshot-save stores a snapshot in a disk image, which this VM does not have. These work like
its dump-guest-memory with "detach" and query-dump: the first starts the snapshot and returns at
once, the second reports its progress. All arguments but the absolute "path" are optional. With
"keep-running" false the guest stays paused after success; with "unused" false the guest is not
asked for its unused pages, a request that is otherwise limited to "timeout" seconds. While a
snapshot is taken, `cont` is refused, as the guest may be stopped for it.

query-snapshot returns "status": "none", "active", "completed" or "failed"; "completed" and "total"
bytes of guest pages, where "total" grows when the guest changes pages that have been copied;
"error-desc" of a failure; and at the end "file-bytes", "seconds", "stopped-seconds" and "pages",
the numbers of pages by their treatment.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.balloon.guest_requests import DEFAULT_TIMEOUT_S
from pyvmm.qmp.guest_request_commands import check_timeout
from pyvmm.qmp.messages import QmpError
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.qmp.vm_control import VmControl


def snapshot_to_file(vm: VmControl, path: str, **options: Any) -> dict[str, Any]:
    """Start a snapshot."""
    # Imported at the first snapshot: 14 ms of start-up time (pyvmm.snapshot and its imports).
    from pyvmm.snapshot.saver import MachineEnded, SnapshotActive, SnapshotRequest

    timeout_s = options.get("timeout", DEFAULT_TIMEOUT_S)
    check_timeout(timeout_s)
    if not path.startswith("/"):
        raise QmpError("Parameter 'path' expects an absolute path")
    if vm.migrations.active:
        raise QmpError("There's a migration process in progress")
    request = SnapshotRequest(
        Path(path), options.get("keep-running", True), options.get("unused", True), timeout_s
    )
    try:
        vm.snapshots.start(request)
    except SnapshotActive:
        raise QmpError("There is a snapshot in process, please wait") from None
    except MachineEnded:
        raise QmpError("Resetting the Virtual Machine is required") from None
    return {}


def query_snapshot(vm: VmControl) -> dict[str, Any]:
    """Return the progress or the result of the last snapshot."""
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
