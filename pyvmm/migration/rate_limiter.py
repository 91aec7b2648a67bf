# SPDX-License-Identifier: Apache-2.0
"""The limit on a migration's bandwidth, which may change while a round is being sent."""

from __future__ import annotations

import time


class RateLimiter:
    """Tells how long to wait before more may be sent; a limit of 0 bytes per second is none.

    Threads: migration.
    """

    def __init__(self, limit: int, sent_bytes: int) -> None:
        self._begin(limit, sent_bytes)

    def _begin(self, limit: int, sent_bytes: int) -> None:
        self._limit, self._sent_before, self._begun_at = limit, sent_bytes, time.monotonic()

    def wait_s(self, limit: int, sent_bytes: int) -> float:
        """Return the seconds to wait, perhaps negative, now that `sent_bytes` have been sent.

        A change of the limit starts a new count: bytes sent under the old one are forgotten.
        """
        if limit != self._limit:
            self._begin(limit, sent_bytes)
        if not limit:
            return 0.0
        return self._begun_at + (sent_bytes - self._sent_before) / limit - time.monotonic()
