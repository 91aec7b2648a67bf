# SPDX-License-Identifier: Apache-2.0
"""Reasons why events cannot be recorded, read or watched."""

from __future__ import annotations

from pyvmm.errors import UserError


class RecordingNotWritten(UserError):
    """A recording cannot be written to the path that a person has named."""


class RecordingUnusable(UserError):
    """A file is no recording, is damaged, or was written by another version of pyvmm."""


class EventsAlreadyWatched(UserError):
    """Another client watches the events of the guest."""


class EventsNotWatched(UserError):
    """A client that does not watch the events asks for them."""


class EventsNotKept(UserError):
    """The VM was created with a tracer that keeps no events."""
