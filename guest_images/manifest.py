# SPDX-License-Identifier: Apache-2.0
"""The manifest of a guest image: a JSON object in an ELF note inside the image itself.

A `guest.img` is an ELF `vmlinux` with one additional section, `.note.pyvmm`, of type SHT_NOTE. The
section is not loaded (no SHF_ALLOC), so the kernel inside is untouched, any loader of ELF kernels
boots the file, and `readelf -n` shows the manifest. It records what the ELF headers do not: the
wire format of the guest's balloon driver and the kernel command line for it.

ELF-64 object file format, "Note Section": three 4-byte words (name size, descriptor size, type),
then name and descriptor, each padded to 4 bytes.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pyvmm.elf.tables import ElfError, read_elf_tables
from pyvmm.errors import UserError
from pyvmm.files.regular import open_regular_file

SECTION = ".note.pyvmm"
NOTE_NAME = b"pyvmm\0"
NOTE_TYPE = 1
VERSION = 1
MAX_NOTE_BYTES = 64 * 1024  # larger than any manifest; limits the read of a damaged file


class ManifestError(UserError):
    """The manifest or the ELF headers of a file are damaged or of an unknown version."""


class _Damaged(Exception):
    """The reason why the file's manifest cannot be read."""


class Manifest(NamedTuple):
    """The description of a guest image.

    `dialect` names the balloon wire format the guest speaks by default; `append` is the kernel
    command line for any dialect and `dialect_append` what each dialect adds to it. `kernel` is the
    kernel's version, `driver` names the balloon driver, `created` is an ISO 8601 time in UTC and
    `inputs` the SHA-256 (hexadecimal) of everything the image was built from.
    """

    dialect: str
    append: str
    dialect_append: Mapping[str, str]
    kernel: str
    driver: str
    created: str
    inputs: str

    def command_line(self, dialect: str | None = None) -> str:
        """Return the kernel command line for `dialect`, by default the image's own.

        Raises `ManifestError` when the image's driver does not speak it.
        """
        name = self.dialect if dialect is None else dialect
        if name not in self.dialect_append:
            raise ManifestError(
                f"the image has no balloon dialect '{name}', only {', '.join(self.dialect_append)}"
            )
        return f"{self.append} {self.dialect_append[name]}".strip()

    def to_note(self) -> bytes:
        """Return the whole ELF note, ready to be the content of the section."""
        content = json.dumps({"version": VERSION, **self._asdict()}).encode()
        header = struct.pack("<III", len(NOTE_NAME), len(content), NOTE_TYPE)
        return header + _padded(NOTE_NAME) + _padded(content)


def read_manifest(path: Path | str) -> Manifest | None:
    """Return the manifest in the file at `path`, None if it has none or is not an ELF file.

    Raises `ManifestError` for a damaged ELF file or manifest, and `OSError` when the file cannot
    be read.
    """
    try:
        with open_regular_file(path) as file:
            content = _read_section(file)
        return None if content is None else _parse_json(_parse_note(content))
    except _Damaged as error:
        raise ManifestError(f"{path}: {error}") from error


def has_manifest(file: BinaryIO) -> bool:
    """Return True if the open `file` is an image with a manifest, damaged or not."""
    try:
        return _read_section(file) is not None
    except _Damaged:
        return False


def _read_section(file: BinaryIO) -> bytes | None:
    """Return the bytes of the manifest's section, None if there is none or no ELF file."""
    file_bytes = os.fstat(file.fileno()).st_size
    try:
        elf = read_elf_tables(file)
    except ElfError as error:
        raise _Damaged(f"damaged ELF file ({error})") from error
    if elf is None or SECTION not in elf.sections:
        return None
    offset, size = elf.sections[SECTION]
    if size > MAX_NOTE_BYTES or offset + size > file_bytes:
        raise _Damaged(f"section {SECTION} does not lie inside the file")
    file.seek(offset)
    return file.read(size)


def _parse_note(content: bytes) -> bytes:
    """Return the descriptor of the one note that the section holds."""
    try:
        name_size, size, note_type = struct.unpack_from("<III", content)
    except struct.error as error:
        raise _Damaged("the manifest's note is truncated") from error
    start = 12 + len(_padded(NOTE_NAME))
    if (name_size, note_type) != (len(NOTE_NAME), NOTE_TYPE) or content[12:18] != NOTE_NAME:
        raise _Damaged("the manifest's note has another name or type")
    if start + size > len(content):
        raise _Damaged("the manifest's note is truncated")
    return content[start : start + size]


def _parse_json(content: bytes) -> Manifest:
    """Return the manifest in `content`, which is not trusted, after checking every field."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Damaged("the manifest is not JSON") from error
    if not isinstance(fields, dict):
        raise _Damaged("the manifest is not a JSON object")
    if fields.get("version") != VERSION:
        raise _Damaged(f"manifest version {fields.get('version')}, only {VERSION} is known")
    texts = {
        name: _text(fields, name)
        for name in ("dialect", "append", "kernel", "driver", "created", "inputs")
    }
    dialects = fields.get("dialect_append")
    if not isinstance(dialects, dict) or texts["dialect"] not in dialects:
        raise _Damaged("the manifest's dialect_append does not cover its dialect")
    return Manifest(dialect_append={name: _text(dialects, name) for name in dialects}, **texts)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.isprintable():
        raise _Damaged(f"the manifest's '{name}' is not a line of text")
    return value


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
