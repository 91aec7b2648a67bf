# SPDX-License-Identifier: Apache-2.0
"""Reasons why events cannot be recorded, read or watched."""

from __future__ import annotations

from pyvmm.errors import UserError


class RecordingNotWritten(UserError):
    """A recording cannot be written to the path that a person has named."""


class RecordingUnusable(UserError):
    """A file is no recording, is damaged, or was written by another version of pyvmm."""


class WatchRefused(Exception):
    """A client cannot watch the events, or does not: the message says why."""
