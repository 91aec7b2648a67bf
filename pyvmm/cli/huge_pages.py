# SPDX-License-Identifier: Apache-2.0
"""The huge pages of a guest in the lab.

A host's pool of huge pages belongs to its administrator. The lab runs one command on a kernel of
its own, whose pool is empty, so a guest that needs huge pages there gets a pool of its size.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pyvmm.sockets.lab_paths import in_lab
from pyvmm.units import HUGE_PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.config import HugePages


def prepare_huge_pages(hugepages: HugePages, ram_bytes: int) -> None:
    """Make a pool for the `hugepages` of a guest of `ram_bytes` if this is the lab.

    If the lab has not enough memory for it, the guest's RAM cannot be mapped, and that is the error
    to report.
    """
    if hugepages == "hugetlbfs" and in_lab():
        # 1 module, for guests in huge pages.
        from pyvmm.memory.huge_page_pool import grow_pool

        with contextlib.suppress(OSError):
            grow_pool(-(-ram_bytes // HUGE_PAGE_BYTES))
