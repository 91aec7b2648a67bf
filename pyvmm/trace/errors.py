# SPDX-License-Identifier: Apache-2.0
"""Reasons why a recording cannot be written or read."""

from __future__ import annotations

from pyvmm.errors import UserError


class RecordingNotWritten(UserError):
    """A recording cannot be written to the path that a person has named."""


class RecordingUnusable(UserError):
    """A file is no recording, is damaged, or was written by another version of pyvmm."""
