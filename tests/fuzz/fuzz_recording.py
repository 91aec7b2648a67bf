# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of recordings with `recording_file_program`.

`make fuzz` runs it after `fuzz_migration`. By hand, with any option of libFuzzer:

    .venv/bin/python -m tests.fuzz.fuzz_recording -runs=5000000 -max_len=4096 -rss_limit_mb=1024

A failing input is saved as crash-…, oom-… or timeout-…; the fuzzer reproduces it when given that
file's name.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pyvmm.trace"]):
    from tests.fuzz import recording_file_program


def run(data: bytes) -> None:
    recording_file_program.run(data)


def main() -> None:
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
