# SPDX-License-Identifier: Apache-2.0
"""Memory that is loaded while the guest runs: complete, or known to be damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.memory.ram import Ram
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.userfaultfd_loader import UserfaultfdLoader
from tests.pyvmm.snapshot.snapshot_files import KINDS, RAM_BYTES, filled, same

SOON_S = 20.0


class LoadedRam:
    """RAM that is being loaded from the snapshot at `path`; skips where that is not allowed."""

    def __init__(self, path: Path) -> None:
        self.ram = Ram(RAM_BYTES)
        self.failures: list[UserError] = []
        with SnapshotFile(path, KINDS) as snapshot:
            try:
                self.loader = UserfaultfdLoader(snapshot, self.ram, self.failures.append)
            except PermissionError:
                pytest.skip("this kernel does not let us watch page faults")

    def load(self) -> None:
        self.loader.start()
        deadline = time.monotonic() + SOON_S
        while self.loader.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.loader.stop()
        assert not self.loader.is_alive()


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_all_pages_are_loaded_after_the_file_was_closed(snapshot: Path) -> None:
    before = descriptors()
    loaded = LoadedRam(snapshot)
    loaded.load()
    assert same(loaded.ram, filled())
    assert (loaded.failures, loaded.loader.error, loaded.loader.failed) == ([], None, False)
    assert len(descriptors()) <= len(before) + 1, "at most the one that watches faults"


def test_a_damaged_page_is_reported_once_and_memory_stays_incomplete(snapshot: Path) -> None:
    with snapshot.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"damaged")
    loaded = LoadedRam(snapshot)
    loaded.load()
    (failure,) = loaded.failures
    assert str(failure).startswith(f"the snapshot {snapshot} cannot be used: ")
    assert loaded.loader.error is failure
    assert loaded.loader.failed
