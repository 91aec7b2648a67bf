# SPDX-License-Identifier: Apache-2.0
"""The run state of a VM and its events, with QMP's names (`RunState` and events)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

RunState = Literal[
    "running", "paused", "finish-migrate", "postmigrate", "shutdown", "guest-panicked"
]

EventSink = Callable[[str, Mapping[str, object]], None]
"""Takes an event's name and data: BALLOON_CHANGE {"actual": bytes}, STOP {}, RESUME {},
SHUTDOWN {"guest": bool, "reason": str}, GUEST_PANICKED {"action": str},
MIGRATION {"status": str}."""
