# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of snapshot files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pyvmm.snapshot.snapshot_files import filled, write


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Return the path of a small snapshot."""
    path = tmp_path / "snapshot"
    write(path, filled())
    return path
