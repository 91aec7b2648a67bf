# SPDX-License-Identifier: Apache-2.0
"""The manifest in an image's ELF note: written, read, and refused when damaged."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from guest_images.build import add_manifest
from guest_images.manifest import Manifest, ManifestError, read_manifest
from pyvmm.cli.image import image as image_command
from pyvmm.cli.remedies import remedy
from pyvmm.errors import UserError

MANIFEST = Manifest(
    dialect="bitmap",
    append="console=ttyS0 panic=-1",
    dialect_append={"bitmap": "virtio_balloon.dialect=bitmap", "standard": ""},
    kernel="6.12.117",
    driver="pyvmm balloon dialects v2",
    created="2026-11-22T19:00:00Z",
    inputs="0123456789abcdef" * 4,
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a minimal ELF executable, without a C library."""
    path = tmp_path_factory.mktemp("elf") / "program"
    source = 'void _start(void) { __asm__("mov $60, %eax; mov $3, %edi; syscall"); }'
    flags = ["-nostdlib", "-static", "-x", "c", "-"]
    subprocess.run(["gcc", "-o", str(path), *flags], input=source, text=True, check=True)
    return path


@pytest.fixture
def image(program: Path, tmp_path: Path) -> Path:
    path = tmp_path / "guest.img"
    add_manifest(program, MANIFEST, path)
    return path


def with_note(program: Path, path: Path, note: bytes) -> Path:
    """Write `program` with arbitrary bytes as its manifest section."""
    (path.parent / "note").write_bytes(note)
    section = f"--add-section=.note.pyvmm={path.parent / 'note'}"
    subprocess.run(["objcopy", section, str(program), str(path)], check=True)
    return path


def note_of(content: object) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<III", 6, len(text), 1) + b"pyvmm\0\0\0" + text + bytes(-len(text) % 4)


def fields(**changes: object) -> dict[str, object]:
    note = MANIFEST.to_note()
    return {**json.loads(note[20:].rstrip(b"\0")), **changes}


def test_a_written_manifest_is_read_back(image: Path) -> None:
    assert read_manifest(image) == MANIFEST


def test_a_program_with_a_manifest_still_runs(image: Path) -> None:
    image.chmod(0o755)
    assert subprocess.run([image], check=False).returncode == 3


def test_readelf_shows_the_note(image: Path) -> None:
    shown = subprocess.run(
        ["readelf", "--wide", "-n", image], capture_output=True, text=True, check=True
    )
    assert "Displaying notes found in: .note.pyvmm" in shown.stdout
    assert b'"dialect": "bitmap"'.hex(" ") in shown.stdout
    assert not shown.stderr


def test_a_dialect_adds_to_the_command_line() -> None:
    assert MANIFEST.command_line() == "console=ttyS0 panic=-1 virtio_balloon.dialect=bitmap"
    assert MANIFEST.command_line("standard") == "console=ttyS0 panic=-1"
    with pytest.raises(ManifestError, match="no balloon dialect 'semaphore'"):
        MANIFEST.command_line("semaphore")


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"hello\n", b"\x1f\x8b" + bytes(5000)])
def test_other_files_have_no_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert read_manifest(path) is None


def test_an_ordinary_elf_file_has_no_manifest(program: Path) -> None:
    assert read_manifest(program) is None


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "absent")


def test_a_truncated_file_is_refused_or_has_the_whole_manifest(image: Path, tmp_path: Path) -> None:
    whole = image.read_bytes()
    cut = tmp_path / "cut"
    refused = 0
    for length in range(4, len(whole), 61):
        cut.write_bytes(whole[:length])
        try:
            assert read_manifest(cut) in (None, MANIFEST)
        except ManifestError:
            refused += 1
    assert refused > 10


def test_a_damaged_byte_raises_no_other_exception(image: Path, tmp_path: Path) -> None:
    whole = image.read_bytes()
    start = whole.index(b"pyvmm\0\0\0")
    damaged = tmp_path / "damaged"
    headers = range(64)
    sections = range(len(whole) - 64 * 5, len(whole))
    for position in (*headers, *range(start - 12, start + 120), *sections):
        content = bytearray(whole)
        content[position] ^= 0xFF
        damaged.write_bytes(content)
        try:
            read_manifest(damaged)
        except ManifestError:
            continue


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (b"", "truncated"),
        (b"\6\0\0\0", "truncated"),
        (struct.pack("<III", 6, 400, 1) + b"pyvmm\0\0\0{}", "truncated"),
        (struct.pack("<III", 6, 2, 2) + b"pyvmm\0\0\0{}", "another name or type"),
        (struct.pack("<III", 6, 2, 1) + b"pyvmn\0\0\0{}", "another name or type"),
        (struct.pack("<III", 6, 2, 1) + b"pyvmm\0\0\0{]", "not JSON"),
        (struct.pack("<III", 6, 60000, 1) + b"pyvmm\0\0\0" + b"[" * 60000, "not JSON"),
        (note_of([1]), "not a JSON object"),
        (note_of(fields(version=2)), "version 2, only 1"),
        (note_of(fields(append=7)), "'append' is not a line of text"),
        (note_of(fields(append="a\nb")), "'append' is not a line of text"),
        (note_of(fields(kernel=None)), "'kernel' is not a line of text"),
        (note_of(fields(dialect="other")), "does not cover its dialect"),
        (note_of(fields(dialect_append=[])), "does not cover its dialect"),
        (note_of(fields(dialect_append={"bitmap": 1})), "'bitmap' is not a line of text"),
        (bytes(70000), "does not lie inside the file"),
    ],
)
def test_a_damaged_manifest_is_refused(
    program: Path, tmp_path: Path, note: bytes, message: str
) -> None:
    path = with_note(program, tmp_path / "image", note)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)


def test_unknown_fields_are_ignored(program: Path, tmp_path: Path) -> None:
    path = with_note(program, tmp_path / "image", note_of(fields(flavour="new")))
    assert read_manifest(path) == MANIFEST


def test_info_shows_every_field(image: Path) -> None:
    shown = CliRunner().invoke(image_command, ["info", str(image)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for text in ("Linux 6.12.117", "pyvmm balloon dialects v2", "dialect=bitmap", MANIFEST.inputs):
        assert text in shown.output


def test_info_on_another_file_is_a_user_error(program: Path, tmp_path: Path) -> None:
    damaged = with_note(program, tmp_path / "image", b"")
    for path in (program, damaged, tmp_path / "absent", tmp_path):
        outcome = CliRunner().invoke(image_command, ["info", str(path)])
        assert isinstance(outcome.exception, UserError)
        assert "pyvmm image build" in remedy(outcome.exception)
