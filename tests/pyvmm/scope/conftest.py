# SPDX-License-Identifier: Apache-2.0
"""A recording with hostile text, and servers of the scope."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.trace.recording_file import RecordingFile
from pyvmm_native.events import EventBuffer
from tests.pyvmm.qmp.conftest import serve

__all__ = ["serve"]

MARKUP = "</script><img src=x onerror=alert(1)>\x1b[2J\n"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Return a recording of two chunks, with text of a guest in it."""
    path = tmp_path / "boot.rec"
    file = RecordingFile(path)
    buffer = EventBuffer()
    buffer.start()
    for number in range(2):
        buffer.event("balloon.target", pages=number)
        buffer.event("echo.bad_payload", count=1, why=MARKUP, queue=MARKUP)
        batch = buffer.take()
        assert batch is not None
        file.write(batch)
    file.close()
    buffer.stop()
    return path
