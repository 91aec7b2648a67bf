# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the balloon device: libFuzzer generates guests for `guest_program`.

Invariant: that of `guest_program`. `make fuzz` runs this for FUZZ_SECONDS on the committed corpus.
By hand, with any option of libFuzzer:

    .venv/bin/python -m tests.fuzz.fuzz_balloon CORPUS -runs=10000000 -max_len=256

A failing input is saved as crash-…, and `python -m tests.fuzz.fuzz_balloon crash-…` reproduces it.
Programs that reach new branches of `devices` are added to CORPUS.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["devices"]):
    from tests.fuzz import balloon_program


def main() -> None:
    atheris.Setup(sys.argv, balloon_program.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
