# SPDX-License-Identifier: Apache-2.0
"""Reasons why the host cannot provide a guest's RAM."""

from __future__ import annotations

from pyvmm.errors import UserError


class HostMemoryUnavailable(UserError):
    """The host does not map as much memory as the guest has."""
