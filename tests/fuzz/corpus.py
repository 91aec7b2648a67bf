# SPDX-License-Identifier: Apache-2.0
"""The fuzzers' corpora: one program a line, in hexadecimal, each of which added coverage.

libFuzzer needs a directory with a file for each program; one text file for each device is easier to
review. `unpack` writes the directory, `pack` reads it back after a run of the fuzzer:

    .venv/bin/python -m tests.fuzz.corpus unpack balloon DIRECTORY
    .venv/bin/python -m tests.fuzz.corpus pack balloon DIRECTORY
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def corpus(device: str) -> Path:
    """Return the file with the programs for `device`, "balloon" or "console"."""
    return Path(__file__).with_name(f"{device}-corpus.txt")


def programs(device: str) -> list[bytes]:
    """Return all programs of a corpus."""
    return [bytes.fromhex(line) for line in corpus(device).read_text().splitlines()]


def unpack(device: str, directory: Path, every: int = 1) -> None:
    """Write programs, one of `every`, to files of their own, named as libFuzzer names them."""
    directory.mkdir(parents=True, exist_ok=True)
    for program in programs(device)[::every]:
        (directory / hashlib.sha1(program).hexdigest()).write_bytes(program)


def pack(device: str, directory: Path) -> None:
    """Replace a corpus by the programs in `directory`."""
    found = {path.read_bytes() for path in directory.iterdir()}
    corpus(device).write_text(
        "".join(f"{each.hex()}\n" for each in sorted(found, key=lambda p: (len(p), p)))
    )


if __name__ == "__main__":
    {"unpack": unpack, "pack": pack}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
