# SPDX-License-Identifier: Apache-2.0
"""Reasons why a guest image cannot be built."""

from __future__ import annotations

from pyvmm.errors import NotInstalled, UserError


class KernelSourceMissing(NotInstalled):
    """Debian's kernel source is not installed and no other source was named."""


class KernelSourceUnusable(UserError):
    """The source that was named is not a kernel source of the version our patches are for."""


class KernelSourceModified(UserError):
    """Our patches or options do not fit the kernel source."""


class ImageNotWritten(UserError):
    """The image cannot be written to where it was requested."""
