# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the console: libFuzzer generates guests for `console_program`.

Invariant: that of `guest_program` and `checked_console`. As `fuzz_balloon`, with its own corpus.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["devices"]):
    from tests.fuzz import console_program


def main() -> None:
    atheris.Setup(sys.argv, console_program.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
