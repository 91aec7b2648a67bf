# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's corpus: one program a line, in hexadecimal, each of which added coverage.

libFuzzer needs a directory with a file for each program; one text file is easier to review.
`unpack` writes the directory, `pack` reads it back after a run of the fuzzer:

    .venv/bin/python -m tests.fuzz.corpus unpack DIRECTORY
    .venv/bin/python -m tests.fuzz.corpus pack DIRECTORY
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus.txt")


def programs() -> list[bytes]:
    """Return all programs of the corpus."""
    return [bytes.fromhex(line) for line in CORPUS.read_text().splitlines()]


def unpack(directory: Path, every: int = 1) -> None:
    """Write programs, one of `every`, to files of their own, named as libFuzzer names them."""
    directory.mkdir(parents=True, exist_ok=True)
    for program in programs()[::every]:
        (directory / hashlib.sha1(program).hexdigest()).write_bytes(program)


def pack(directory: Path) -> None:
    """Replace the corpus by the programs in `directory`."""
    found = {path.read_bytes() for path in directory.iterdir()}
    CORPUS.write_text(
        "".join(f"{each.hex()}\n" for each in sorted(found, key=lambda p: (len(p), p)))
    )


if __name__ == "__main__":
    {"unpack": unpack, "pack": pack}[sys.argv[1]](Path(sys.argv[2]))
