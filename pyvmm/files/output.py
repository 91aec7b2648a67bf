# SPDX-License-Identifier: Apache-2.0
"""Write results, such as figures and plots, into a directory that a person names.

A file there is replaced only if it begins like the one that is written (see
`pyvmm.files.replacement`): another program's file of the same name is not ours to lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvmm.files.errors import OutputNotWritten
from pyvmm.files.replacement import replace_file, replaceable

JSON_START = b"{"
PNG_START = b"\x89PNG\r\n\x1a\n"


def check_output(path: Path, start: bytes) -> Path:
    """Return the file to write for `path`, links followed.

    Raises `OutputNotWritten` if there is something that does not begin with `start`.
    """
    with _errors(path):
        return replaceable(path, lambda file: file.read(len(start)) == start)


def write_output(path: Path, data: bytes, start: bytes) -> None:
    """Write `data`, which begins with `start`, to `path`. Raises `OutputNotWritten`."""
    target = check_output(path, start)
    with _errors(path):
        replace_file(target, data)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputNotWritten(f"{path} cannot be written: {error.strerror}") from error
