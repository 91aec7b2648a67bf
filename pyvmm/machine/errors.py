# SPDX-License-Identifier: Apache-2.0
"""Reasons why a machine cannot be created or paused."""

from __future__ import annotations

from pyvmm.errors import UserError


class MachineNotCreated(UserError):
    """KVM or the host refused a request that the machine needs; the message names the request."""


class VcpuNotStopped(UserError):
    """A vCPU has not left the guest in time, so the guest was not paused."""
