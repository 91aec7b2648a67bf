# SPDX-License-Identifier: Apache-2.0
"""The targets with which a guest cannot live."""

from __future__ import annotations

import pytest

from pyvmm.balloon.safe_target import SPARE_BYTES, UnsafeTarget, check_target
from pyvmm.units import GIB, MIB

AVAILABLE = {"stat-available-memory": 924 * MIB, "stat-free-memory": None}
NEEDED = GIB - 924 * MIB + SPARE_BYTES


@pytest.mark.parametrize(
    ("target_bytes", "statistics"),
    [
        (NEEDED, AVAILABLE),
        (64 * MIB, {}),
        (64 * MIB, {"stat-available-memory": None, "stat-free-memory": 1}),
        (MIB, {"stat-available-memory": 1 << 63}),  # the guest's own claim
        (GIB, {"stat-available-memory": 0}),
        (2 * GIB, {}),
    ],
)
def test_a_target_that_leaves_what_is_needed_is_accepted(
    target_bytes: int, statistics: dict[str, int | None]
) -> None:
    check_target(target_bytes, GIB, statistics)


@pytest.mark.parametrize(
    ("target_bytes", "statistics", "message"),
    [
        (NEEDED - 1, AVAILABLE, "needs 116 MiB of RAM: it has 1 GiB, of which 924 MiB are avail"),
        (64 * MIB, AVAILABLE, "needs 116 MiB of RAM"),
        (GIB - 1, {"stat-available-memory": 0}, "needs 1 GiB of RAM: it has 1 GiB, of which 0 B"),
        (64 * MIB - 1, {}, "less than a guest can have, 64 MiB, and this one does not report"),
        (1, {"stat-available-memory": None}, "^1 B is less than a guest can have"),
    ],
)
def test_a_target_that_leaves_less_is_refused_with_the_figures(
    target_bytes: int, statistics: dict[str, int | None], message: str
) -> None:
    with pytest.raises(UnsafeTarget, match=message):
        check_target(target_bytes, GIB, statistics)
