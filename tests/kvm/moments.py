# SPDX-License-Identifier: Apache-2.0
"""Random moments of something that takes time, the same ones again for the same seed."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

TRIES = int(os.environ.get("LONG_TRIES", "20"))
"""How often each fault has to strike; also how often a guest moves or is saved in a row."""
_PATIENCE = 4
"""Times as many attempts: one that comes too late strikes nothing."""


class Moments:
    """Counts what became of faults at random moments; `name` is of the test, for its figures."""

    def __init__(self, name: str) -> None:
        self.seed = int(os.environ.get("LONG_SEED", time.time_ns() % 1_000_000))
        print(f"LONG_SEED={self.seed}")
        self.choose = random.Random(f"{name} {self.seed}")
        self._name = name
        self._begin = time.monotonic()
        self._outcomes: Counter[str] = Counter()
        self._attempts = 0

    @property
    def left(self) -> bool:
        """Whether more have to strike."""
        self._attempts += 1
        assert self._attempts <= _PATIENCE * TRIES, f"hardly any strikes: {self._outcomes}"
        return sum(self._outcomes.values()) < TRIES

    def struck(self, outcome: str) -> None:
        self._outcomes[outcome] += 1
        seconds = time.monotonic() - self._begin
        print(
            f"{seconds:.0f} s, {self._name} {sum(self._outcomes.values())}: {outcome}", flush=True
        )

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} times {what}" for what, count in self._outcomes.items())
        seconds = time.monotonic() - self._begin
        return f"{self._name}: {outcomes}; {seconds:.0f} s, LONG_SEED={self.seed}"
