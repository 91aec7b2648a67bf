# SPDX-License-Identifier: Apache-2.0
"""Run all fuzzers in turn: `python -m tests.fuzz.run SECONDS [libFuzzer's options]`.

Each runs for SECONDS in .fuzz, where its corpus grows and where failing inputs are saved.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.corpus import unpack

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / ".fuzz"
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "cython_src")))
"""So that modules are those of this tree, even if another one is installed as editable."""
INPUT_LIMIT_S = 30


class Fuzzer(NamedTuple):
    """A module of `tests.fuzz`, the directory of its corpus, and its limits."""

    name: str
    corpus: str
    max_bytes: int
    rss_limit_mib: int = 2048

    def arguments(self, seconds: int, options: list[str]) -> list[str]:
        """Return the arguments of the Python interpreter that runs it."""
        limits = (
            f"-max_len={self.max_bytes}",
            f"-rss_limit_mb={self.rss_limit_mib}",
            f"-timeout={INPUT_LIMIT_S}",
            f"-max_total_time={seconds}",
        )
        return ["-m", f"tests.fuzz.{self.name}", self.corpus, *limits, *options]


FUZZERS = (
    Fuzzer("fuzz_balloon", "balloon", 256),
    Fuzzer("fuzz_console", "console", 256),
    Fuzzer("fuzz_snapshot", "snapshots", 4096, rss_limit_mib=1024),
    Fuzzer("fuzz_state", "states", 64),
    Fuzzer("fuzz_migration", "migrations", 4096, rss_limit_mib=1024),
    Fuzzer("fuzz_pages", "pages", 64, rss_limit_mib=1024),
    Fuzzer("fuzz_recording", "recordings", 4096, rss_limit_mib=1024),
)


def prepare(directory: Path, every: int = 1) -> None:
    """Create the corpora in `directory`, with one of `every` programs of the committed ones."""
    for fuzzer in FUZZERS:
        (directory / fuzzer.corpus).mkdir(parents=True, exist_ok=True)
    for device in ("balloon", "console"):
        unpack(device, directory / device, every)


def main(seconds: int, options: list[str]) -> None:
    prepare(DIRECTORY)
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    for fuzzer in FUZZERS:
        command = [sys.executable, *fuzzer.arguments(seconds, options)]
        status = subprocess.run(command, cwd=DIRECTORY, env=environment, check=False).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
