# SPDX-License-Identifier: Apache-2.0
"""The cases of the benchmark "encodings": what is measured, in which unit, and its names.

`bench.encodings` measures; `bench.encoding_tables` and `bench.targets` find the cases by the names
given here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from bench.measure import TOTAL, Case, Values

if TYPE_CHECKING:
    from bench.balloon_guests import ResizeCosts

STANDARD, BITMAP, HYBRID, RANGES = (
    f"pyvmm, {dialect}" for dialect in ("standard", "bitmap", "hybrid", "ranges")
)
BLOCKS = ", blocks"
"""At the end of the name of a contender whose driver keeps blocks of 2 MiB."""
RUN_PAGES = {"whole": 0, "in runs of 64 KiB": 16, "every other page": 1}
"""Kinds of free memory: the length of its runs, as far from each other; 0: not cut into runs."""
FREE_MEMORY = tuple(RUN_PAGES)
DIRECTIONS = ("inflate", "deflate")
RAM = ("untouched", "touched")
BOOKKEEPING = "guest bookkeeping"
RATES = ("reclaim", "return")


class Quantity(NamedTuple):
    """Something measured of each resize."""

    unit: str
    is_plotted: bool = False
    """The plot shows it, of inflating; the tables show everything."""


QUANTITIES = {
    "time": Quantity("ns/page", is_plotted=True),
    "bytes on the queue": Quantity("bytes/page", is_plotted=True),
    "requests": Quantity("requests"),
    "driver": Quantity("ns/page"),
    "device": Quantity("ns/page"),
    "discard": Quantity("ns/page"),
    "driver memory": Quantity("KiB"),
}
"""`time` is the whole resize; `driver` includes the guest's allocator, `device` is the decoding."""


def quantities(costs: ResizeCosts) -> dict[str, Values]:
    """Return the quantities of one resize, by name."""
    pages = costs.counters["pages"]

    def ns_per_page(seconds: float) -> float:
        return seconds * 1e9 / pages

    stages = costs.stages()
    found: dict[str, Values] = {
        "time": {stage: ns_per_page(seconds) for stage, seconds in stages.items()},
        "bytes on the queue": {TOTAL: costs.request_bytes / pages},
        "requests": {TOTAL: costs.requests},
        "driver": {TOTAL: ns_per_page(costs.driver_s)},
        "driver memory": {TOTAL: costs.encoder_bytes / 1024},
    }
    if "decoding" in stages:
        found["device"] = {TOTAL: ns_per_page(stages["decoding"])}
    if stages.get("discard"):
        found["discard"] = {TOTAL: ns_per_page(stages["discard"])}
    return found


def encoding_case(quantity: str, direction: str, free_memory: str) -> str:
    """Return the name of a case."""
    return f"{quantity}: {direction}, free memory {free_memory}"


class EncodingCases:
    """A case for each quantity, direction and kind of free memory."""

    def __init__(self, free_memory: Sequence[str]) -> None:
        self._cases = {
            name: Case(
                name,
                quantity.unit,
                against=STANDARD,
                panel=f"{what}, {direction}",
                plotted=quantity.is_plotted and direction == "inflate",
            )
            for what, quantity in QUANTITIES.items()
            for direction in DIRECTIONS
            for state in free_memory
            for name in (encoding_case(what, direction, state),)
        }

    @property
    def cases(self) -> list[Case]:
        """The cases that were measured."""
        return [case for case in self._cases.values() if case.rounds]

    def add(
        self, contender: str, free_memory: str, result: Mapping[str, Mapping[str, Values]]
    ) -> None:
        """Add the `quantities` of both directions."""
        for direction, found in result.items():
            for what, values in found.items():
                self._cases[encoding_case(what, direction, free_memory)].add(contender, values)


class Cycle(TypedDict):
    """A guest shrinks, grows, and touches its memory: an entry of a checkpoint."""

    ram: str
    """State of its RAM before: an element of `RAM`."""
    gib: float
    """Amount of memory that is reclaimed and returned."""
    is_full: bool
    """It is 7 eighths of RAM, so that its seconds can be compared, too."""
    inflate: Values
    deflate: Values
    """Seconds by stage."""
    touch_gib_s: float
    """Rate of touching RAM afterwards; 0 if that was not measured."""


class RateCases:
    """Rates at which guests shrink, grow and touch their memory."""

    def __init__(self) -> None:
        self._rates = {
            (what, ram): Case(
                f"{what}, RAM {ram}",
                "GiB/s",
                against=STANDARD if what in RATES else BITMAP,
                panel=what,
                plotted=what in RATES,
                higher_is_better=True,
            )
            for what, ram in (*product(RATES, RAM), ("touch", RAM[1]))
        }
        self._seconds = {
            (direction, ram): Case(f"{direction}, RAM {ram}", "s", BITMAP, plotted=False)
            for direction, ram in product(DIRECTIONS, RAM)
        }
        self._bookkeeping = {
            ram: Case(f"{BOOKKEEPING}, inflate, RAM {ram}", "s", BITMAP, plotted=False)
            for ram in RAM
        }

    @property
    def cases(self) -> list[Case]:
        """All cases."""
        return [*self._rates.values(), *self._seconds.values(), *self._bookkeeping.values()]

    def add(self, contender: str, cycles: Iterable[Cycle]) -> None:
        """Add the cycles of one guest."""
        for cycle in cycles:
            ram = cycle["ram"]
            resizes = {"inflate": cycle["inflate"], "deflate": cycle["deflate"]}
            for (direction, values), what in zip(resizes.items(), RATES, strict=True):
                rate = cycle["gib"] / values[TOTAL]
                self._rates[what, ram].add(contender, {TOTAL: rate})
                if cycle["is_full"]:
                    self._seconds[direction, ram].add(contender, values)
            if cycle["is_full"]:
                bookkeeping = cycle["inflate"][BOOKKEEPING]
                self._bookkeeping[ram].add(contender, {TOTAL: bookkeeping})
            if cycle["touch_gib_s"]:
                self._rates["touch", ram].add(contender, {TOTAL: cycle["touch_gib_s"]})
