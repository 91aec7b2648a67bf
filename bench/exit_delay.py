# SPDX-License-Identifier: Apache-2.0
"""Delay of an access by the GIL while the event loop is busy: bench "exit-delay".

The vCPU has a thread of its own, as in a machine, and reads a port at intervals; the handler does
nothing. The main thread executes Python code meanwhile, and keeps the GIL until it grants the
vCPU's request (`pyvmm_native.gil_request`), which delays the access. The delay is measured with
Python's default switch interval and with the one that machines set.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from time import perf_counter

from bench.exit_guest import ExitGuest, exit_guest, port_read, with_pause
from bench.exits import Bench, Constants
from bench.measure import Case, Contender, Plan, Values, seconds, take_turns
from pyvmm.machine.vcpu_thread import SWITCH_INTERVAL_S, accept_gil_requests

DEFAULT_INTERVAL_S = 0.005
IDLE = "event loop idle"
PORT = 0x80
PAUSE_LOOPS = 200_000
ROUNDS = 9
ACCESSES, QUICK_ACCESSES = 100, 20


def measure(plan: Plan) -> list[Case]:
    """Measure accesses to PORT while the main thread is busy or idle."""
    count = QUICK_ACCESSES if plan.quick else ACCESSES
    with exit_guest() as guest, closing(Bench(guest, count)) as bench:
        timed = partial(_timed, guest, lambda: bench.serve(Constants()), count)
        return [_delay_case(timed, plan)]


def _delay_case(timed: Callable[..., Values], plan: Plan) -> Case:
    contenders: dict[str, Contender] = {
        IDLE: partial(timed, threading.Event.wait, DEFAULT_INTERVAL_S),
        "event loop busy, 5 ms switch interval": partial(timed, _compute, DEFAULT_INTERVAL_S),
        "event loop busy, pyvmm's switch interval": partial(timed, _compute, SWITCH_INTERVAL_S),
    }
    accept_gil_requests()
    case = Case("port read beside an event loop", "ms", against=IDLE)
    return take_turns(case, contenders, plan.rounds(ROUNDS), plan, warm_up=True)


def _timed(
    guest: ExitGuest,
    serve: Callable[[], None],
    count: int,
    meanwhile: Callable[[threading.Event], object],
    interval_s: float,
) -> dict[str, float]:
    """Return the milliseconds of an access and the pause before it."""
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
        return dict(seconds((perf_counter() - begin) * 1e3 / count))
    finally:
        sys.setswitchinterval(before)


def _compute(done: threading.Event) -> None:
    while not done.is_set():
        sum(range(1000))
