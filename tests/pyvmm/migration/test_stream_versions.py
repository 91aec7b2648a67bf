# SPDX-License-Identifier: Apache-2.0
"""Migration streams of every version are read or refused as `docs/reference/formats.md` says."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from typing_extensions import Buffer

from pyvmm.migration import messages
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import MigrationError, PeerAborted
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.page_channel import BufferedPages, PageChannel
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.sockets.link import SocketLink
from pyvmm.state.records import Record
from pyvmm_native.checksum import CHECKSUMS, Checksum
from pyvmm_native.memory import GuestMemory
from tests.pyvmm.migration.migration_guest import PAGE, PARTS, FakeTarget, WritingGuest, join
from tests.pyvmm.migration.sample_stream import BEFORE, CONFIG, record_sample

DATA = Path(__file__).parent / "data"
NEEDS_XXH3 = pytest.mark.skipif("xxh3" not in CHECKSUMS, reason="built without xxhash.h")


class RecordedLink:
    """Satisfies `pyvmm.migration.link.Link`; receives `data` and keeps what is sent."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.sent = b""
        self.deadline = math.inf
        self.local = True

    def send(self, data: Buffer) -> None:
        self.sent += bytes(data)

    def receive(self, at_most: int) -> bytes:
        received, self._data = self._data[:at_most], self._data[at_most:]
        return received

    def receive_into(self, buffer: memoryview) -> int:
        data = self.receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return False

    def pages(self, memory: GuestMemory, checksum: Checksum) -> PageChannel:
        return BufferedPages(self, memory, checksum)

    def abort(self) -> None:
        self._data = b""

    end_input = close = abort


class WaitingLink(RecordedLink):
    """Calls `on_wait` once, when the destination checks whether its source still waits."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.on_wait: Callable[[], object] = lambda: None
        self._waited = False

    def readable(self) -> bool:
        if not self._waited:
            self._waited = True
            self.on_wait()
        return False


def recorded(name: str) -> bytes:
    return (DATA / name).read_bytes()


@pytest.mark.parametrize("version", ["v2", "v3", pytest.param("v5", marks=NEEDS_XXH3)])
def test_a_stream_of_each_version_is_received(version: str) -> None:
    target, link = FakeTarget(), RecordedLink(recorded(f"{version}.source"))
    DestinationMigration(target, link).run()
    assert target.runs
    assert target.parts == PARTS
    assert target.ram is not None
    assert [target.ram.page(pfn)[:1] for pfn in (1, 513, 514, 515)] == [b"\1", b"\2", b"\0", b"\4"]
    assert link.sent == recorded(f"{version}.destination")


def test_a_migration_over_streams_is_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is the recorded one; both streams have joined before the source sends more."""
    source, replies = recorded("v4.source"), recorded("v4.destination")
    token_at = len(messages.Welcome().record().encode())
    token = replies[token_at : token_at + messages.TOKEN_BYTES]
    hello = len(messages.StreamHello(token, 1).record().encode())
    monkeypatch.setattr("pyvmm.migration.stream_receivers.urandom", lambda count: token)
    target, link = FakeTarget(), WaitingLink(source)
    migration = DestinationMigration(target, link)
    with ExitStack() as stack:

        def join_streams() -> None:
            for number in (1, 2):
                one, other = socket.socketpair()
                sent = recorded(f"v4.stream{number}")
                stack.enter_context(one).sendall(sent[:hello])
                join(migration, MigrationLink(SocketLink(other)))
                one.sendall(sent[hello:])

        link.on_wait = join_streams
        migration.run()
    assert target.runs
    assert target.parts == PARTS
    assert target.ram is not None
    assert [target.ram.page(pfn)[:1] for pfn in (1, 513, 514)] == [b"\1", b"\2", b"\0"]
    assert link.sent == replies


def test_replies_of_version_3_are_accepted() -> None:
    guest, link = WritingGuest(CONFIG, BEFORE), RecordedLink(recorded("v3.destination"))
    SourceMigration(guest, link, Settings(), MigrationProgress()).run()
    assert not guest.running
    assert link.sent.endswith(messages.Commit().record().encode())


def test_the_recording_equals_the_current_stream(tmp_path: Path) -> None:
    record_sample(tmp_path / "v3")
    for side in ("source", "destination"):
        assert (tmp_path / f"v3.{side}").read_bytes() == recorded(f"v3.{side}")


@NEEDS_XXH3
def test_the_recording_equals_the_current_stream_with_an_offer(tmp_path: Path) -> None:
    record_sample(tmp_path / "v5", offered=("xxh3",))
    for side in ("source", "destination"):
        assert (tmp_path / f"v5.{side}").read_bytes() == recorded(f"v5.{side}")


def test_a_source_of_version_1_is_refused_by_name() -> None:
    """It can read the reason, as `failed` never changes."""
    link = RecordedLink(recorded("v1.source"))
    reason = "the source sends version 1 of the migration stream; this pyvmm reads versions 2 to 5"
    with pytest.raises(MigrationError, match=reason):
        DestinationMigration(FakeTarget(), link).run()
    assert link.sent == Record("failed", 1, reason.encode()).encode()


def test_a_destination_of_version_1_refuses_and_the_guest_stays() -> None:
    guest = WritingGuest(CONFIG)
    source = SourceMigration(
        guest, RecordedLink(recorded("v1.refusal")), Settings(), MigrationProgress()
    )
    with pytest.raises(PeerAborted, match="'migration' has version 2; this pyvmm reads 1 to 1"):
        source.run()
    assert guest.running


def test_a_destination_of_version_2_refuses_and_the_guest_stays() -> None:
    guest = WritingGuest(CONFIG)
    link = RecordedLink(recorded("v2.refusal"))
    source = SourceMigration(guest, link, Settings(), MigrationProgress())
    with pytest.raises(PeerAborted, match=r"sends version 3 .* this pyvmm reads version 2"):
        source.run()
    assert guest.running


def received(*parts: Record) -> FakeTarget:
    """Receive the recorded guest with `parts` in addition to its own, none of them required."""
    first = Record("cpu", 1, PARTS[0].payload).encode()
    before, after = recorded("v3.source").split(first)
    stream = before + b"".join(part.encode() for part in parts) + first + after
    target = FakeTarget()
    DestinationMigration(target, RecordedLink(stream)).run()
    return target


def test_an_optional_part_that_is_unknown_is_skipped() -> None:
    target = received(Record("vgpu", 3, bytes(PAGE), 7, optional=True))
    assert target.runs
    assert target.parts == PARTS


def test_an_optional_part_that_is_known_is_restored() -> None:
    part = Record("cpu", 1, b"one more", 2, optional=True)
    assert received(part).parts == [part, *PARTS]


def test_a_newer_part_is_restored_if_it_is_compatible() -> None:
    part = Record("cpu", 2, b"newer", 2, optional=True, compatible=1)
    assert received(part).parts == [part, *PARTS]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Record("vgpu", 3, b""), "records of kind 'vgpu' are not known here"),
        (Record("cpu", 2, b"", 2), "'cpu' has version 2; this pyvmm reads version 1"),
    ],
)
def test_parts_that_are_unknown_or_newer_are_refused_by_name(part: Record, message: str) -> None:
    with pytest.raises(MigrationError, match=message):
        received(part)
