# SPDX-License-Identifier: Apache-2.0
"""Reasons why a kernel cannot be booted as configured."""

from __future__ import annotations

from pyvmm.errors import UserError


class KernelUnusable(UserError):
    """The kernel cannot be read, or is not a vmlinux or bzImage that can be booted here."""


class InitramfsUnusable(UserError):
    """The initramfs cannot be read or is empty."""


class CommandLineUnusable(UserError):
    """The kernel cannot take the command line."""


class NotEnoughRam(UserError):
    """Kernel and initramfs do not fit into the guest's RAM; `needed_bytes` would be enough."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class ModulesUnusable(UserError):
    """The kernel's modules are missing or cannot be read."""


class OverlayUnusable(UserError):
    """A file cannot be added to the guest's initramfs."""
