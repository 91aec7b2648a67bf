# SPDX-License-Identifier: Apache-2.0
"""`bench/c/discard.c` for Python: the fastest discards on this machine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from time import perf_counter

from bench.native import shared_library

WAYS = {
    "C, batched madvise": "discard_batched",
    "C, one madvise per run": "discard_per_run",
    "C, one madvise per page": "discard_per_page",
}
"""The C function of each contender."""


class Range(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


Ranges = ctypes.Array[Range]


def discarder(contender: str) -> Callable[[Ranges], float]:
    """Return a function that discards ranges like `contender`, and returns its seconds."""
    function = ctypes.CDLL(str(shared_library("discard")))[WAYS[contender]]
    function.argtypes = (ctypes.POINTER(Range), ctypes.c_size_t)

    def discard(ranges: Ranges) -> float:
        begin = perf_counter()
        error = function(ranges, len(ranges))
        seconds = perf_counter() - begin
        if error:
            raise OSError(error, os.strerror(error))
        return seconds

    return discard
