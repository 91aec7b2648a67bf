# SPDX-License-Identifier: Apache-2.0
"""The corpus: guests that reached something no guest before them did, one a line, in hexadecimal.

libFuzzer works on a directory with a file for each; here they are one file, which a person can look
over in a review. `unpack` makes the directory, `pack` takes in what a run of the fuzzer has left:

    .venv/bin/python -m tests.fuzz.corpus unpack DIRECTORY
    .venv/bin/python -m tests.fuzz.corpus pack DIRECTORY
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus.txt")


def programs() -> list[bytes]:
    """Every program of the corpus."""
    return [bytes.fromhex(line) for line in CORPUS.read_text().splitlines()]


def unpack(directory: Path) -> None:
    """Write each program to a file of its own, named as libFuzzer names them."""
    directory.mkdir(parents=True, exist_ok=True)
    for program in programs():
        (directory / hashlib.sha1(program).hexdigest()).write_bytes(program)


def pack(directory: Path) -> None:
    """Make the corpus what is in `directory`."""
    found = {path.read_bytes() for path in directory.iterdir()}
    CORPUS.write_text(
        "".join(f"{each.hex()}\n" for each in sorted(found, key=lambda p: (len(p), p)))
    )


if __name__ == "__main__":
    {"unpack": unpack, "pack": pack}[sys.argv[1]](Path(sys.argv[2]))
