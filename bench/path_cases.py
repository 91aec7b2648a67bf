# SPDX-License-Identifier: Apache-2.0
"""Names of the cases and contenders of `bench.migration_path`."""

from __future__ import annotations

PYVMM = "pyvmm"
CHECKED = "plain sockets, CRC-32C"
SOCKETS = "plain sockets"

TCP, UNIX, TLS = "tcp", "unix", "TLS"
TOUCHED, FRESH = "huge pages, touched", "4 KiB pages, fresh"


def case_name(link: str, ram: str) -> str:
    """Return the name of the case over `link` into destination RAM that is as `ram` says."""
    return f"{link}, {ram}"
