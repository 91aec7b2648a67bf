# SPDX-License-Identifier: Apache-2.0
"""Block signals for a while: they wait in the kernel, or another thread takes them."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

END_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""The signals that end a VM."""


@contextmanager
def blocked_signals(signals: Iterable[int]) -> Iterator[None]:
    """Block `signals` in this thread, and for good in those that the `with` block starts."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
