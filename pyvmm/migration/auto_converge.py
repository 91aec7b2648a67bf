# SPDX-License-Identifier: Apache-2.0
"""Auto-converge: how far to throttle a guest so that its migration comes to an end.

The rule and its defaults are those of QEMU's auto-converge. A migration converges if a round
changes less than it has sent. Rounds are judged when at least `PERIOD_S` has passed, several short
ones together. The second time that more than `throttle_trigger_threshold` per cent of what was sent
has changed, the vCPUs are throttled by `cpu_throttle_initial` per cent; every two further times add
`cpu_throttle_increment`, up to `max_cpu_throttle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.migration.progress import Settings

PERIOD_S = 1.0
TIMES = 2


class AutoConverge:
    """Judges the rounds of one migration.

    Threads: migration.
    """

    def __init__(self) -> None:
        self._changed_bytes = self._sent_bytes = 0
        self._seconds = 0.0
        self._times = 0
        self._percentage = 0

    def judge(self, settings: Settings, changed_bytes: int, sent_bytes: int, seconds: float) -> int:
        """Return by how many per cent to throttle the vCPUs after a round with these figures."""
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
            more = self._percentage + settings.cpu_throttle_increment
            percentage = more if self._percentage else settings.cpu_throttle_initial
            self._percentage = min(percentage, settings.max_cpu_throttle)
