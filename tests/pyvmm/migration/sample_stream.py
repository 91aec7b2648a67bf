# SPDX-License-Identifier: Apache-2.0
"""Record the sample migration that `data/` keeps for each version of the stream.

    python -m tests.pyvmm.migration.sample_stream tests/pyvmm/migration/data/v3
    python -m tests.pyvmm.migration.sample_stream tests/pyvmm/migration/data/v4 2
    python -m tests.pyvmm.migration.sample_stream tests/pyvmm/migration/data/v5 1 xxh3

writes `v3.source` and `v3.destination`, the bytes that each side sent, and the same of version 4
with what the source sent on two streams, `v4.stream1` and `v4.stream2`; in version 5 the source has
offered a checksum. Run it when the version of the stream changes, and never again for that version.
`data/README.md` has the commands that made the others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from pyvmm.migration.progress import Settings
from tests.pyvmm.migration.migration_guest import (
    Corruption,
    FakeTarget,
    PageWrite,
    WritingGuest,
    config_of,
    migrate,
)

CONFIG = config_of(64)
BEFORE = [PageWrite(1, 1), PageWrite(513, 2), PageWrite(514, 3)]
AFTER = [PageWrite(1, 1)] * 10 + [PageWrite(514, -1), PageWrite(515, 4)]
"""Page 514 goes to the balloon after it was sent."""


def record_sample(path: Path, streams: int = 1, offered: tuple[str, ...] = ()) -> None:
    """Record the migration with the current code, its source offering checksums."""
    sent: dict[str, bytes] = {"source": b"", "destination": b""}

    def recorder(side: str) -> Corruption:
        sent[side] = b""

        def record(data: bytes, offset: int) -> bytes:
            sent[side] += data
            return data

        return record

    guest = WritingGuest(CONFIG, BEFORE, AFTER)
    with patch("pyvmm.migration.source.faster_checksums", lambda: offered):
        result = migrate(
            guest,
            FakeTarget(),
            Settings(streams=streams),
            corrupt_source=recorder("source"),
            corrupt_target=recorder("destination"),
            corrupt_stream=lambda number: recorder(f"stream{number + 1}"),
        )
    assert result.source_error is result.target_error is None
    for side, data in sent.items():
        path.with_suffix(f".{side}").write_bytes(data)


if __name__ == "__main__":
    record_sample(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1, tuple(sys.argv[3:]))
