# SPDX-License-Identifier: Apache-2.0
"""Decompress the kernel inside a bzImage, with every compression that Linux/x86 supports.

arch/x86/boot/compressed/Makefile creates the payload with the ordinary tools (gzip, bzip2, lzma, xz
with the x86 filter, lzop, `lz4 -l`, zstd) and appends the uncompressed size, four bytes,
little-endian; a gzip stream already ends with that number. Maintained libraries decompress. Two
containers that no library reads are parsed here: lzop's and the legacy frame of lz4.

A payload is not trusted: its uncompressed size is bounded, no decompressor produces more than one
block beyond it, and every failure of a library is a `PayloadError`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

MAX_KERNEL_BYTES = 512 << 20
"""Larger than any kernel: KERNEL_IMAGE_SIZE, which its mapping of itself covers, is 512 MiB, or
1 GiB with KASLR, which uses a part of it."""

# Memory of the decoders. Linux uses a dictionary of 128 MiB for xz and a window of 2^27 for zstd.
XZ_MEMORY_BYTES = 256 << 20
ZSTD_WINDOW_BYTES = 1 << 27
ZSTD_STEP_BYTES = 1024  # four bytes may decompress to 128 KiB
LZ4_BLOCK_BYTES = 8 << 20
LZO_BLOCK_BYTES = 256 << 10

_LZOP_VERSION_0940 = 0x0940  # later versions have a level and the high half of the time
_LZOP_ADLER32_DATA, _LZOP_ADLER32_BLOCK = 1 << 0, 1 << 1
_LZOP_CRC32_DATA, _LZOP_CRC32_BLOCK = 1 << 8, 1 << 9
_LZOP_FILTER = 1 << 11


class PayloadError(Exception):
    """The payload cannot be decompressed; the message gives the reason."""


def decompress(payload: bytes) -> bytes:
    """Return the uncompressed kernel, whose size the payload's last four bytes declare."""
    matching = [expand for magic, expand in _COMPRESSIONS.items() if payload.startswith(magic)]
    if not matching:
        raise PayloadError(f"its compression is unknown (first bytes: {payload[:6].hex(' ')})")
    (expand,) = matching
    declared = int.from_bytes(payload[-4:], "little")
    if declared > MAX_KERNEL_BYTES:
        raise PayloadError(f"it declares {declared >> 20} MiB, more than any kernel has")
    stream = payload if expand is _gunzip else payload[:-4]
    kernel = expand(stream, declared)
    if len(kernel) != declared:
        relation = "more" if len(kernel) > declared else "less"
        raise PayloadError(f"it holds {relation} than the {declared} bytes it declares")
    return kernel


def _gunzip(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        return _complete(stream, stream.decompress(data, limit + 1), limit)
    except zlib.error as error:
        raise PayloadError(f"gzip: {error}") from error


def _bunzip2(data: bytes, limit: int) -> bytes:
    import bz2  # saves 1 ms with other compressions, and where the vmlinux is cached

    stream = bz2.BZ2Decompressor()
    try:
        return _complete(stream, stream.decompress(data, limit + 1), limit)
    except (OSError, ValueError) as error:
        raise PayloadError(f"bzip2: {error}") from error


def _unxz(data: bytes, limit: int) -> bytes:
    import lzma  # saves 1 ms, as bz2 does

    stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)  # .xz and .lzma alike
    try:
        return _complete(stream, stream.decompress(data, limit + 1), limit)
    except lzma.LZMAError as error:
        raise PayloadError(f"xz or lzma: {error}") from error


def _unzstd(data: bytes, limit: int) -> bytes:
    import zstandard  # saves 1 ms, as bz2 does

    stream = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()

    def blocks() -> Iterator[bytes]:
        for begin in range(0, len(data), ZSTD_STEP_BYTES):
            if not stream.eof:
                yield stream.decompress(data[begin : begin + ZSTD_STEP_BYTES])

    try:
        return _complete(stream, _join(blocks(), limit), limit)
    except zstandard.ZstdError as error:
        raise PayloadError(f"zstd: {error}") from error


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...


