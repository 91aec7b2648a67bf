# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes as the stream of a migration.

Invariant: all readers, that of a further stream included, return messages or raise
`MigrationError`, nothing else; a source's pages lie inside the RAM it has declared; and none holds
more than one message and what it was fed last.

Random bytes seldom have the right checksum, so the first byte chooses how the others are used: as
they are, or as headers and payloads of records that are then encoded properly.
"""

from __future__ import annotations

from devices.state import MAX_PAYLOAD_BYTES
from pyvmm.migration import messages
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.stream import DestinationReader, SourceReader, StreamReader, ram_pages
from pyvmm.state.records import HEADER_BYTES, Kind, Record
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.pyvmm.migration.migration_guest import KINDS, config_of

RAM_MIB = 64
HELLO = messages.Hello(config_of(RAM_MIB)).record().encode()
_RAM = ram_pages(config_of(RAM_MIB))
_KINDS: dict[str, Kind] = {**messages.SOURCE_KINDS, **messages.DESTINATION_KINDS, **KINDS}
_NAMES = sorted({*_KINDS, "unknown"})
MAX_MESSAGE_BYTES = max(
    HEADER_BYTES, MAX_PAYLOAD_BYTES, *(kind.max_bytes for kind in _KINDS.values())
)
_PAGE = bytes(PAGE_BYTES)


def run(data: bytes) -> None:
    """Feed `data` to all readers; raise any error that is not a `MigrationError`."""
    way, rest = data[:1], data[1:]
    stream = _as_records(rest) if way and way[0] & 1 else rest
    _read(StreamReader(_RAM), stream)
    if not way or way[0] & 2:
        stream = HELLO + stream
    _read(SourceReader(KINDS), stream)
    _read(DestinationReader(), stream)


def _as_records(data: bytes) -> bytes:
    """Return records made of `data`: kind, version and flags, instance, length, payload."""
    stream = bytearray()
    while len(data) >= 4:
        name = _NAMES[data[0] % len(_NAMES)]
        length = data[3]
        payload = data[4 : 4 + length]
        if name == "pages" and data[1] & 1:
            bits = int.from_bytes(payload[8:72], "little").bit_count()
            payload += _PAGE * min(bits, 3)
        version, optional, compatible = 1 + (data[1] >> 6), bool(data[1] & 2), data[1] & 4
        compatible = min(compatible, version - 1)
        stream += Record(name, version, payload, data[2] >> 6, optional, compatible).encode()
        data = data[4 + length :]
    return bytes(stream)


def _read(reader: SourceReader | StreamReader | DestinationReader, stream: bytes) -> None:
    ram = _RAM if isinstance(reader, StreamReader) else PageRuns()
    for start in range(0, len(stream), 1000):
        reader.feed(stream[start : start + 1000])
        try:
            while (message := reader.next()) is not None:
                if isinstance(message, messages.Hello):
                    ram = ram_pages(message.config)
                _check(message, ram)
        except MigrationError:
            return
        assert reader.wanted_bytes <= MAX_MESSAGE_BYTES


def _check(message: object, ram: PageRuns) -> None:
    match message:
        case messages.Pages(_, _, data):
            assert message.runs.pages == message.count
            assert not data or message.count * PAGE_BYTES == len(data)
            assert not message.runs.subtract(ram)
        case messages.Zeros(runs):
            assert runs
            assert not runs.subtract(ram)
        case messages.StreamHello(token):
            assert len(token) == messages.TOKEN_BYTES
        case messages.Welcome(token, checksum):
            assert len(token) in (0, messages.TOKEN_BYTES)
            assert checksum.isascii()
        case messages.Failed(reason):
            assert reason.isprintable()
