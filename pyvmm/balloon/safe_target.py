# SPDX-License-Identifier: Apache-2.0
"""The least RAM that a guest can live with, as far as it tells.

A balloon takes what its driver can allocate, so a target that is too small takes the memory that
the guest's next program needs, and the OOM killer ends that program or another. The guest's
statistics say how much can be taken: `stat-available-memory` is Linux's MemAvailable, the memory
that programs can have without swapping, already without the reserves of the kernel. The guest has
`actual` bytes and needs what is not available, and `SPARE_BYTES` for a program to start.

Without that statistic only the size is known below which no machine can be made. Who may set a
smaller target is for the callers to decide; nothing here is a limit of the device.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyvmm.config import MIN_RAM_BYTES
from pyvmm.errors import UserError
from pyvmm.units import MIB, format_size

AVAILABLE = "stat-available-memory"
"""Name of the statistic (VIRTIO 1.2, 5.5.6.4: VIRTIO_BALLOON_S_AVAIL)."""
SPARE_BYTES = 16 * MIB
"""Room for a program to start. Measured: guests of 64 MiB to 1 GiB run a shell with 4 MiB; a stock
kernel panics without."""


class UnsafeTarget(UserError):
    """The target leaves a guest less RAM than it needs; the message says how much it needs."""


def check_target(
    target_bytes: int, actual_bytes: int, statistics: Mapping[str, int | None]
) -> None:
    """Raise `UnsafeTarget` if a guest that has `actual_bytes` cannot live with `target_bytes`.

    `statistics` are its own, by their QEMU names; empty if it reports none. A target that takes
    nothing from the guest is always safe.
    """
    if target_bytes >= actual_bytes:
        return
    available_bytes = statistics.get(AVAILABLE)
    if available_bytes is None:
        if target_bytes < MIN_RAM_BYTES:
            raise UnsafeTarget(
                f"{format_size(target_bytes)} is less than a guest can have,"
                f" {format_size(MIN_RAM_BYTES)}, and this one does not report what it needs"
            )
        return
    needed_bytes = actual_bytes - available_bytes + SPARE_BYTES
    if target_bytes < needed_bytes:
        raise UnsafeTarget(
            f"the guest needs {format_size(min(needed_bytes, actual_bytes))} of RAM: it has"
            f" {format_size(actual_bytes)}, of which {format_size(available_bytes)} are available"
        )
