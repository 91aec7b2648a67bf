# SPDX-License-Identifier: Apache-2.0
"""Batches of events with one thing changed."""

from __future__ import annotations

from typing import Any

from pyvmm_native.events import Batch

MEMBERS = ("first_seq", "base_ns", "event_count", "dropped", "kinds", "strings", "payload")


def changed(batch: Batch, **members: Any) -> Batch:
    """Return `batch` with other `members`."""
    return Batch(**{name: getattr(batch, name) for name in MEMBERS} | members)
