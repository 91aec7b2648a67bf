# SPDX-License-Identifier: Apache-2.0
"""The compressed kernel inside a bzImage: every compression Linux/x86 can be built with.

arch/x86/boot/compressed/Makefile makes the payload with the ordinary tools (gzip, bzip2, lzma, xz
with the x86 filter, lzop, `lz4 -l`, zstd) and ends it with the size of what is inside, four bytes,
little-endian; a gzip stream ends with that number by itself. Maintained libraries decompress, and
the two containers that no library reads are walked here: lzop's, and the legacy one of lz4.

A payload is hostile: no decompressor gives out more than the promised size and a little, that size
is bounded, and whatever goes wrong in a library is a `PayloadError`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

MAX_KERNEL_BYTES = 512 << 20
"""More than any kernel: its mapping of itself (KERNEL_IMAGE_SIZE) is 512 MiB, or 1 GiB of which
address randomisation takes a part."""

# The decoder's memory. Linux asks xz for a dictionary of 128 MiB, zstd for a window of 2^27.
XZ_MEMORY_BYTES = 256 << 20
ZSTD_WINDOW_BYTES = 1 << 27
ZSTD_STEP_BYTES = 1024  # four of which may stand for 128 KiB of output
LZ4_BLOCK_BYTES = 8 << 20
LZO_BLOCK_BYTES = 256 << 10

_LZOP_VERSION_0940 = 0x0940  # from here on: a compression level, the high half of the time
_LZOP_ADLER32_DATA, _LZOP_ADLER32_BLOCK = 1 << 0, 1 << 1
_LZOP_CRC32_DATA, _LZOP_CRC32_BLOCK = 1 << 8, 1 << 9
_LZOP_FILTER = 1 << 11


class PayloadError(Exception):
    """The payload cannot be decompressed; says why."""


def decompress(payload: bytes) -> bytes:
    """Return what is inside, exactly as large as the payload's last four bytes promise."""
    matching = [expand for magic, expand in _COMPRESSIONS.items() if payload.startswith(magic)]
    if not matching:
        raise PayloadError(f"its compression is unknown (it begins with {payload[:6].hex(' ')})")
    (expand,) = matching
    promised = int.from_bytes(payload[-4:], "little")
    if promised > MAX_KERNEL_BYTES:
        raise PayloadError(f"it claims to hold {promised >> 20} MiB, which no kernel does")
    stream = payload if expand is _gunzip else payload[:-4]
    kernel = expand(stream, promised)
    if len(kernel) != promised:
        relation = "more" if len(kernel) > promised else "less"
        raise PayloadError(f"it holds {relation} than the {promised} bytes it promises")
    return kernel


def _gunzip(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        return _to_the_end(stream, stream.decompress(data, limit + 1), limit)
    except zlib.error as error:
        raise PayloadError(f"gzip: {error}") from error


def _bunzip2(data: bytes, limit: int) -> bytes:
    import bz2

    stream = bz2.BZ2Decompressor()
    try:
        return _to_the_end(stream, stream.decompress(data, limit + 1), limit)
    except (OSError, ValueError) as error:
        raise PayloadError(f"bzip2: {error}") from error


def _unxz(data: bytes, limit: int) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)  # .xz and .lzma alike
    try:
        return _to_the_end(stream, stream.decompress(data, limit + 1), limit)
    except lzma.LZMAError as error:
        raise PayloadError(f"xz or lzma: {error}") from error


def _unzstd(data: bytes, limit: int) -> bytes:
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()

    def blocks() -> Iterator[bytes]:
        for begin in range(0, len(data), ZSTD_STEP_BYTES):
            if not stream.eof:
                yield stream.decompress(data[begin : begin + ZSTD_STEP_BYTES])

    try:
        return _to_the_end(stream, _joined(blocks(), limit), limit)
    except zstandard.ZstdError as error:
        raise PayloadError(f"zstd: {error}") from error


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...


def _to_the_end(stream: _Stream, output: bytes, limit: int) -> bytes:
    """`output`, unless the stream goes on (its last checksum, for one) where the data ends."""
    if len(output) <= limit and not stream.eof:
        raise PayloadError("it ends in the middle, and holds less than it promises")
    return output


def _unlz4(data: bytes, limit: int) -> bytes:
    """The legacy frame (lz4_Frame_format.md): magic, then blocks of one length word each."""
    import lz4.block

    def block(compressed: bytes) -> bytes:
        try:
            return bytes(lz4.block.decompress(compressed, uncompressed_size=LZ4_BLOCK_BYTES))
        except lz4.block.LZ4BlockError as error:
            raise PayloadError(f"lz4: {error}") from error

    def blocks(words: _Words) -> Iterator[bytes]:
        while not words.at_end:
            yield block(words.take(words.number("<I")))

    return _joined(blocks(_Words(data, 4)), limit)


def _unlzo(data: bytes, limit: int) -> bytes:
    """lzop's file: a header, then blocks of lengths, checksums and data, and a zero at the end."""

    def blocks(words: _Words) -> Iterator[bytes]:
        flags = _skip_lzop_header(words)
        while size := words.number(">I"):
            yield _lzo_block(words, flags, size)

    return _joined(blocks(_Words(data, 9)), limit)


def _skip_lzop_header(words: _Words) -> int:
    """Step over what describes the file that was packed; returns the flags."""
    version = words.number(">H")
    words.take(5)  # version of the library, version needed, method
    if version >= _LZOP_VERSION_0940:
        words.take(1)  # level
    flags = words.number(">I")
    if flags & _LZOP_FILTER:
        words.take(4)
    words.take(12 if version >= _LZOP_VERSION_0940 else 8)  # mode and time
    words.take(words.number("B"))  # name
    words.take(4)  # checksum
    return flags


def _lzo_block(words: _Words, flags: int, size: int) -> bytes:
    from lzallright import LZOCompressor, LZOError

    stored = words.number(">I")
    if size > LZO_BLOCK_BYTES or stored > size:
        raise PayloadError(f"lzo: a block of {size} bytes, {stored} of them stored")
    adler32 = words.number(">I") if flags & _LZOP_ADLER32_DATA else None
    words.take(4 * bool(flags & _LZOP_CRC32_DATA))
    if stored < size:
        words.take(4 * bool(flags & _LZOP_ADLER32_BLOCK) + 4 * bool(flags & _LZOP_CRC32_BLOCK))
    block = words.take(stored)
    if stored < size:  # else it did not shrink and was left as it is
        try:
            block = LZOCompressor.decompress(block, size)
        except LZOError as error:
            raise PayloadError(f"lzo: {error}") from error
    if len(block) != size or adler32 not in (None, zlib.adler32(block)):
        raise PayloadError("lzo: a block is damaged")
    return block


class _Words:
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


def _joined(blocks: Iterator[bytes], limit: int) -> bytes:
    """All blocks together, stopping at the first that goes beyond `limit`."""
    output = bytearray()
    for block in blocks:
        output += block
        if len(output) > limit:
            break
    return bytes(output)


_COMPRESSIONS: dict[bytes, Callable[[bytes, int], bytes]] = {
    b"\x1f\x8b": _gunzip,
    b"BZh": _bunzip2,
    b"\x5d\x00\x00": _unxz,  # lzma as its tool writes it: lc 3, lp 0, pb 2, a dictionary of 2^n
    b"\xfd7zXZ\x00": _unxz,
    b"\x89LZO\x00\r\n\x1a\n": _unlzo,
    b"\x02\x21\x4c\x18": _unlz4,
    b"\x28\xb5\x2f\xfd": _unzstd,
}
