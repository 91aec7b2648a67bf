# SPDX-License-Identifier: Apache-2.0
"""Counters of a balloon since it was created; a reset does not clear them."""

from __future__ import annotations

from typing import NamedTuple


class Traffic(NamedTuple):
    """The traffic of one queue since the device was created."""

    requests: int
    """Buffers taken from the queue, bad ones included."""
    pages: int
    """4 KiB pages of valid requests."""
    bytes: int
    """Length of all requests together, headers included."""
    bad_payloads: int
    """Buffers with a bad payload."""


class BalloonCounters(NamedTuple):
    """A copy of all counters."""

    inflate: Traffic
    deflate: Traffic
    discarded_bytes: int
    """Host memory discarded, in bytes."""
    kept_bytes: int
    """Pages in the balloon that the host keeps at the moment, in bytes: parts of host pages that
    are larger than 4 KiB and not wholly in the balloon."""
    reported_pages: int
    """4 KiB pages of valid free page reports, discarded or not."""
    reported_bytes: int
    """Host memory discarded because the driver reported it free, in bytes."""
    interrupts: int
    """Notifications sent to the driver: used buffers and configuration changes."""
