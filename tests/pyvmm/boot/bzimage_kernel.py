# SPDX-License-Identifier: Apache-2.0
"""Small bzImages around any payload (Documentation/arch/x86/boot.rst, the kernel header).

`pack` compresses as arch/x86/boot/compressed/Makefile and scripts/Makefile.lib do: with the real
tools, and with the uncompressed size appended.
"""

from __future__ import annotations

import struct
import subprocess

SETUP_SECTORS = 2
PAYLOAD_OFFSET = 0x40

TOOLS = {
    "gzip": ("gzip", "-n", "-f", "-9"),
    "bzip2": ("bzip2", "-9"),
    "lzma": ("xz", "--format=lzma", "-9"),
    "xz": ("xz", "--check=crc32", "--threads=1", "--x86", "--lzma2=,dict=128MiB"),
    "lzo": ("lzop", "-9"),
    "lz4": ("lz4", "-l", "-9", "-", "-"),
    "zstd": ("zstd", "-22", "--ultra"),
}


def pack(compression: str, data: bytes, declared_bytes: int | None = None) -> bytes:
    """Return the payload that contains `data`; `declared_bytes` replaces its length."""
    run = subprocess.run(TOOLS[compression], input=data, capture_output=True, check=True)
    size = struct.pack("<I", len(data) if declared_bytes is None else declared_bytes)
    return (run.stdout[:-4] if compression == "gzip" else run.stdout) + size


def bzimage(payload: bytes, **fields: int) -> bytes:
    """Return a bzImage with `payload`; `fields` of its setup header can be invalid."""
    values = {
        "setup_sects": SETUP_SECTORS,
        "boot_flag": 0xAA55,
        "jump_length": 0x6A,
        "version": 0x020F,
        "initrd_addr_max": 0x7FFF_FFFF,
        "xloadflags": 0x7F,
        "cmdline_size": 2047,
        "payload_offset": PAYLOAD_OFFSET,
        "payload_length": len(payload),
        **fields,
    }
    setup = bytearray((1 + SETUP_SECTORS) * 512)
    setup[0x1F1] = values["setup_sects"]
    struct.pack_into("<HBB4sH", setup, 0x1FE, values["boot_flag"], 0xEB, values["jump_length"],
                     b"HdrS", values["version"])  # fmt: skip
    struct.pack_into("<H", setup, 0x1FA, 0xFFFF)  # vid_mode: any value, to find it again
    struct.pack_into("<IIBBHI", setup, 0x22C, values["initrd_addr_max"], 0x20_0000, 1, 0x15,
                     values["xloadflags"], values["cmdline_size"])  # fmt: skip
    struct.pack_into("<II", setup, 0x248, values["payload_offset"], values["payload_length"])
    struct.pack_into("<QQ", setup, 0x250, 0xDEAD, 0x100_0000)  # setup_data, pref_address
    return bytes(setup) + bytes(PAYLOAD_OFFSET) + payload + b"after the payload"
