# SPDX-License-Identifier: Apache-2.0
"""The coverage-guided fuzzer of saved devices: `state_program.run` says what is wrong.

`make fuzz` runs it last. By hand, with any option of libFuzzer:

    .venv/bin/python -m tests.fuzz.fuzz_state -runs=5000000 -max_len=64

What it finds is left as a file called crash-…, which `python -m tests.fuzz.fuzz_state crash-…` runs
again.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["devices"]):
    from tests.fuzz import state_program


def run(data: bytes) -> None:
    state_program.run(data)


def main() -> None:
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
