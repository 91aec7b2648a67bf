# SPDX-License-Identifier: Apache-2.0
"""Pictures of what was measured, one for each benchmark.

A case is a group of bars, one for each contender, with the least and the greatest round as a
whisker; cases of one unit share a scale. Cases that are points of a curve become lines instead.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

from bench.measure import Case
from bench.results import Result
from bench.tables import shown

mpl.use("Agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 9.0
BAR_INCHES = 0.24
CURVE_INCHES = 4.0
LEGEND_COLUMNS = 3
MANY_TIMES = 100.0
"""Where values differ by more than this the scale is logarithmic."""


def draw(result: Result, output: Path) -> Path:
    """Draw `result` as `output`/NAME.png and return that path."""
    path = output / f"{result.bench}.png"
    parts = [
        list(cases) for _, cases in groupby(result.cases, lambda case: (case.group, case.unit))
    ]
    heights = [_inches(cases) for cases in parts]
    figure, places = pyplot.subplots(
        len(parts),
        figsize=(WIDTH_INCHES, sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for (axes,), cases in zip(places, parts, strict=True):
        if cases[0].x is None:
            _bars(axes, cases)
        else:
            _curves(axes, cases)
    figure.suptitle(result.title)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _inches(cases: list[Case]) -> float:
    if cases[0].x is not None:
        return CURVE_INCHES
    return 1.2 + BAR_INCHES * sum(len(case.rounds) + 1 for case in cases)


def _curves(axes: Axes, cases: list[Case]) -> None:
    for contender in cases[0].rounds:
        points = sorted((case.x or 0, case.median(contender)) for case in cases)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=contender)
    axes.set(xscale="log", yscale="log", xlabel=cases[0].group, ylabel=cases[0].unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _bars(axes: Axes, cases: list[Case]) -> None:
    """Horizontal bars from top to bottom, a gap after each case."""
    colours: dict[str, str] = {}
    middles: list[float] = []
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for case in cases:
        ticks.append((place + (len(case.rounds) - 1) / 2, case.name))
        for contender, values in case.rounds.items():
            label = None if contender in colours else contender  # once in the legend
            colour = colours.setdefault(contender, f"C{len(colours)}")
            middle = case.median(contender)
            whisker = [[middle - min(values)], [max(values) - middle]]
            axes.barh(place, middle, xerr=whisker, color=colour, label=label, height=0.85)
            axes.text(max(values), place, f" {shown(middle)}", va="center", fontsize=7)
            middles.append(middle)
            place += 1
        place += 1
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    axes.invert_yaxis()
    if 0 < MANY_TIMES * min(middles) < max(middles):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel(cases[0].unit)
    axes.legend(
        fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=LEGEND_COLUMNS, frameon=False
    )
