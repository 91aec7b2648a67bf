# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of saved device states with `state_program`.

`make fuzz` runs it after `fuzz_snapshot`. By hand, with any option of libFuzzer:

    .venv/bin/python -m tests.fuzz.fuzz_state -runs=5000000 -max_len=64

A failing input is saved as crash-…, and `python -m tests.fuzz.fuzz_state crash-…` reproduces it.
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
