# SPDX-License-Identifier: Apache-2.0
"""Names of the cases and contenders of `bench.migration_path`."""

from __future__ import annotations

PYVMM = "pyvmm"
STREAMS = "pyvmm, 2 streams"
CHECKED = "plain sockets, CRC-32C"
SOCKETS = "plain sockets"

TCP, UNIX, TLS = "tcp", "unix", "TLS"
TOUCHED, FRESH = "huge pages, touched", "4 KiB pages, fresh"

STREAMS_OF = {PYVMM: 1, STREAMS: 2}
"""The number of streams of each contender that is a migration."""


def connections(contender: str) -> int:
    """Return the number of connections that `contender` moves memory over."""
    streams = STREAMS_OF.get(contender, 1)
    return streams + 1 if streams > 1 else 1


def case_name(link: str, ram: str) -> str:
    """Return the name of the case over `link` into destination RAM that is as `ram` says."""
    return f"{link}, {ram}"
