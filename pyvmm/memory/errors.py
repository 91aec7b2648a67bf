# SPDX-License-Identifier: Apache-2.0
"""Reasons why the host cannot provide a guest's RAM."""

from __future__ import annotations

from pyvmm.errors import UserError


class HostMemoryUnavailable(UserError):
    """The host does not map as much memory as the guest has."""


class HugePagesUnavailable(HostMemoryUnavailable):
    """The host's pool of huge pages has fewer than the guest needs.

    A pool of `pool_pages` pages would have enough; None if its size is not the reason.
    """

    def __init__(self, message: str, pool_pages: int | None = None) -> None:
        super().__init__(message)
        self.pool_pages = pool_pages
