# SPDX-License-Identifier: Apache-2.0
"""The names of the cases and contenders of bench "requests"."""

PYVMM, C_LOOP = "pyvmm", "C loop"
LOOP, DIRECT = "event loop", "direct"


def case_name(buffers: int, path: str, percentile: int) -> str:
    """Return the name of a case."""
    return f"{buffers} buffer{'s' if buffers > 1 else ''}, {path}, p{percentile}"
