# SPDX-License-Identifier: Apache-2.0
"""Runtime directories of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the runtime directory of a test, which does not exist yet; its path is short."""
    with TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield Path(base) / "pyvmm"
