# SPDX-License-Identifier: Apache-2.0
"""Reasons why the scope cannot be started."""

from __future__ import annotations

from pyvmm.errors import UserError


class PortInUse(UserError):
    """The page cannot be served at the port that a person has named."""


class GuestNotWatched(UserError):
    """The events of a guest cannot be watched."""


class EventsUnsupported(UserError):
    """The process of a guest is no pyvmm that knows this version of the events."""
