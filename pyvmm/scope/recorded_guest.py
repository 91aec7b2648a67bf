# SPDX-License-Identifier: Apache-2.0
"""A recording as a source: its chunks are sent as they are in the file.

The file is opened again for each page, so a page that is loaded again shows what has been recorded
meanwhile, and a ring that has been overwritten is read from its present start.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyvmm.config import MAX_RAM_BYTES
from pyvmm.scope.source import describe
from pyvmm.trace.recording import Recording


class RecordedGuest:
    """The guest whose events are in the recording at `path`. Raises `RecordingUnusable`."""

    live = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self.describe()

    def describe(self) -> dict[str, Any]:
        """Return the description of the source. Raises `RecordingUnusable`."""
        with Recording(self._path) as recording:
            return describe_recording(recording)

    def chunks(self) -> Generator[bytes]:
        """Yield the chunks of the recording. Raises `RecordingUnusable`, also between them."""
        with Recording(self._path) as recording:
            yield from recording.chunks()


def describe_recording(recording: Recording) -> dict[str, Any]:
    """Return the description of a recording as a source, ready for JSON."""
    notes = list(recording.notes)
    if recording.dropped:
        notes.append(f"{recording.dropped} events are missing, as they came too fast")
    return describe(
        live=False,
        name=recording.path.name,
        ram_bytes=_ram_bytes(recording.description.get("ram-bytes")),
        devices=[],
        start_ns=recording.start_ns,
        notes=notes,
    )


def _ram_bytes(noted: object) -> int | None:
    """Return the size of RAM in the description of a recording, which may be of anybody."""
    if not isinstance(noted, int) or isinstance(noted, bool):
        return None
    return noted if 0 < noted <= MAX_RAM_BYTES else None
