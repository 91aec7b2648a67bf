# SPDX-License-Identifier: Apache-2.0
"""Recordings: what was written is what is read, whatever happened to the writer and the file."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.trace.errors import RecordingNotWritten, RecordingUnusable
from pyvmm.trace.recorder import Recorder
from pyvmm.trace.recording import Recording
from pyvmm.trace.recording_file import RecordingFile
from pyvmm.trace.recording_format import (
    ALIGNMENT,
    CHUNK_MAGIC,
    DATA_OFFSET,
    HEADER_BYTES,
    MAGIC,
    MIN_LIMIT_BYTES,
    FileHeader,
    FormatError,
    decode_chunk,
    decode_chunk_header,
    encode_chunk,
)
from pyvmm.trace.tracer import EventTracer
from pyvmm_native.events import Batch, EventBuffer
from pyvmm_native.kvm_run import ExitCounters

Fields = dict[str, int | str]


def batches(*groups: int, text: str = "") -> list[Batch]:
    """Return a batch of each number of events, whose values count on."""
    buffer = EventBuffer()
    buffer.start()
    made, value = [], 0
    for count in groups:
        for _ in range(count):
            buffer.event("echo.tick", value=value, text=text)
            value += 1
        batch = buffer.take()
        assert batch is not None
        made.append(batch)
    return made


def write(path: Path, made: list[Batch], limit: int = 0) -> Path:
    file = RecordingFile(path, limit)
    file.commit()
    for batch in made:
        file.write(batch)
    file.close()
    return path


def values(path: Path) -> list[object]:
    with Recording(path) as recording:
        return [event.fields["value"] for event in recording.events()]


groups = st.lists(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=80)), min_size=1, max_size=8),
    max_size=8,
)


@settings(max_examples=50)
@given(groups)
def test_events_read_are_those_written(made: list[list[tuple[int, str]]]) -> None:
    tracer = EventTracer()
    tracer.start()
    path = Path(f"/dev/shm/recording-{os.getpid()}")
    try:
        file = RecordingFile(path)
        file.commit()
        for group in made:
            for number, text in group:
                tracer.event("echo.tick", number=number, text=text)
            batch = tracer.native.take()
            assert batch is not None
            file.write(batch)
        file.close()
        with Recording(path) as recording:
            found = [(e.fields["number"], e.fields["text"]) for e in recording.events()]
            assert recording.notes == []
            assert recording.event_count == len(found)
        expected = [pair for group in made for pair in group]
        assert found == [(n, text.encode(errors="replace").decode()) for n, text in expected]
    finally:
        path.unlink()


def test_a_recording_without_events_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "r", [])
    assert values(path) == []
    assert path.stat().st_mode & 0o777 == 0o600


# --- A ring ---------------------------------------------------------------------------------
def large_batch(value: int) -> Batch:
    """Return a batch of one event, `value`, that takes about 64 KiB in a file."""
    text = os.urandom(60_000 + value * 997 % 7000).hex().encode()
    numbers = bytes([value & 0x7F | 0x80, value >> 7]), len(text)
    size = bytes([numbers[1] & 0x7F | 0x80, numbers[1] >> 7 & 0x7F | 0x80, numbers[1] >> 14])
    kind = (0, "echo.tick", (("value", "u"), ("text", "s")))
    return Batch(value, value, 1, 0, [kind], [], b"\0\0" + numbers[0] + b"\0" + size + text)


@pytest.mark.parametrize("laps", [0.5, 1.0, 1.5, 2.7, 5.2])
def test_a_ring_keeps_the_newest_events(tmp_path: Path, laps: float) -> None:
    count = round(laps * 66)
    path = write(tmp_path / "r", [large_batch(value) for value in range(count)], MIN_LIMIT_BYTES)
    assert path.stat().st_size <= DATA_OFFSET + MIN_LIMIT_BYTES
    found = values(path)
    assert found == [*range(count - len(found), count)]
    assert len(found) == count if laps < 1 else 45 <= len(found) <= 70


def test_a_ring_is_readable_after_each_chunk(tmp_path: Path) -> None:
    file = RecordingFile(tmp_path / "r", MIN_LIMIT_BYTES)
    file.commit()
    for value in range(150):
        file.write(large_batch(value))
        if value % 7 == 0 or value > 130:
            found = values(tmp_path / "r")
            assert found == [*range(value + 1 - len(found), value + 1)]
    file.close()


def test_beginnings_of_chunks_in_an_overwritten_chunk_hide_no_events(tmp_path: Path) -> None:
    path = write(tmp_path / "r", [large_batch(value) for value in range(100)], MIN_LIMIT_BYTES)
    expected = values(path)
    data = bytearray(path.read_bytes())
    end = DATA_OFFSET  # of the newest chunk
    while header := decode_chunk_header(bytes(data[end : end + ALIGNMENT])):
        end += header.size_bytes
    oldest = data.index(CHUNK_MAGIC, end)
    assert oldest - end > 100 * ALIGNMENT
    for at in range(end + ALIGNMENT, oldest, ALIGNMENT):
        struct.pack_into("<4sIII", data, at, CHUNK_MAGIC, 0, (1 << 20) + at, 100)
    path.write_bytes(data)
    assert values(path) == expected


def test_a_ring_is_of_a_useful_size(tmp_path: Path) -> None:
    with pytest.raises(RecordingNotWritten, match="of 1 MiB is too small: it takes at least 4 MiB"):
        RecordingFile(tmp_path / "r", 1 << 20)
    assert not (tmp_path / "r").exists()


def test_remains_of_the_lap_before_the_last_are_left_out(tmp_path: Path) -> None:
    made = batches(*[1] * 12)
    in_the_file = [made[number] for number in (10, 11, 0, 7, 8, 9)]
    assert values(write(tmp_path / "r", in_the_file, MIN_LIMIT_BYTES)) == [*range(7, 12)]


def test_a_lap_that_fills_the_ring_needs_no_marker(tmp_path: Path) -> None:
    (batch,) = batches(1)
    half, last = (bytes([n]) * (MIN_LIMIT_BYTES // n) for n in (2, 64))
    file = RecordingFile(tmp_path / "r", MIN_LIMIT_BYTES)
    file.commit()
    for chunk in (half, half, last):
        file.write_chunk(chunk, batch)
    file.close()
    data = (tmp_path / "r").read_bytes()[DATA_OFFSET:]
    assert data == last + half[len(last) :] + half


def test_a_damaged_chunk_in_a_ring_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "r", batches(5, 5, 5), MIN_LIMIT_BYTES)
    flip(path, DATA_OFFSET + 60)  # as if the writer was killed when it began a lap
    assert values(path) == [*range(5, 15)]
    with pytest.raises(RecordingUnusable, match="damaged"):
        values(flip(write(path, batches(5, 5, 5), MIN_LIMIT_BYTES), second_chunk(path) + 60))


# --- Files that are cut or damaged ----------------------------------------------------------
def flip(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    return path


def second_chunk(path: Path) -> int:
    return path.read_bytes().index(b"CHNK", DATA_OFFSET + 1)


@pytest.mark.parametrize("lost", [1, 40, 100, 10_000_000])
def test_a_cut_off_end_is_left_out_with_a_note(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path / "r", batches(50, 50))
    begin = second_chunk(path)
    os.truncate(path, max(path.stat().st_size - lost, begin + 10))
    with Recording(path) as recording:
        assert [event.fields["value"] for event in recording.events()] == [*range(50)]
        assert "incomplete" in recording.notes[0]


@pytest.mark.parametrize("chunk", [0, 1])
def test_damage_is_an_error_with_its_place(tmp_path: Path, chunk: int) -> None:
    path = write(tmp_path / "r", batches(50, 50))
    place = second_chunk(path) if chunk else DATA_OFFSET
    flip(path, place + 60)
    with pytest.raises(RecordingUnusable, match=f"damaged at byte {place}$"):
        Recording(path)


def test_a_chunk_that_is_overwritten_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "r", [large_batch(0), large_batch(1)])
    with Recording(path) as recording:
        events = recording.events()
        assert next(events).fields["value"] == 0
        flip(path, second_chunk(path) + 40_000)
        with pytest.raises(RecordingUnusable, match="has changed while it was read"):
            next(events)


def test_a_file_that_cannot_be_read_to_its_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with Recording(write(tmp_path / "r", batches(5))) as recording:
        monkeypatch.setattr(recording, "_read", fail)
        with pytest.raises(RecordingUnusable, match="cannot be read: Input/output error"):
            list(recording.events())


@pytest.mark.parametrize("failing_read", [1, 2, 3])
def test_a_file_that_cannot_be_read_when_it_is_opened_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_read: int
) -> None:
    path, reads = write(tmp_path / "r", batches(5)), 0

    class FailingFile(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal reads
            reads += 1
            if reads == failing_read:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(-1 if size is None else size)

    opened: list[FailingFile] = []

    def open_file(path: Path) -> FailingFile:
        opened.append(FailingFile(path))
        return opened[0]

    monkeypatch.setattr("pyvmm.trace.recording.open_regular_file", open_file)
    with pytest.raises(RecordingUnusable, match="cannot be read: Input/output error"):
        Recording(path)
    assert opened[0].closed


def test_a_file_that_becomes_shorter_while_it_is_searched_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ShorterFile(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return b"" if size == 1 << 20 else super().read(-1 if size is None else size)

    path = write(tmp_path / "r", batches(5))
    path.write_bytes(path.read_bytes() + b"x" * (2 << 20))
    monkeypatch.setattr("pyvmm.trace.recording.open_regular_file", ShorterFile)
    with Recording(path) as recording:
        assert "incomplete" in recording.notes[0]
        assert recording.event_count == 5


def test_a_chunk_that_claims_more_than_a_batch_is_not_read(tmp_path: Path) -> None:
    chunk = write(tmp_path / "r", batches(5)).read_bytes()[DATA_OFFSET:]
    assert decode_chunk_header(chunk) is not None
    for at in (8, 12):  # deflated and inflated length
        changed = chunk[:at] + struct.pack("<I", 9 << 20) + chunk[at + 4 :]
        assert decode_chunk_header(changed) is None


def test_a_missing_chunk_is_an_error(tmp_path: Path) -> None:
    first, _, third = batches(5, 5, 5)
    path = write(tmp_path / "r", [first, third])
    with pytest.raises(RecordingUnusable, match="events are missing"):
        Recording(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is no recording"),
        (b"ELF" * 3000, "it is no recording"),
        (MAGIC, "it is no recording"),
        (MAGIC + struct.pack("<IQII", 2, 0, 0, 0), "has version 2, this pyvmm reads 1"),
        (MAGIC + struct.pack("<IQII", 1, 0, 0, 100), "incomplete"),
        (MAGIC + struct.pack("<IQII", 1, 0, 0, 2**32 - 1).ljust(9000), "incomplete"),
        ((MAGIC + struct.pack("<IQII", 1, 0, 5, 2) + b"{}").ljust(DATA_OFFSET), "checksum"),
    ],
)
def test_a_file_that_is_no_recording_of_this_version_is_refused(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    path = tmp_path / "r"
    path.write_bytes(data)
    with pytest.raises(RecordingUnusable, match=reason):
        Recording(path)


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordingUnusable, match="cannot be read"):
        Recording(tmp_path / name)


def test_lost_events_are_counted_and_shown(tmp_path: Path) -> None:
    buffer = EventBuffer()
    buffer.start(512)
    for value in range(1000):
        buffer.event("echo.tick", value=value)
    batch = buffer.take()
    assert batch is not None
    kept = batch.event_count
    assert batch.dropped == 1000 - kept
    with Recording(write(tmp_path / "r", [batch])) as recording:
        assert (recording.event_count, recording.dropped) == (kept, 1000 - kept)
        assert recording.start_ns == batch.base_ns
        *_, last = recording.events()
    assert (last.kind, last.seq, last.fields) == ("dropped", kept, {"count": 1000 - kept})


@pytest.mark.parametrize("description", [b"[]", b"1", b"{", b"\xff"])
def test_a_description_that_is_no_object_is_refused(tmp_path: Path, description: bytes) -> None:
    numbers = struct.pack("<QI", 0, len(description))
    crc = zlib.crc32(numbers + description)
    header = MAGIC + struct.pack("<IQII", 1, 0, crc, len(description)) + description
    (tmp_path / "r").write_bytes(header.ljust(DATA_OFFSET, b"\0"))
    with pytest.raises(RecordingUnusable, match="cannot be used"):
        Recording(tmp_path / "r")


@pytest.mark.parametrize("code", ["u", "s", "x", ""])
def test_fields_of_unknown_types_are_refused(code: str) -> None:
    fields: tuple[tuple[str, str], ...] = (("value", code),)
    kinds = [(0, "echo.tick", fields)]
    chunk = encode_chunk(Batch(0, 0, 0, 0, kinds, [], b""))
    header = decode_chunk_header(chunk)
    assert header is not None
    if code in ("u", "s"):
        assert decode_chunk(header, chunk).kinds == kinds
    else:
        with pytest.raises(FormatError, match="a field of an unknown type"):
            decode_chunk(header, chunk)


# --- Paths ----------------------------------------------------------------------------------
def test_only_a_recording_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "r", batches(50))
    write(path, batches(3))
    assert values(path) == [0, 1, 2]
    path.write_text("mine")
    with pytest.raises(RecordingNotWritten, match="is a file, but not a recording"):
        RecordingFile(path)
    assert path.read_text() == "mine"
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path, tmp_path / "absent" / "r"):
        with pytest.raises(RecordingNotWritten, match="cannot be written"):
            RecordingFile(other)


def test_a_file_whose_beginning_cannot_be_written_is_refused_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyvmm.trace.recording_file.pwrite_all", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RecordingNotWritten, match="cannot be written: No space left on device"):
        RecordingFile(tmp_path / "r")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_path_that_becomes_a_device_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pyvmm.trace.recording_file.check_recording", lambda path: Path("/dev/null")
    )
    with pytest.raises(RecordingNotWritten, match="it is no regular file"):
        RecordingFile(tmp_path / "r")


def test_a_recording_in_progress_is_not_replaced(tmp_path: Path) -> None:
    file = RecordingFile(tmp_path / "r")
    file.commit()
    (batch,) = batches(7)
    file.write(batch)
    with pytest.raises(RecordingNotWritten, match="being written by another process"):
        RecordingFile(tmp_path / "r")
    assert values(tmp_path / "r") == [*range(7)]  # it can be read meanwhile
    file.close()


def test_a_recording_that_is_not_committed_leaves_an_earlier_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r", batches(3))
    before = path.stat()
    file = RecordingFile(path)
    (batch,) = batches(7)
    file.write(batch)
    assert path.stat() == before
    with pytest.raises(RecordingNotWritten, match="being written by another process"):
        RecordingFile(path)
    file.close()
    file.close()
    assert values(path) == [0, 1, 2]
    assert os.listdir(tmp_path) == ["r"]
    write(path, batches(7))
    assert values(path) == [*range(7)]


def test_of_two_recordings_that_begin_at_once_the_second_is_refused(tmp_path: Path) -> None:
    one, two = RecordingFile(tmp_path / "r"), RecordingFile(tmp_path / "r")
    one.commit()
    with pytest.raises(RecordingNotWritten, match="being written by another process"):
        two.commit()
    two.close()
    one.close()
    assert values(tmp_path / "r") == []
    three = RecordingFile(tmp_path / "r2")
    (tmp_path / "r2").write_text("mine")
    with pytest.raises(RecordingNotWritten, match="is a file, but not a recording"):
        three.commit()
    three.close()
    assert (tmp_path / "r2").read_text() == "mine"


def test_a_process_that_is_killed_before_it_commits_loses_no_recording(tmp_path: Path) -> None:
    path = write(tmp_path / "r", batches(3))
    program = (
        "import os, sys; from pathlib import Path; from pyvmm.trace.recording_file import *;"
        "file = RecordingFile(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert values(path) == [0, 1, 2]
    assert len(os.listdir(tmp_path)) == 2
    write(path, batches(4))
    assert values(path) == [*range(4)]
    assert os.listdir(tmp_path) == ["r"]


def test_the_description_is_overwritten_within_one_sector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RecordingFile(tmp_path / "r")
    writes: list[int] = []
    monkeypatch.setattr(
        "pyvmm.trace.recording_file.pwrite_all",
        lambda fd, data, offset=0: writes.append(offset + len(data)),
    )
    file.note_ram((1 << 64) - 1)
    file.close()
    assert writes == [HEADER_BYTES]
    with pytest.raises(ValueError, match="a description of"):
        FileHeader(0, {"pyvmm": "x" * HEADER_BYTES}).encode()


# --- The recorder ---------------------------------------------------------------------------
def test_a_recorder_writes_within_a_second_and_at_its_end(tmp_path: Path) -> None:
    tracer = EventTracer()
    counters = ExitCounters()
    tracer.exits = lambda: [counters]
    recorder = Recorder(tracer, RecordingFile(tmp_path / "r"))
    recorder.commit()
    tracer.event("echo.early", value=0)
    recorder.start()
    for value in range(1000):
        tracer.event("echo.tick", value=value)
    deadline = time.monotonic() + 5
    while recorder.total.events < 1000 and time.monotonic() < deadline:
        time.sleep(0.02)
    with Recording(tmp_path / "r") as recording:
        kinds = [event.kind for event in recording.events()]
    assert kinds == [*["tick"] * 1000, "vm_exits"]
    tracer.event("echo.last", value=1)
    recorder.close()
    assert not tracer.watched
    with Recording(tmp_path / "r") as recording:
        assert [event.kind for event in recording.events()][-1] == "last"
    assert recorder.total == (1002, 0, (tmp_path / "r").stat().st_size - DATA_OFFSET)


def test_a_full_disk_ends_the_recording_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FullDisk(RecordingFile):
        def write_chunk(self, chunk: bytes, batch: Batch) -> None:
            raise OSError(28, "No space left on device")

    tracer = EventTracer()
    recorder = Recorder(tracer, FullDisk(tmp_path / "r"))
    recorder.commit()
    recorder.start()
    tracer.event("echo.tick", value=0)
    deadline = time.monotonic() + 5
    while tracer.watched and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not tracer.watched
    (batch,) = batches(1)
    recorder.put(b"", batch)  # by a taker that has not seen the end yet
    recorder.close()
    assert caplog.text.count("No space left on device") == 1
    assert values(tmp_path / "r") == []


def test_the_end_does_not_wait_long_for_a_file_system_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, released = threading.Event(), threading.Event()

    class HangingDisk(RecordingFile):
        closed = False

        def write_chunk(self, chunk: bytes, batch: Batch) -> None:
            writing.set()
            released.wait()

        def close(self) -> None:
            self.closed = True
            super().close()

    monkeypatch.setattr("pyvmm.trace.recorder.END_TIMEOUT_S", 0.01)
    tracer, file = EventTracer(), HangingDisk(tmp_path / "r")
    recorder = Recorder(tracer, file)
    recorder.start()
    tracer.event("echo.tick", value=0)
    writing.wait()
    recorder.close()
    assert not file.closed
    released.set()
    recorder.close()
    assert file.closed


# --- The taker ------------------------------------------------------------------------------
def test_a_taker_that_cannot_start_releases_what_it_has_and_can_start_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise MemoryError

    tracer = EventTracer()
    recorder = Recorder(tracer, RecordingFile(tmp_path / "r"))
    recorder.commit()
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patches:
        patches.setattr(tracer, "start", fail)
        with pytest.raises(MemoryError):
            recorder.start()
    assert len(os.listdir("/proc/self/fd")) <= before
    tracer.taker.hurry()  # no sink: nothing to do
    recorder.start()
    tracer.event("echo.tick", value=0)
    recorder.close()
    assert values(tmp_path / "r") == [0]


def test_the_description_has_both_clocks(tmp_path: Path) -> None:
    before = time.time_ns(), time.monotonic_ns()
    with Recording(write(tmp_path / "r", [])) as recording:
        found = recording.description
    assert json.dumps(found)
    assert before[0] <= found["realtime-ns"] <= time.time_ns()
    assert before[1] <= found["monotonic-ns"] <= time.monotonic_ns()


def test_the_description_has_the_size_of_ram_once_there_is_a_machine(tmp_path: Path) -> None:
    tracer = EventTracer()
    recorder = Recorder(tracer, RecordingFile(tmp_path / "r"))
    recorder.commit()
    recorder.start()
    tracer.event("echo.tick", value=0)
    tracer.ram_bytes = 64 << 20
    recorder.close()
    with Recording(tmp_path / "r") as recording:
        assert recording.description["ram-bytes"] == 64 << 20
    assert values(tmp_path / "r") == [0]
