# SPDX-License-Identifier: Apache-2.0
"""The coverage-guided fuzzer of snapshot files: `snapshot_program.run` says what is wrong.

`make fuzz` runs it after the one of the balloon. By hand, with any option of libFuzzer:

    .venv/bin/python -m tests.fuzz.fuzz_snapshot -runs=5000000 -max_len=4096 -rss_limit_mb=1024

What it finds is left as a file called crash-…, oom-… or timeout-…; giving it that file's name runs
it again.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pyvmm.snapshot", "pyvmm.state", "devices.state"]):
    from tests.fuzz import snapshot_program


def run(data: bytes) -> None:
    snapshot_program.run(data)


def main() -> None:
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
