# SPDX-License-Identifier: Apache-2.0
"""The checksum of pages: chosen by the source, refused by a destination that cannot rely on it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.migration import messages
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.errors import MigrationError, PeerAborted
from pyvmm.migration.page_channel import ReceivedPages, SocketPages
from pyvmm.migration.progress import Settings
from pyvmm_native.checksum import CHECKSUMS
from tests.fuzz import page_stream
from tests.pyvmm.migration.migration_guest import (
    CONFIG,
    PAGE,
    FakeTarget,
    PageWrite,
    WritingGuest,
    check_memory,
    flip_at,
    migrate,
)
from tests.pyvmm.migration.test_stream_versions import RecordedLink

WRITES = [PageWrite(pfn, 7) for pfn in (1, 2, 600)]


@pytest.mark.parametrize("name", CHECKSUMS)
def test_memory_arrives_with_every_checksum(name: str) -> None:
    guest, target = WritingGuest(CONFIG, WRITES), FakeTarget()
    result = migrate(guest, target, Settings(checksum=name))
    assert result.source_error is result.target_error is None
    check_memory(guest, target.ram)
    assert target.runs


@given(st.sampled_from(["crc32c", "xxh3"]), st.integers(0, 2 * PAGE + 7), st.integers(0, 7))
def test_a_guest_with_a_damaged_page_never_runs(name: str, offset: int, bit: int) -> None:
    """The damage is in the pages or their checksum, which follow the first two messages."""
    before = len(messages.Hello(CONFIG, name).record().encode())
    before += len(messages.Pages(0, bytes(64)).record().encode())
    guest, target = WritingGuest(CONFIG, WRITES), FakeTarget()
    result = migrate(
        guest, target, Settings(checksum=name), corrupt_source=flip_at(before + offset, bit)
    )
    assert str(result.target_error) == "pages are damaged: wrong checksum"
    assert isinstance(result.source_error, PeerAborted)
    assert guest.running
    assert target.runs is None
    assert target.parts == ()


@given(st.binary(min_size=6, max_size=64))
@settings(max_examples=300)
def test_a_damaged_stream_of_pages_never_starts_the_guest(data: bytes) -> None:
    page_stream.run(data)


@pytest.mark.parametrize("flags", [8, 8 | 16], ids=["unix", "tcp"])
def test_fuzzed_streams_have_batches(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []
    receive_blocks = SocketPages.receive_blocks

    def counted(pages: SocketPages, head: bytes, block_s: float) -> ReceivedPages:
        result = receive_blocks(pages, head, block_s)
        received.append(result.pages)
        return result

    monkeypatch.setattr(SocketPages, "receive_blocks", counted)
    page_stream.run(bytes([0, flags, 0, 0, 0, 0, *(1, 0, 7), *(2, 0, 7), *(3, 0, 7)]))
    assert received == [3]


@pytest.mark.parametrize(
    ("name", "local", "reason"),
    [
        ("none", False, "pages without a checksum are received over unix sockets only"),
        ("md5", True, "this pyvmm has no checksum 'md5', only crc32c, none, xxh3"),
    ],
)
def test_a_destination_refuses_a_checksum_before_it_creates_the_machine(
    name: str, local: bool, reason: str
) -> None:
    target = FakeTarget()
    link = RecordedLink(messages.Hello(CONFIG, name).record().encode())
    link.local = local
    with pytest.raises(MigrationError, match=reason):
        DestinationMigration(target, link).run()
    assert link.sent == messages.Failed(reason).record().encode()
    assert target.ram is None
