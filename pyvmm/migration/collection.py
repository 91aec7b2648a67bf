# SPDX-License-Identifier: Apache-2.0
"""Python's garbage collector, kept out of the switchover."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_deferred() -> Iterator[None]:
    """Run no garbage collection in the block: a full one takes as long as restoring a vCPU.

    It concerns the whole process, so the block is short. Threads: any.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