def _complete(stream: _Stream, output: bytes, limit: int) -> bytes:
    """Return `output` if the stream has ended, its final checksum included."""
    if len(output) <= limit and not stream.eof:
        raise PayloadError("it is incomplete and holds less than it declares")
    return output


def _unlz4(data: bytes, limit: int) -> bytes:
    """Decompress a legacy frame (lz4_Frame_format.md): magic, then blocks with a length word."""
    import lz4.block  # saves 1 ms, as bz2 does

    def block(compressed: bytes) -> bytes:
        try:
            return bytes(lz4.block.decompress(compressed, uncompressed_size=LZ4_BLOCK_BYTES))
        except lz4.block.LZ4BlockError as error:
            raise PayloadError(f"lz4: {error}") from error

    def blocks(reader: _ContainerReader) -> Iterator[bytes]:
        while not reader.at_end:
            yield block(reader.take(reader.number("<I")))

    return _join(blocks(_ContainerReader(data, 4)), limit)


def _unlzo(data: bytes, limit: int) -> bytes:
    """Decompress lzop's file: a header, blocks of lengths, checksums and data, then a zero."""

    def blocks(reader: _ContainerReader) -> Iterator[bytes]:
        flags = _skip_lzop_header(reader)
        while size := reader.number(">I"):
            yield _lzo_block(reader, flags, size)

    return _join(blocks(_ContainerReader(data, 9)), limit)


def _skip_lzop_header(reader: _ContainerReader) -> int:
    """Skip the header, which describes the packed file; return its flags."""
    version = reader.number(">H")
    reader.take(5)  # version of the library, version needed, method
    if version >= _LZOP_VERSION_0940:
        reader.take(1)  # level
    flags = reader.number(">I")
    if flags & _LZOP_FILTER:
        reader.take(4)
    reader.take(12 if version >= _LZOP_VERSION_0940 else 8)  # mode and time
    reader.take(reader.number("B"))  # name
    reader.take(4)  # checksum
    return flags


def _lzo_block(reader: _ContainerReader, flags: int, size: int) -> bytes:
    from lzallright import LZOCompressor, LZOError  # saves 1 ms, as bz2 does

    stored = reader.number(">I")
    if size > LZO_BLOCK_BYTES or stored > size:
        raise PayloadError(f"lzo: a block of {size} bytes, {stored} of them stored")
    adler32 = reader.number(">I") if flags & _LZOP_ADLER32_DATA else None
    reader.take(4 * bool(flags & _LZOP_CRC32_DATA))
    if stored < size:
        reader.take(4 * bool(flags & _LZOP_ADLER32_BLOCK) + 4 * bool(flags & _LZOP_CRC32_BLOCK))
    block = reader.take(stored)
    if stored < size:  # otherwise it is stored uncompressed
        try:
            block = LZOCompressor.decompress(block, size)
        except LZOError as error:
            raise PayloadError(f"lzo: {error}") from error
    if len(block) != size or adler32 not in (None, zlib.adler32(block)):
        raise PayloadError("lzo: a block is damaged")
    return block


class _ContainerReader:
    """A container's bytes, read from `offset` on; reading past the end is a `PayloadError`."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    @property
    def at_end(self) -> bool:
        return self._offset >= len(self._data)

    def take(self, count: int) -> bytes:
        piece = self._data[self._offset : self._offset + count]
        if len(piece) != count:
            raise PayloadError("it ends in the middle of a block")
        self._offset += count
        return piece

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)


def _join(blocks: Iterator[bytes], limit: int) -> bytes:
    """Concatenate `blocks` up to the first that exceeds `limit` bytes."""
    output = bytearray()
    for block in blocks:
        output += block
        if len(output) > limit:
            break
    return bytes(output)


_COMPRESSIONS: dict[bytes, Callable[[bytes, int], bytes]] = {
    b"\x1f\x8b": _gunzip,
    b"BZh": _bunzip2,
    b"\x5d\x00\x00": _unxz,  # lzma as xz-utils writes it: lc 3, lp 0, pb 2, a dictionary of 2^n
    b"\xfd7zXZ\x00": _unxz,
    b"\x89LZO\x00\r\n\x1a\n": _unlzo,
    b"\x02\x21\x4c\x18": _unlz4,
    b"\x28\xb5\x2f\xfd": _unzstd,
}
