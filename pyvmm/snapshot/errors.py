# SPDX-License-Identifier: Apache-2.0
"""Reasons why a snapshot cannot be written or restored."""

from __future__ import annotations

from pyvmm.errors import UserError


class SnapshotDamaged(UserError):
    """The file is not a complete snapshot of a version known here."""


class SnapshotIncompatible(UserError):
    """The snapshot is intact, but this host or this pyvmm cannot run its guest."""


class SnapshotNotWritten(UserError):
    """The file cannot be written; a snapshot that was there before is untouched."""


class SnapshotPathInUse(UserError):
    """The path names a regular file that is not a snapshot; it is untouched."""


class SnapshotNotDurable(UserError):
    """The file is complete and has its name, but may lose it in a power failure."""
