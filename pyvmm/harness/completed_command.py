# SPDX-License-Identifier: Apache-2.0
"""The result of a command in a guest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CompletedCommand:
    """A command that has ended, and its output.

    Output is decoded as UTF-8. Other bytes are kept as surrogates, so nothing is lost:
    `stdout.encode(errors="surrogateescape")` returns the bytes.
    """

    arguments: tuple[str, ...]
    status: int
    """Exit status; 128 + N when signal N ended the command, as in a shell."""
    signal: int | None
    stdout: str
    stderr: str
    oom_kills: int
    """Processes that the guest's OOM killer ended while the command ran."""


def decode_output(data: bytes | bytearray) -> str:
    """Return output as text; `str.encode` with "surrogateescape" is the inverse."""
    return data.decode(errors="surrogateescape")
