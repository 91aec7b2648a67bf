# SPDX-License-Identifier: Apache-2.0
"""Inject faults at random times, reproducibly for the same seed, and count the outcomes."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

REPETITIONS = int(os.environ.get("LONG_TRIES", "20"))
"""Times each fault must take effect; also migrations or snapshots in a row of one guest."""
_MAX_ATTEMPTS_PER_FAULT = 4
"""A fault that is injected after the operation has completed has no effect."""


class FaultSchedule:
    """Random injection times and the count of each outcome; `name` labels a test's figures."""

    def __init__(self, name: str) -> None:
        self.seed = int(os.environ.get("LONG_SEED", time.time_ns() % 1_000_000))
        print(f"LONG_SEED={self.seed}")
        self.random = random.Random(f"{name} {self.seed}")
        self._name = name
        self._begin = time.monotonic()
        self._outcomes: Counter[str] = Counter()
        self._attempts = 0

    def next_attempt(self) -> bool:
        """Count an attempt; return False when enough faults have taken effect."""
        if self._outcomes.total() >= REPETITIONS:
            return False
        self._attempts += 1
        assert self._attempts <= _MAX_ATTEMPTS_PER_FAULT * REPETITIONS, (
            f"hardly any fault takes effect: {self._outcomes}"
        )
        return True

    def record(self, outcome: str) -> None:
        """Count the outcome of a fault that took effect."""
        self._outcomes[outcome] += 1
        seconds = time.monotonic() - self._begin
        print(f"{seconds:.0f} s, {self._name} {self._outcomes.total()}: {outcome}", flush=True)

    def __str__(self) -> str:
        outcomes = ", ".join(
            f"{count} times {outcome}" for outcome, count in self._outcomes.items()
        )
        seconds = time.monotonic() - self._begin
        return f"{self._name}: {outcomes}; {seconds:.0f} s, LONG_SEED={self.seed}"
