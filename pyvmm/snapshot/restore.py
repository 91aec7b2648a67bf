# SPDX-License-Identifier: Apache-2.0
"""Restore a machine from a snapshot.

The machine is made from the configuration in the snapshot, without anything to boot. Every part
checks its saved state, and KVM refuses invalid values; only then does the guest run. Its pages are
loaded as they are touched, each checked before the guest sees it; where the kernel does not allow
userfaultfd, all of them are loaded and checked before the guest runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from devices.state import StateError
from pyvmm.snapshot.errors import SnapshotIncompatible
from pyvmm.snapshot.reader import OnPages

if TYPE_CHECKING:
    from pyvmm.memory.ram import Ram
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.state.records import Record


class RestorableVm(Protocol):
    """A VM that has neither been booted nor run.

    Threads: event loop.
    """

    @property
    def ram(self) -> Ram:
        """Its memory, which nothing has touched."""

    def load_lazily(self, snapshot: SnapshotFile) -> None:
        """Fill memory in the background and on access; PermissionError where that is impossible."""

    def restore_parts(self, records: Sequence[Record]) -> None:
        """Restore everything but memory. Raises StateError."""


def restore(snapshot: SnapshotFile, vm: RestorableVm, on_pages: OnPages = lambda _: None) -> None:
    """Restore `vm`, made of `snapshot.config`, from `snapshot`.

    Raises `UserError` for a snapshot that is damaged or does not fit this host; the VM must not run
    then.

    Threads: event loop.
    """
    try:
        vm.load_lazily(snapshot)
    except PermissionError:
        snapshot.load(vm.ram.memory, on_pages)
    try:
        vm.restore_parts(snapshot.parts)
    except StateError as error:
        raise SnapshotIncompatible(
            f"the snapshot {snapshot.path} cannot be restored here: {error}"
        ) from error
