# SPDX-License-Identifier: Apache-2.0
"""How long an access waits for the GIL while the event loop computes: part of bench "exits".

The vCPU has a thread of its own, as in a machine, and reads a port every now and then; the handler
does nothing. The main thread computes in Python meanwhile, which keeps the GIL for a whole switch
interval whenever somebody asks for it. The access takes that much longer: seen with Python's own
interval and with the one that machines set.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter

from bench.exit_guest import ExitGuest, port_read, with_pause
from bench.measure import Case, Contender, Plan, seconds, take_turns
from pyvmm.machine.vcpu_thread import SWITCH_INTERVAL_S

PYTHONS_INTERVAL_S = 0.005
NOBODY = "nobody computes"
PORT = 0x80
PAUSE_LOOPS = 200_000
ROUNDS = 9
ACCESSES, QUICK_ACCESSES = 100, 20


def delay_case(guest: ExitGuest, serve: Callable[[], None], plan: Plan) -> Case:
    """Accesses to PORT, answered by `serve`, while the main thread computes or waits."""
    count = QUICK_ACCESSES if plan.quick else ACCESSES
    timed = partial(_timed, guest, serve, count)
    contenders: dict[str, Contender] = {
        NOBODY: partial(timed, threading.Event.wait, PYTHONS_INTERVAL_S),
        "computing, 5 ms switches": partial(timed, _compute, PYTHONS_INTERVAL_S),
        "computing, as pyvmm switches": partial(timed, _compute, SWITCH_INTERVAL_S),
    }
    case = Case("port read while Python computes", "ns", against=NOBODY)
    return take_turns(case, contenders, plan.rounds(ROUNDS), plan, rehearse=True)


def _timed(
    guest: ExitGuest,
    serve: Callable[[], None],
    count: int,
    meanwhile: Callable[[threading.Event], object],
    interval_s: float,
) -> dict[str, float]:
    """Nanoseconds an access and the pause before it take."""
    guest.load(with_pause(port_read(PORT), PAUSE_LOOPS), count)
    done = threading.Event()

    def run() -> None:
        try:
            serve()
        finally:
            done.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        vcpu = threading.Thread(target=run)
        begin = perf_counter()
        vcpu.start()
        meanwhile(done)
        vcpu.join()
        return dict(seconds((perf_counter() - begin) * 1e9 / count))
    finally:
        sys.setswitchinterval(before)


def _compute(done: threading.Event) -> None:
    while not done.is_set():
        sum(range(1000))
