# SPDX-License-Identifier: Apache-2.0
"""The coverage-guided fuzzer, for what the two sides of a migration say to each other.

    .venv/bin/python -m tests.fuzz.fuzz_migration CORPUS -max_len=4096 -max_total_time=1800

Invariant: as `migration_stream`. What it finds is left as a file called crash-…, which
`python -m tests.fuzz.fuzz_migration crash-…` runs again.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pyvmm.migration", "pyvmm.state", "devices.state"]):
    from tests.fuzz import migration_stream


def main() -> None:
    atheris.Setup(sys.argv, migration_stream.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
