# SPDX-License-Identifier: Apache-2.0
"""A process that may start no more threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

STACK_BYTES = 1 << 47
"""The kernel refuses the stack of each new thread, as no address space is as large."""


@contextmanager
def refused_threads() -> Iterator[None]:
    """Have the kernel refuse all threads that the block starts."""
    former = threading.stack_size(STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(former)
