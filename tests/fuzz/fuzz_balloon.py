# SPDX-License-Identifier: Apache-2.0
"""The coverage-guided fuzzer: libFuzzer makes up guests, `guest_program.run` says what is wrong.

Invariant: as `guest_program`. `make fuzz` runs this for FUZZ_SECONDS on the committed corpus; any
option of libFuzzer can be given to it by hand:

    .venv/bin/python -m tests.fuzz.fuzz_balloon CORPUS -runs=10000000 -max_len=256

What it finds is left as a file called crash-…, which `python -m tests.fuzz.fuzz_balloon crash-…`
runs again. Programs are kept in CORPUS when they reach branches of `devices` that none did before.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["devices"]):
    from tests.fuzz import guest_program


def main() -> None:
    atheris.Setup(sys.argv, guest_program.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
