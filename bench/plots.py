# SPDX-License-Identifier: Apache-2.0
"""Plots of the results, one picture for each benchmark.

A picture has a panel for each `Case.panel` and unit, so that bars beside each other are comparable.
A case is a group of bars, one for each contender, with the least and the greatest round as a
whisker. Contenders whose values are the same, as counts can be, share a bar. Bars of too few rounds
are pale. Cases that are points of a curve become lines instead. Every picture says where its
figures were taken, in which unit they are and which direction is better.
"""

from __future__ import annotations

import io
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from bench.measure import ENOUGH_ROUNDS, Case
from bench.results import Result
from bench.tables import shown
from pyvmm.files.output import PNG_START, write_output

mpl.use("Agg")
from matplotlib import pyplot, ticker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 9.0
BAR_INCHES = 0.23
PANEL_INCHES = 0.65
CURVE_INCHES = 4.0
HEAD_INCHES = 0.7
LOG_SCALE_RATIO = 100.0
"""A panel whose medians differ by more than this factor has a logarithmic scale."""
UNITS = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ms/MiB": "milliseconds for each MiB",
    "ns": "nanoseconds",
    "ns/page": "nanoseconds for each page of 4 KiB",
    "bytes/page": "bytes for each page of 4 KiB",
    "rounds": "pre-copy rounds",
}
LINE_HEIGHT = 0.6
"""Height that each further name of a bar adds to it, in bars."""
PALE = 0.45
LINE_STYLES: tuple[dict[str, Any], ...] = (
    {"marker": "o", "markersize": 5, "linewidth": 3, "alpha": 0.5},
    {"marker": "x", "markersize": 6, "linestyle": "--"},
)
"""Lines of a curve, so that each of two that coincide can be seen."""
PLAIN_NUMBERS = ticker.StrMethodFormatter("{x:,.10g}")
Colours = dict[str, str]
"""Colour of each contender, the same in every panel."""


def draw(result: Result, output: Path) -> Path:
    """Draw `result` as `output`/NAME.png and return that path."""
    result = result.with_versions()
    path = output / f"{result.bench}.png"
    panels = panels_of(result.cases)
    contenders = dict.fromkeys(name for cases in panels for case in cases for name in case.rounds)
    colours = {name: f"C{number % 10}" for number, name in enumerate(contenders)}
    heights = [_inches(cases) for cases in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(WIDTH_INCHES, sum(heights) + HEAD_INCHES),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for (panel,), cases in zip(axes, panels, strict=True):
        if cases[0].x is None:
            _bars(panel, cases, colours)
        else:
            _curves(panel, cases, colours)
    figure.suptitle(result.title)
    # Under the title, where the constrained layout leaves room for a line of the first panel.
    axes[0][0].set_title(_provenance(result, panels), fontsize=8, color="dimgray")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, metadata={"Software": None})
    write_output(path, picture.getvalue(), PNG_START)
    pyplot.close(figure)
    return path


def panels_of(cases: list[Case]) -> list[list[Case]]:
    """Return the cases of each panel, without those that are for tables only."""
    panels: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        if case.plotted:
            panels.setdefault((case.group, case.panel, case.unit), []).append(case)
    return list(panels.values())


def _provenance(result: Result, panels: list[list[Case]]) -> str:
    where = f"native, {result.machine['processor']}"
    if result.emulated:
        where = "in the lab: processor and KVM are emulated"
    quick = "quick run, not representative; " if result.quick else ""
    text = f"{quick}{where}; {result.taken[:10]}; compare ratios, not absolute values"
    cases = [case for panel in panels for case in panel]
    few = [case for case in cases if not all(map(case.has_enough_rounds, case.rounds))]
    if not few:
        return text
    shape = "pale bars" if any(case.x is None for case in few) else "points"
    return f"{text}\n{shape}: fewer than {ENOUGH_ROUNDS} rounds, an indication"


def _inches(cases: list[Case]) -> float:
    if cases[0].x is not None:
        return CURVE_INCHES
    bars = sum(1 + sum(_height(names) for names in shared_bars(case)) for case in cases)
    return PANEL_INCHES + BAR_INCHES * bars


def shared_bars(case: Case) -> list[list[str]]:
    """Return the contenders of each bar of `case`: those with the same values share one."""
    bars: dict[tuple[float, ...], list[str]] = {}
    for contender, values in case.rounds.items():
        bars.setdefault(tuple(values), []).append(contender)
    return list(bars.values())


def _height(names: list[str]) -> float:
    """Return the height of a bar with these names, in those of a bar with one."""
    return 1 + LINE_HEIGHT * (len(names) - 1)


def _axis(case: Case) -> str:
    better = "higher" if case.higher_is_better else "lower"
    return f"{UNITS.get(case.unit, case.unit)} ({better} is better)"


def _curves(axes: Axes, cases: list[Case], colours: Colours) -> None:
    for contender, style in zip(cases[0].rounds, cycle(LINE_STYLES), strict=False):
        points = sorted((case.x or 0, case.median(contender)) for case in cases)
        axes.plot(
            *zip(*points, strict=True),
            **style,
            label=contender,
            color=colours[contender],
        )
    axes.set(xscale="log", yscale="log", xlabel=cases[0].group, ylabel=_axis(cases[0]))
    axes.xaxis.set_major_formatter(PLAIN_NUMBERS)
    axes.yaxis.set_major_formatter(PLAIN_NUMBERS)
    medians = [case.median(contender) for case in cases for contender in case.rounds]
    narrow = max(medians) < 10 * min(medians)  # fewer than two major ticks
    axes.yaxis.set_minor_formatter(PLAIN_NUMBERS if narrow else ticker.NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


def _bars(axes: Axes, cases: list[Case], colours: Colours) -> None:
    """Draw horizontal bars from top to bottom, each case under a line with its name."""
    medians = [case.median(contender) for case in cases for contender in case.rounds]
    logarithmic = 0 < LOG_SCALE_RATIO * min(medians) < max(medians)
    if logarithmic:
        axes.set_xscale("log")
    labels: list[tuple[float, str]] = []
    row = 0.0
    for case in cases:
        axes.text(0.005, row, case.name, transform=axes.get_yaxis_transform(), **_CASE_NAME)
        row += 1
        for names in shared_bars(case):
            row += (_height(names) - 1) / 2
            _bar(axes, row, case, names[0], colours[names[0]])
            labels.append((row, "\n".join(names)))
            row += (_height(names) + 1) / 2
    axes.set_yticks([place for place, _ in labels], [name for _, name in labels], fontsize=8)
    axes.set_ylim(row - 0.3, -0.7)
    axes.margins(x=0.12)
    if not logarithmic:
        axes.axvline(0, color="black", linewidth=0.8)
    scale = ", logarithmic" if logarithmic else ""
    axes.set_xlabel(_axis(cases[0]) + scale, fontsize=8)
    axes.xaxis.set_major_formatter(PLAIN_NUMBERS)
    axes.tick_params(axis="x", labelsize=8)


_CASE_NAME: dict[str, Any] = {"va": "center", "ha": "left", "fontsize": 8, "fontweight": "bold"}


def _bar(axes: Axes, row: float, case: Case, contender: str, colour: str) -> None:
    values, middle = case.rounds[contender], case.median(contender)
    whisker = [[middle - min(values)], [max(values) - middle]] if len(values) > 1 else None
    alpha = 1.0 if case.has_enough_rounds(contender) else PALE
    axes.barh(row, middle, xerr=whisker, color=colour, height=0.85, alpha=alpha)
    axes.text(max(values), row, f" {shown(middle)}", va="center", fontsize=7)
