# SPDX-License-Identifier: Apache-2.0
"""The checksum of pages that both sides agree on.

The source names one in its first message, CRC-32C unless it was told another, and a destination
that does not have it refuses. With `AUTO` the source also offers those that are faster where it
runs, by measuring. On a processor, which has instructions for CRC-32C, none is; in a lab, where
these are emulated, XXH3 is (docs/adr/0104-pages-follow-their-message.md has figures). The
destination chooses the first that it has, and says so in its welcome; one that does not know offers
uses CRC-32C.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pyvmm.migration.errors import MigrationError
from pyvmm_native.checksum import CHECKSUMS, Checksum

AUTO = "auto"
"""The fastest checksum that both sides have."""
DEFAULT = "crc32c"
"""The checksum that every destination has."""
_CANDIDATES = ("xxh3",)
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 3


def faster_checksums() -> tuple[str, ...]:
    """Return the checksums of this build that are faster than `DEFAULT` here, the fastest first."""
    sample = bytes(_SAMPLE_BYTES)
    taken_s = {name: _least_s(name, sample) for name in _CANDIDATES if name in CHECKSUMS}
    limit_s = _least_s(DEFAULT, sample)
    faster = (name for name in taken_s if taken_s[name] < limit_s)
    return tuple(sorted(faster, key=lambda name: taken_s[name]))


def choose(named: str, offered: Sequence[str], *, local: bool) -> tuple[str, str]:
    """Return the checksum of a source that names one and offers others, and the one to answer.

    The answer is empty if none of those offered was chosen. `local` is that of the link. Raises
    `MigrationError` if the one that is named cannot be used here.
    """
    for name in offered:
        if name in CHECKSUMS and name != "none":
            return name, name
    if named not in CHECKSUMS:
        raise MigrationError(f"this pyvmm has no checksum {named!r}, only {', '.join(CHECKSUMS)}")
    if named == "none" and not local:
        raise MigrationError("pages without a checksum are received over unix sockets only")
    return named, ""


def chosen(named: str, offered: Sequence[str], answer: str) -> str:
    """Return the checksum that the destination has chosen. Raises `MigrationError`."""
    if answer and answer not in offered:
        raise MigrationError(f"the destination has chosen the checksum {answer!r}, not offered")
    return answer or named


def _least_s(name: str, sample: bytes) -> float:
    checksum, least_s = Checksum(name), float("inf")
    for _ in range(_SAMPLES):
        begin = time.perf_counter()
        checksum.of(sample)
        least_s = min(least_s, time.perf_counter() - begin)
    return least_s
