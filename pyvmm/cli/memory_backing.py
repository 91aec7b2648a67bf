# SPDX-License-Identifier: Apache-2.0
"""The host's memory behind a guest's RAM in words, as the control socket reports it."""

from __future__ import annotations

from typing import Any

from pyvmm.units import format_size

IN_WORDS = {
    "transparent": "transparent huge pages",
    "hugetlbfs": "huge pages of hugetlbfs",
    "never": "pages of 4 KiB",
}
"""The pages behind a guest's RAM, by the value of --hugepages."""


def describe_backing(backing: dict[str, Any]) -> str:
    """Return the answer to `query-memory-backing` in words."""
    hugepages = backing["hugepages"]
    if hugepages == "never":
        return IN_WORDS[hugepages]
    return f"{IN_WORDS[hugepages]} ({format_size(backing[hugepages])})"


def describe_kept(kept_bytes: int) -> str:
    """Return a clause about pages in the balloon that the host keeps; "" if there are none."""
    if not kept_bytes:
        return ""
    return f"the host keeps {format_size(kept_bytes)} of its balloon, as parts of huge pages"
