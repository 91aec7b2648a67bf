# SPDX-License-Identifier: Apache-2.0
"""A source offers its fastest checksum, and a destination takes it if it can."""

from __future__ import annotations

import pytest

from pyvmm.migration import checksum_choice, messages
from pyvmm.migration.checksum_choice import choose, faster_checksums
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.state.records import Kind, RecordReader, record_fields
from tests.pyvmm.migration.migration_guest import (
    FakeTarget,
    PageWrite,
    WritingGuest,
    check_memory,
    migrate,
)
from tests.pyvmm.migration.sample_stream import BEFORE, CONFIG
from tests.pyvmm.migration.test_stream_versions import NEEDS_XXH3, RecordedLink, recorded

WRITES = [PageWrite(pfn, 7) for pfn in (1, 2, 600)]


@pytest.fixture
def xxh3_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.migration.source.faster_checksums", lambda: ("xxh3",))


def moved(settings: Settings) -> bytes:
    """Migrate a guest; return the beginning of what the destination has replied."""
    replies = bytearray()

    def record(data: bytes, offset: int) -> bytes:
        replies.extend(data)
        return data

    guest, target = WritingGuest(CONFIG, WRITES), FakeTarget()
    result = migrate(guest, target, settings, corrupt_target=record)
    assert result.source_error is result.target_error is None
    check_memory(guest, target.ram)
    return bytes(replies)


@NEEDS_XXH3
@pytest.mark.usefixtures("xxh3_is_faster")
def test_the_destination_chooses_what_was_offered() -> None:
    assert moved(Settings()).startswith(messages.Welcome(checksum="xxh3").record().encode())


@NEEDS_XXH3
@pytest.mark.usefixtures("xxh3_is_faster")
def test_streams_have_the_checksum_that_was_chosen() -> None:
    replies = moved(Settings(streams=2))
    head = messages.Welcome(bytes(messages.TOKEN_BYTES), "xxh3").record().encode()
    assert len(replies) > len(head)
    assert replies[52:68] == b"xxh3".ljust(16, b"\0"), "behind the header"


@pytest.mark.usefixtures("xxh3_is_faster")
def test_a_checksum_that_was_named_is_the_only_one() -> None:
    assert moved(Settings(checksum="crc32c")).startswith(messages.Welcome().record().encode())


@pytest.mark.usefixtures("xxh3_is_faster")
def test_a_destination_without_what_is_offered_uses_crc32c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_choice, "CHECKSUMS", ("crc32c", "none"))
    assert moved(Settings()).startswith(messages.Welcome().record().encode())


@pytest.mark.usefixtures("xxh3_is_faster")
def test_a_destination_that_knows_no_offers_uses_crc32c() -> None:
    guest, link = WritingGuest(CONFIG, BEFORE), RecordedLink(recorded("v3.destination"))
    source = SourceMigration(guest, link, Settings(), MigrationProgress())
    source.run()
    assert not guest.running


@pytest.mark.parametrize(("streams", "older"), [(1, 3), (1, 4), (2, 4)])
def test_a_destination_of_an_older_version_reads_an_offer(streams: int, older: int) -> None:
    hello = messages.Hello(CONFIG, "crc32c", streams, ("xxh3",)).record()
    known = Kind(older, len(hello.payload))
    reader = RecordReader({messages.HELLO: known})
    reader.feed(hello.encode())
    record = reader.next()
    assert record is not None
    assert record_fields(record, known).text("checksum") == "crc32c"


def test_a_destination_that_knows_no_streams_refuses_an_offer_with_streams() -> None:
    hello = messages.Hello(CONFIG, "crc32c", 2, ("xxh3",)).record()
    reader = RecordReader({messages.HELLO: Kind(3, len(hello.payload))})
    reader.feed(hello.encode())
    with pytest.raises(ValueError, match="'migration' has version 5"):
        reader.next()


@pytest.mark.usefixtures("xxh3_is_faster")
def test_a_checksum_that_was_not_offered_is_refused() -> None:
    guest = WritingGuest(CONFIG, BEFORE)
    link = RecordedLink(messages.Welcome(checksum="none").record().encode())
    source = SourceMigration(guest, link, Settings(), MigrationProgress())
    with pytest.raises(MigrationError, match="has chosen the checksum 'none', not offered"):
        source.run()
    assert guest.running


def test_no_checksum_is_not_chosen_from_an_offer() -> None:
    assert choose("crc32c", ("md5", "none"), local=True) == ("crc32c", "")


@NEEDS_XXH3
@pytest.mark.parametrize(("crc32c_s", "faster"), [(3.0, ("xxh3",)), (1.0, ())])
def test_only_faster_checksums_are_offered(
    monkeypatch: pytest.MonkeyPatch, crc32c_s: float, faster: tuple[str, ...]
) -> None:
    taken_s = {"crc32c": crc32c_s, "xxh3": 2.0}
    monkeypatch.setattr(checksum_choice, "_least_s", lambda name, sample: taken_s[name])
    assert faster_checksums() == faster
