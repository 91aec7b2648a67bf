# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the migration stream, in both directions.

    .venv/bin/python -m tests.fuzz.fuzz_migration CORPUS -max_len=4096 -max_total_time=1800

Invariant: that of `migration_stream`. A failing input is saved as crash-…, and
`python -m tests.fuzz.fuzz_migration crash-…` reproduces it.
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
