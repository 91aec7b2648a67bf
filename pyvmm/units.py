# SPDX-License-Identifier: Apache-2.0
"""Sizes as users type and read them.

Every unit is binary, as in QEMU: `256M`, `256MiB` and `268435456` are the same size. `MB` and `GB`
are refused because half of their users mean powers of ten. Arithmetic is on integers only, so a
size never suffers from the rounding of floating point.
"""

from __future__ import annotations

import re

from pyvmm.errors import UserError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
"""Binary units, in bytes."""
HUGE_PAGE_BYTES = 2 * MIB
"""Size of a huge page of the host, the second smallest page of x86-64."""

_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_UNITS = (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB))
_SIZE = re.compile(r"\s*(\d{1,19})(?:\.(\d{1,12}))?\s*(?:([KMGT])(?:iB)?|B)?\s*", re.IGNORECASE)
_EXPECTED = "expected a number with K, M, G or T (powers of 1024), e.g. 256M or 1.5G"


def parse_size(text: str) -> int:
    """Return the number of bytes in `text`: "4096", "256M", "1GiB", "1.5G", in either case.

    A fraction of a byte is dropped. Zero is accepted; the caller decides whether it is sensible.
    Raises `UserError` for anything else.
    """
    match = _SIZE.fullmatch(text) if text.isascii() else None
    if match is None:
        raise UserError(f"{text!r} is not a size: {_expected(text)}")
    whole, fraction, unit = match.groups()
    factor = _FACTORS[(unit or "").upper()]
    if fraction and factor == 1:
        raise UserError(f"{text!r} is not a whole number of bytes: {_EXPECTED}")
    digits = fraction or ""
    scale: int = 10 ** len(digits)
    return int(whole + digits) * factor // scale


def _expected(text: str) -> str:
    decimal = re.fullmatch(r".*\d\s*([KMGT])B\s*", text, re.IGNORECASE)
    if decimal is None:
        return _EXPECTED
    unit = decimal.group(1).upper()
    return f"write {unit}iB for powers of 1024, or the number of bytes"


def format_size(size_bytes: int) -> str:
    """Return `size_bytes` with a unit: "256 MiB", "1.5 GiB", "0 B"; at most two decimals."""
    for name, factor in _UNITS:
        if abs(size_bytes) >= factor:
            text = f"{size_bytes / factor:.2f}".rstrip("0").rstrip(".")
            return f"{text} {name}"
    return f"{size_bytes} B"
