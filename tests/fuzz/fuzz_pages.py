# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of pages that arrive at a destination, with faults in them.

    .venv/bin/python -m tests.fuzz.fuzz_pages CORPUS -max_len=64 -max_total_time=1800

Invariant: that of `page_stream`. A failing input is saved as crash-…, and
`python -m tests.fuzz.fuzz_pages crash-…` reproduces it.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pyvmm.migration", "pyvmm.state", "pyvmm.sockets"]):
    from tests.fuzz import page_stream


def main() -> None:
    atheris.Setup(sys.argv, page_stream.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
