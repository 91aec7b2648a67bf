# SPDX-License-Identifier: Apache-2.0
"""`bench/c/discard.c` for Python: how fast this machine gives memory back at all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from time import perf_counter

from bench.native import shared_library

WAYS = {
    "C, best way": "discard_best",
    "C, one madvise per run": "discard_per_run",
    "C, one madvise per page": "discard_per_page",
}
"""Contender to the function that is it."""


class Range(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


Ranges = ctypes.Array[Range]


def discarder(contender: str) -> Callable[[Ranges], float]:
    """What discards ranges in the way of `contender`, one of `WAYS`; returns the seconds taken."""
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
