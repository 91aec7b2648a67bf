# SPDX-License-Identifier: Apache-2.0
"""bzImages: every compression that Linux supports, and payloads that are damaged or hostile."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.boot import bzimage as bzimage_module
from pyvmm.boot.image import read_kernel
from pyvmm.boot.loader import load_linux, read_boot_files
from pyvmm.boot.payload import LZO_BLOCK_BYTES, MAX_KERNEL_BYTES, PayloadError, decompress
from pyvmm.cache.directory import cache_dir
from pyvmm.cli.remedies import remedy
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.memory.ram import Ram
from pyvmm.units import MIB
from tests.pyvmm.boot.bzimage_kernel import TOOLS, bzimage, pack
from tests.pyvmm.boot.elf_kernel import LOAD_GPA, elf_kernel

# Half incompressible, half compressible: several blocks of both kinds.
CODE = random.Random(3).randbytes(2 * LZO_BLOCK_BYTES) + b"kernel" * 100_000
KERNEL = elf_kernel(CODE) + b"relocations"
SMALL = elf_kernel(b"\xf4" * 300)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vmlinuz"


def config(path: Path, **changes: Any) -> MachineConfig:
    given = {"initrd": None, "command_line": "", "ram_bytes": 64 * MIB, "vcpus": 1}
    return MachineConfig(kernel=path, dialect="standard", **{**given, **changes})


@pytest.mark.parametrize("compression", TOOLS)
def test_the_compressed_kernel_is_loaded(path: Path, compression: str) -> None:
    path.write_bytes(bzimage(pack(compression, KERNEL)))
    kernel = read_kernel(path)
    assert (kernel.path, kernel.entry) == (path, LOAD_GPA)
    ram = Ram(64 * MIB)
    kernel.load(ram.memory)
    assert ram.memory.read(LOAD_GPA, len(CODE)) == CODE


@pytest.mark.parametrize("compression", TOOLS)
def test_a_payload_larger_than_declared_is_refused(compression: str) -> None:
    bomb = pack(compression, bytes(40 * MIB), declared_bytes=MIB)
    assert len(bomb) < MIB
    with pytest.raises(PayloadError, match="holds more than the 1048576 bytes"):
        decompress(bomb)


@pytest.mark.parametrize("compression", TOOLS)
def test_a_payload_smaller_than_declared_is_refused(compression: str) -> None:
    with pytest.raises(PayloadError, match=r"less than|incorrect length check"):
        decompress(pack(compression, SMALL, declared_bytes=len(SMALL) + 1))
    with pytest.raises(PayloadError, match="more than any kernel has"):
        decompress(pack(compression, SMALL, declared_bytes=MAX_KERNEL_BYTES + 1))


@pytest.mark.parametrize("compression", TOOLS)
def test_a_truncated_payload_is_an_error(compression: str) -> None:
    whole = pack(compression, SMALL)
    for length in range(len(whole) - 4):
        with pytest.raises(PayloadError):
            decompress(whole[:length] + whole[-4:])


@pytest.mark.parametrize("compression", TOOLS)
@given(data=st.data())
def test_a_damaged_payload_is_an_error_or_has_the_declared_size(
    compression: str, data: st.DataObject
) -> None:
    payload = bytearray(PACKED[compression])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        kernel = decompress(bytes(payload))
    except PayloadError:
        return
    assert len(kernel) == int.from_bytes(payload[-4:], "little")


PACKED = {compression: pack(compression, SMALL) for compression in TOOLS}


def test_the_dictionary_size_of_an_lzma_stream_is_bounded() -> None:
    payload = bytearray(pack("lzma", SMALL))
    struct.pack_into("<I", payload, 1, 1 << 30)
    with pytest.raises(PayloadError, match=r"(?i)memory"):
        decompress(bytes(payload))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"boot_flag": 0}, "no setup header"),
        ({"version": 0x0207}, "boot protocol 2.07 is too old"),
        ({"xloadflags": 0}, "32-bit kernel"),
        ({"jump_length": 0x10}, "invalid length"),
        ({"jump_length": 0xFF}, "invalid length"),
        ({"payload_offset": 0}, "names no payload"),
        ({"payload_length": 7}, "names no payload"),
        ({"payload_length": 1 << 20}, "truncated"),
        ({"payload_offset": 0xFFFF_FFFF}, "truncated"),
        ({"payload_offset": 0x10}, "compression is unknown"),
        ({"setup_sects": 0}, "truncated"),
    ],
)
def test_an_invalid_setup_header_is_named_in_one_line(
    path: Path, fields: dict[str, int], complaint: str
) -> None:
    path.write_bytes(bzimage(pack("gzip", SMALL), **fields))
    with pytest.raises(UserError, match=complaint) as caught:
        read_kernel(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "vmlinuz" in remedy(caught.value)


@pytest.mark.parametrize("inside", [b"", b"no kernel at all", SMALL[:100], elf_kernel(machine=3)])
def test_a_payload_that_is_not_a_kernel_is_refused(path: Path, inside: bytes) -> None:
    path.write_bytes(bzimage(pack("xz", inside)))
    with pytest.raises(UserError, match=r"vmlinuz"):
        read_kernel(path)


def test_a_truncated_bzimage_is_a_user_error(path: Path) -> None:
    whole = bzimage(pack("zstd", SMALL))
    for length in [*range(0, 0x290, 7), *range(0x290, len(whole) - 17, 13)]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_kernel(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0x1F1, 0x26F), value=st.binary(min_size=1, max_size=8))
def test_any_setup_header_is_refused_or_copied_to_the_zero_page(
    path: Path, position: int, value: bytes
) -> None:
    content = bytearray(bzimage(PACKED["gzip"]))
    content[position : position + len(value)] = value
    path.write_bytes(content)
    try:
        files = read_boot_files(config(path))
    except UserError:
        return
    assert files.kernel.header is not None
    assert files.kernel.header.raw == content[0x1F1 : 0x202 + content[0x201]]


def test_the_setup_header_is_copied_to_the_zero_page(path: Path) -> None:
    initrd = path.with_name("initrd")
    initrd.write_bytes(b"x" * 100)
    path.write_bytes(bzimage(pack("lz4", SMALL), initrd_addr_max=0x2FF_FFFF, cmdline_size=3000))
    machine = config(path, initrd=initrd, command_line="y" * 3000)
    ram = Ram(machine.ram_bytes)
    boot = load_linux(read_boot_files(machine), machine, ram)
    page = ram.memory.read(boot.zero_page_gpa, 4096)
    header = path.read_bytes()[0x1F1:0x26C]
    filled_in = {0x210, 0x211, *range(0x218, 0x220), *range(0x228, 0x22C), *range(0x250, 0x258)}
    for offset in set(range(0x1F1, 0x26C)) - filled_in:
        assert page[offset] == header[offset - 0x1F1], hex(offset)
    assert page[0x26C:0x290] == bytes(0x24)
    assert page[0x250:0x258] == bytes(8)
    initrd_gpa, initrd_bytes = struct.unpack_from("<II", page, 0x218)
    assert (initrd_gpa, initrd_bytes) == (0x300_0000 - 4096, 100)
    (line_gpa,) = struct.unpack_from("<I", page, 0x228)
    assert ram.memory.read(line_gpa, 3001) == b"y" * 3000 + b"\0"
    longer = config(path, command_line="y" * 3001)
    with pytest.raises(UserError, match="the kernel takes 3000"):
        read_boot_files(longer)


def test_only_a_valid_vmlinux_is_cached(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(bzimage(pack("xz", b"not an ELF file")))
    with pytest.raises(UserError, match="does not contain an ELF kernel"):
        read_kernel(path)
    assert not list(cache_dir("vmlinux").iterdir())
    path.write_bytes(bzimage(pack("xz", SMALL)))
    (kept,) = [read_kernel(path).vmlinux]
    assert kept.read_bytes() == SMALL
    monkeypatch.setattr(bzimage_module, "decompress", None)
    assert read_kernel(path).vmlinux == kept
