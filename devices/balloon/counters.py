# SPDX-License-Identifier: Apache-2.0
"""What a balloon has done since it was made; no reset clears it."""

from __future__ import annotations

from typing import NamedTuple


class Traffic(NamedTuple):
    """What went over one queue since the device was made."""

    requests: int
    """Buffers taken from the queue, bad ones included."""
    pages: int
    """4 KiB pages named by good requests."""
    bytes: int
    """Length of all requests together, headers included."""
    bad_payloads: int
    """Buffers returned with length 0 because their contents made no sense."""


class BalloonCounters(NamedTuple):
    """A snapshot of what the balloon has done since it was made."""

    inflate: Traffic
    deflate: Traffic
    discarded_bytes: int
    """Host memory given back, in bytes; less than the pages inflated where host pages are larger
    than 4 KiB."""
    reported_pages: int
    """4 KiB pages of good reports of free pages, discarded or not."""
    reported_bytes: int
    """Host memory given back because the driver reported it free, in bytes."""
    interrupts: int
    """Notifications sent to the driver: used buffers and configuration changes."""
