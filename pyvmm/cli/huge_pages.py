# SPDX-License-Identifier: Apache-2.0
"""The option `--hugepages`, and the huge pages of a guest in the lab.

A host's pool of huge pages belongs to its administrator. The lab runs one command on a kernel of
its own, whose pool is empty, so a guest that needs huge pages there gets a pool of its size.
"""

from __future__ import annotations

import contextlib

import click

from pyvmm.config import DEFAULT_HUGEPAGES, HUGEPAGES, HugePages
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.units import HUGE_PAGE_BYTES

hugepages_option = click.option(
    "--hugepages",
    type=click.Choice(HUGEPAGES),
    default=DEFAULT_HUGEPAGES,
    show_default=True,
    help="Back guest RAM with huge pages: transparent ones, reserved ones of hugetlbfs, or none.",
)


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
