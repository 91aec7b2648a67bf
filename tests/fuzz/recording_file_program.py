# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes as a recording, for the fuzzer and hypothesis.

Invariant: `Recording` either opens a file and yields as many events as it claims, or raises
`UserError`. It takes memory by the size of the file, whatever that claims. Nothing else happens.

Bytes become a file in one of two ways. Raw, they are the file. Otherwise they are choices for one
whose checksums are right, as no fuzzer guesses those: the size of a ring, and chunks in any order,
each a good one, one with other numbers, with other tables or with other events.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.trace.batches import batches_of
from pyvmm.trace.export import FORMATS
from pyvmm.trace.recording import Recording
from pyvmm.trace.recording_format import (
    ALIGNMENT,
    CHUNK_MAGIC,
    END_MAGIC,
    FileHeader,
    aligned,
    encode_chunk,
)
from pyvmm_native.events import Batch
from tests.fuzz.snapshot_file_program import Choices
from tests.native.event_batches import changed

MAX_CHUNKS = 12
LIMITS = (0, 4 << 20, 1, 1 << 63)
KINDS = [(0, "tick", (("value", "u"),)), (7, "echo.why", (("queue", "s"), ("text", "s")))]
PAYLOAD = b"\x00\x01\x05\x07\x00\x01\x00\x02hi"


def run(data: bytes) -> bool:
    """Make a recording of `data` and read it; return whether it is valid."""
    fd = os.memfd_create("recording")
    try:
        os.write(fd, _file(data))
        return _read(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def _read(path: Path) -> bool:
    try:
        with Recording(path) as recording:
            events = list(recording.events())
            counted = sum(event.kind != "dropped" for event in events)
            assert counted <= recording.event_count <= path.stat().st_size * 1100
            assert recording.chunk_bytes <= path.stat().st_size
            for form in FORMATS.values():
                assert b"".join(form.export(events)).startswith(form.start) or not events
            batches = batches_of(events, recording.start_ns)
            assert sum(batch.event_count for batch in batches) == len(events)
    except UserError:
        return False
    return True


def _file(data: bytes) -> bytes:
    choices = Choices(data)
    how = choices.number()
    if how == 0:
        return data[1:]
    parts = [FileHeader(LIMITS[how % len(LIMITS)], {"pyvmm": "1"}).encode()]
    seq = 0
    while choices.left and len(parts) <= MAX_CHUNKS:
        chunk, seq = _chunk(choices, seq % (1 << 64))
        parts.append(chunk)
    made = b"".join(parts)
    return made[: len(made) - choices.number()] if how & 0x80 else made


def _chunk(choices: Choices, seq: int) -> tuple[bytes, int]:
    """Return a chunk, and the sequence number that follows it."""
    how = choices.number()
    if how % 16 == 1:
        return END_MAGIC.ljust(ALIGNMENT, b"\0"), seq
    if how % 16 == 2:
        seq = choices.number(8)
    batch = Batch(
        seq, choices.number(8), 2, choices.number() if how & 16 else 0, KINDS, [(1, "in")], PAYLOAD
    )
    if how & 32:
        batch = changed(batch, payload=choices.take(choices.number() % 64))
    if how & 64:
        batch = changed(batch, event_count=choices.number(4))
    if how & 128:
        return _with_other_tables(choices, batch), seq + 2
    return encode_chunk(batch), seq + batch.event_count + batch.dropped


TABLES: list[object] = [
    None,
    [],
    [[], []],
    [[[0, "tick", [["value", "x"]]]], []],
    [[[-1, "tick", []]], []],
    [[[1 << 70, "tick", []]], []],
    [[["no", "tick", []]], []],
    [[[0, 5, [["value", "u"], ["value", "s"]]]], [[1, None]]],
    [KINDS, [[1, "in"], [1, "out"]]],
    [KINDS, [[1e400, "in"]]],
    [KINDS, {"a": 1}],
    [[[]] * 5000, []],
]


def _with_other_tables(choices: Choices, batch: Batch) -> bytes:
    how = choices.number()
    tables = json.dumps(TABLES[how % len(TABLES)]).encode() if how < 128 else choices.take(40)
    raw = tables + batch.payload
    body = zlib.compress(raw) if how % 3 else choices.take(30)
    raw_bytes = choices.number(4) if how % 5 == 0 else len(raw)
    tables_bytes = choices.number(4) if how % 7 == 0 else len(tables)
    numbers = (batch.first_seq, batch.base_ns, batch.dropped, batch.event_count, tables_bytes)
    rest = struct.pack("<IIQQQII", len(body), raw_bytes, *numbers) + body
    chunk = CHUNK_MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest
    return chunk.ljust(aligned(len(chunk)), b"\0")
