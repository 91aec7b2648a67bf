# SPDX-License-Identifier: Apache-2.0
"""The few ACPI Machine Language terms that a static DSDT needs (ACPI 6.4, chapters 6.4 and 20.2).

Every function returns the bytes of one term; terms nest by passing one's bytes to another:

    device("COM1", name("_HID", eisa_id("PNP0501")), name("_CRS", resources(io_port(0x3F8, 8))))

There are no methods: every object is a constant.
"""

from __future__ import annotations

import struct

_NAME_OP = b"\x08"
_SCOPE_OP = b"\x10"
_BUFFER_OP = b"\x11"
_PACKAGE_OP = b"\x12"
_STRING_PREFIX = b"\x0d"
_DEVICE_OP = b"\x5b\x82"
_DUAL_NAME_PREFIX = b"\x2e"
_MULTI_NAME_PREFIX = b"\x2f"

# General flags of an address space descriptor: minimum and maximum are fixed (6.4.3.5).
_FIXED_RANGE = 0x0C
_MEMORY_SPACE, _IO_SPACE, _BUS_SPACE = 0, 1, 2
_ENTIRE_IO_RANGE = 0x03
_MEMORY_READ_WRITE = 0x01  # and neither cacheable nor prefetchable, so any BAR may go there


def integer(value: int) -> bytes:
    """Encode an unsigned integer of up to 64 bits in its shortest form (20.2.3)."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit 64 bits")


def string(text: str) -> bytes:
    """Encode an ASCII string."""
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """Encode a seven-character EISA id such as PNP0A03 as the integer it stands for (19.6.36)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + packed.to_bytes(4, "big")


def package(*elements: bytes) -> bytes:
    """Encode a package of up to 255 elements."""
    return _PACKAGE_OP + _with_length(bytes([len(elements)]) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """Encode a buffer with its initial contents."""
    return _BUFFER_OP + _with_length(integer(len(data)) + data)


def name(path: str, value: bytes) -> bytes:
    """Encode Name (path, value)."""
    return _NAME_OP + _name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Encode Scope (path) with `terms` in it."""
    return _SCOPE_OP + _with_length(_name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Encode Device (path) with `terms` in it."""
    return _DEVICE_OP + _with_length(_name_string(path) + b"".join(terms))


def _name_string(path: str) -> bytes:
    r"""Encode a name such as PCI0, \_S5 or \_SB.PCI0; short segments are padded with _ (20.2.2)."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [part.ljust(4, "_").encode("ascii") for part in path.lstrip("\\").split(".")]
    prefix = b""
    if len(segments) == 2:
        prefix = _DUAL_NAME_PREFIX
    elif len(segments) > 2:
        prefix = _MULTI_NAME_PREFIX + bytes([len(segments)])
    return root + prefix + b"".join(segments)


def _with_length(body: bytes) -> bytes:
    """Prepend the package length, which counts its own one to four bytes (20.2.4)."""
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        length = len(body) + 1 + extra
        if length < 1 << (4 + 8 * extra):
            lead = extra << 6 | length & 0xF
            return bytes([lead]) + (length >> 4).to_bytes(extra, "little") + body
    raise ValueError(f"an AML package cannot hold {len(body)} bytes")


# --- Resource descriptors (6.4) -----------------------------------------------------------------
def resources(*descriptors: bytes) -> bytes:
    """Encode a resource template: a buffer of descriptors with the end tag."""
    return buffer(b"".join(descriptors) + b"\x79\0")  # checksum 0: not computed (6.4.2.9)


def io_port(port: int, count: int) -> bytes:
    """Encode `count` fixed I/O ports, all 16 address bits decoded."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, count)


def irq(line: int) -> bytes:
    """Encode one edge-triggered, active-high ISA interrupt."""
    return struct.pack("<BH", 0x22, 1 << line)


def fixed_memory32(gpa: int, length: int) -> bytes:
    """Encode memory below 4 GiB that a device occupies, read and write."""
    return struct.pack("<BHBII", 0x86, 9, 1, gpa, length)


def bus_numbers(first: int, last: int) -> bytes:
    """Encode the range of PCI bus numbers below a host bridge."""
    return _address_space(0x88, "H", _BUS_SPACE, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """Encode a range of I/O ports that a bridge forwards."""
    return _address_space(0x88, "H", _IO_SPACE, _ENTIRE_IO_RANGE, first, last)


def memory_window32(first: int, last: int) -> bytes:
    """Encode a range of addresses below 4 GiB that a bridge forwards."""
    return _address_space(0x87, "I", _MEMORY_SPACE, _MEMORY_READ_WRITE, first, last)


def memory_window64(first: int, last: int) -> bytes:
    """Encode a range of 64-bit addresses that a bridge forwards."""
    return _address_space(0x8A, "Q", _MEMORY_SPACE, _MEMORY_READ_WRITE, first, last)


def _address_space(tag: int, number: str, kind: int, flags: int, first: int, last: int) -> bytes:
    """Encode an address space descriptor: no granularity, no translation (6.4.3.5)."""
    numbers = struct.pack(f"<5{number}", 0, first, last, 0, last - first + 1)
    body = struct.pack("<BBB", kind, _FIXED_RANGE, flags) + numbers
    return struct.pack("<BH", tag, len(body)) + body
