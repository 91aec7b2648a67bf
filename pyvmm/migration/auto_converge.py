# SPDX-License-Identifier: Apache-2.0
"""How much a guest has to be slowed down so that its migration comes to an end.

The rule and its numbers are those of QEMU's auto-converge. A migration converges if less is changed
in a round than was sent in it. Rounds are judged when at least `PERIOD_S` has passed, several short
ones together. The second time that more has changed than `throttle_trigger_threshold` per cent of
what was sent, the processors begin to rest `cpu_throttle_initial` per cent of their time; every two
more such times add `cpu_throttle_increment`, up to `max_cpu_throttle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.migration.progress import Settings

PERIOD_S = 1.0
TIMES = 2


class AutoConverge:
    """Judges the rounds of one migration."""

    def __init__(self) -> None:
        self._changed_bytes = self._sent_bytes = 0
        self._seconds = 0.0
        self._times = 0
        self._percentage = 0

    def judge(self, settings: Settings, changed_bytes: int, sent_bytes: int, seconds: float) -> int:
        """What processors have to rest, in per cent, after a round that went like this."""
        self._changed_bytes += changed_bytes
        self._sent_bytes += sent_bytes
        self._seconds += seconds
        if settings.auto_converge and self._seconds >= PERIOD_S:
            self._judge_period(settings)
        return self._percentage

    def _judge_period(self, settings: Settings) -> None:
        threshold = settings.throttle_trigger_threshold
        self._times += 100 * self._changed_bytes > threshold * self._sent_bytes
        self._changed_bytes = self._sent_bytes = 0
        self._seconds = 0.0
        if self._times == TIMES:
            self._times = 0
            more = settings.cpu_throttle_increment
            wanted = self._percentage + more if self._percentage else settings.cpu_throttle_initial
            self._percentage = min(wanted, settings.max_cpu_throttle)
