# SPDX-License-Identifier: Apache-2.0
"""The report of the demonstration: tables, a plot and a verdict.

The input is the figures of `pyvmm.cli.demo.measure`, as JSON data. matplotlib draws the plot; where
it is not installed, the tables hold the same figures.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pyvmm.cli.demo.measure import PLOT_FILE
from pyvmm.cli.json_output import print_json
from pyvmm.cli.memory_backing import IN_WORDS, describe_kept
from pyvmm.files.output import PNG_START, write_output
from pyvmm.standard_streams.rich_console import TextConsole
from pyvmm.units import MIB

NEEDED_SHARE = 0.95
LATE_SHARE = 0.75
"""A step later than this share of the time has its name to the left of its line."""
NO_PLOT = "it needs matplotlib, which pip install 'pyvmm-kvm[demo]' installs"
STEP_NAMES = {
    "booted": "booted",
    "before": "memory filled",
    "inflated": "balloon inflated",
    "deflated": "balloon deflated",
    "reused": "memory used again",
}


def report(figures: dict[str, Any], output: Path, as_json: bool) -> int:
    """Print the report and return the exit status: 0, or 1 when the demonstration failed.

    The plot is written into the directory `output`.
    """
    plot = _draw(figures, output)
    failures = list(_failures(figures))
    if as_json:
        print_json(_document(figures, plot, failures))
    else:
        _print_tables(figures, plot, failures)
    return 1 if failures else 0


def _document(figures: dict[str, Any], plot: Path | None, failures: list[str]) -> dict[str, Any]:
    """Return the document of `--json`: all figures but the samples of the plot."""
    return {
        "base-memory": figures["ram_bytes"],
        "hugepages": figures["hugepages"],
        "dialect": figures["dialect"],
        "boot-seconds": figures["boot_seconds"],
        "steps": [_with_hyphens(step) for step in figures["steps"]],
        "inflate": _with_hyphens(figures["inflate"]),
        "deflate": _with_hyphens(figures["deflate"]),
        "kept-bytes": figures["kept_bytes"],
        "verified-bytes": figures["verified_bytes"],
        "wrong-bytes": figures["wrong_bytes"],
        "returned-share": round(_returned_share(figures), 6),
        "failures": failures,
        "plot": str(plot) if plot is not None else None,
    }


def _with_hyphens(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in fields.items()}


def _print_tables(figures: dict[str, Any], plot: Path | None, failures: list[str]) -> None:
    console = TextConsole()
    console.print()
    console.print(_steps_table(figures))
    console.print(_transfers_table(figures))
    verified, wrong = figures["verified_bytes"], figures["wrong_bytes"]
    console.print(
        Text.assemble(
            "The host got back ",
            (f"{_returned_share(figures):.1%}", "bold"),
            f" of the inflated memory; the guest verified {verified // MIB} MiB, ",
            (str(wrong), "bold"),
            " bytes wrong.",
        )
    )
    if kept := describe_kept(figures["kept_bytes"]):
        console.print(f"While the balloon was inflated, {kept}.")
    console.print(f"Plot: {plot}" if plot else f"No plot: {NO_PLOT}", soft_wrap=True)
    for failure in failures:
        console.print(Text.assemble(("FAILED", "bold red"), f": {failure}"))


def _failures(figures: dict[str, Any]) -> Iterator[str]:
    share, wrong = _returned_share(figures), figures["wrong_bytes"]
    if share < NEEDED_SHARE:
        yield f"RSS fell by only {share:.1%} of the inflated memory"
    if wrong:
        yield f"{wrong} bytes of the memory that the guest kept have changed"


def _returned_share(figures: dict[str, Any]) -> float:
    rss = {step["name"]: step["rss_bytes"] for step in figures["steps"]}
    inflated_bytes = figures["inflate"]["pages"] * 4096
    return float((rss["before"] - rss["inflated"]) / inflated_bytes) if inflated_bytes else 0.0


def _steps_table(figures: dict[str, Any]) -> Table:
    table = Table(
        title=f"Guest of {figures['ram_bytes'] // MIB} MiB, {figures['dialect']} dialect, "
        f"{IN_WORDS[figures['hugepages']]}, "
        f"user space after {figures['boot_seconds']:.1f} s"
    )
    table.add_column("step")
    for name in ("seconds", "balloon MiB", "guest free MiB", "RSS of pyvmm MiB"):
        table.add_column(name, justify="right")
    for step in figures["steps"]:
        table.add_row(
            STEP_NAMES[step["name"]],
            f"{step['seconds']:.1f}",
            *(
                f"{step[key] / MIB:.0f}"
                for key in ("balloon_bytes", "guest_free_bytes", "rss_bytes")
            ),
        )
    return table


def _transfers_table(figures: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("balloon")
    for name in ("pages", "requests", "pages per request", "seconds"):
        table.add_column(name, justify="right")
    for name in ("inflate", "deflate"):
        transfer = figures[name]
        pages, requests = transfer["pages"], transfer["requests"]
        table.add_row(
            name,
            f"{pages:,}",
            f"{requests:,}",
            f"{pages / requests:,.0f}" if requests else "-",
            f"{transfer['seconds']:.2f}",
        )
    return table


def _draw(figures: dict[str, Any], output: Path) -> Path | None:
    try:
        # Late: takes 400 ms, and may not be installed.
        import matplotlib as mpl
    except ModuleNotFoundError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot  # after `use`; part of the 400 ms

    samples = figures["samples"]
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    seconds = [sample["seconds"] for sample in samples]
    rss_mib = [sample["rss_bytes"] / MIB for sample in samples]
    top_mib = 1.2 * max(rss_mib)
    axes.fill_between(seconds, rss_mib, alpha=0.25)
    axes.plot(seconds, rss_mib, label="resident memory of pyvmm, guest RAM included")
    for row, step in enumerate(figures["steps"]):  # each in a row: some are close in time
        axes.axvline(step["seconds"], color="0.5", linewidth=0.8, linestyle=":")
        late = step["seconds"] > LATE_SHARE * seconds[-1]
        axes.text(
            step["seconds"],
            top_mib * (0.9 if late else 0.9 - 0.06 * row),
            f" {STEP_NAMES[step['name']]} ",
            fontsize=8,
            ha="right" if late else "left",
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB")
    axes.set_ylim(0, top_mib)
    axes.set_xlim(0, None)
    axes.set_title(
        f"Ballooning a guest of {figures['ram_bytes'] // MIB} MiB, {figures['dialect']} dialect"
    )
    axes.legend(loc="upper left", fontsize=8)
    path, picture = output / PLOT_FILE, io.BytesIO()
    figure.savefig(picture, dpi=110)
    write_output(path, picture.getvalue(), PNG_START)
    return path
