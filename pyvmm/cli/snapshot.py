# SPDX-License-Identifier: Apache-2.0
"""`pyvmm snapshot`: write a running guest to a file, or look into such a file.

The guest's own process writes the file; the command begins it over QMP, shows how far it is, and
tells what became of every page.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.balloon import parse_seconds
from pyvmm.cli.monitor import unused_option, visit
from pyvmm.errors import UserError
from pyvmm.progress.reporter import show_progress
from pyvmm.qmp.client import QmpClient
from pyvmm.units import MIB, format_size
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from rich.table import Table

    from pyvmm.snapshot.reader import SnapshotFile

POLL_PERIOD_S = 0.1
_REASONS = {
    "stored": "in the file",
    "zero": "zeros",
    "unused": "unused, says the guest",
    "absent": "never touched, or in the balloon",
}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--qmp", "address", metavar="unix:PATH", help="Control socket of the guest.")
@click.option("--info", is_flag=True, help="Show what is in FILE, and check all of it.")
@click.option(
    "--keep-running/--stop",
    default=True,
    show_default=True,
    help="Let the guest go on afterwards, or end it.",
)
@unused_option
@click.option(
    "--timeout",
    "timeout_s",
    type=parse_seconds,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Do without an answer after this many seconds.",
)
def snapshot(
    file: Path,
    address: str | None,
    info: bool,
    keep_running: bool,
    ask_unused: bool,
    timeout_s: float,
) -> int:
    """Write a running guest to FILE, from which 'pyvmm run --restore FILE' goes on.

    The guest runs while its pages are copied, and stands still only for those that it changes
    meanwhile; with --stop it stands still from the beginning. Pages it does not use, pages of
    zeros and pages in its balloon are left out, so the file is about as large as what the guest
    really needs. It takes the place of an older FILE only when it is complete and on the disk.

    \b
    Save a guest, look at the file, go on from it:
      pyvmm snapshot vm.snap --qmp unix:/tmp/vm.sock --stop
      pyvmm snapshot vm.snap --info
      pyvmm run --restore vm.snap

    FILE holds all of the guest's memory, secrets included; only its owner can read it. The exit
    status is 0 when the snapshot is complete, 1 when the guest ended, 2 when it cannot be taken or,
    with --info, when FILE is damaged.
    """
    if info == (address is not None):
        raise UserError("it takes either --qmp or --info", "see 'pyvmm snapshot --help'")
    if address is None:
        return _inspect(file)
    options = {"keep-running": keep_running, "unused": ask_unused, "timeout": timeout_s}

    def work(client: QmpClient) -> int:
        client.execute("snapshot-to-file", path=str(file.absolute()), **options)
        print(summary(file, _wait(client)))
        if not keep_running:
            client.execute("quit")
        return 0

    return visit(address, "pyvmm snapshot", work)


def _wait(client: QmpClient) -> dict[str, Any]:
    """Show progress until the snapshot is complete; returns the answer of query-snapshot."""
    with show_progress() as progress:
        progress.stage("asking the guest what it does not use")
        shown_mib, total = 0, 0
        while (answer := client.execute("query-snapshot"))["status"] == "active":
            if total == 0 and answer["total"]:
                total = answer["total"]
                progress.stage("copying its memory", -(-total // MIB))
            now_mib = min(answer["completed"], total) // MIB  # what it changes comes on top
            if now_mib > shown_mib:
                progress.advance(now_mib - shown_mib)
                shown_mib = now_mib
            time.sleep(POLL_PERIOD_S)
    if answer["status"] != "completed":
        raise UserError(answer.get("error-desc", "there is no snapshot"), "the guest goes on")
    completed: dict[str, Any] = answer
    return completed


def summary(file: Path, answer: dict[str, Any]) -> str:
    """What is said of a snapshot that was just taken."""
    pages = answer["pages"]
    left_out = ", ".join(
        f"{format_size(pages[reason] * PAGE_BYTES)} {text}"
        for reason, text in _REASONS.items()
        if reason != "stored" and pages[reason]
    )
    return (
        f"{file}: {format_size(answer['file-bytes'])} in {answer['seconds']:.2f} s, of which the"
        f" guest stood still {answer['stopped-seconds']:.2f} s; left out: {left_out or 'nothing'}"
    )


def _inspect(file: Path) -> int:
    """Show what is in a snapshot, after having read all of it."""
    from rich.console import Console

    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.state.parts import KINDS

    with SnapshotFile(file, KINDS) as opened:
        with show_progress() as progress:
            progress.stage("checking", len(opened.blocks))
            opened.check(lambda pages: progress.advance())
        console = Console()
        console.print(_description(opened), highlight=False, soft_wrap=True)
        console.print(_pages(opened))
        console.print(_parts(opened))
    return 0


def _description(opened: SnapshotFile) -> str:
    config = opened.config
    return (
        f"{opened.path}: {format_size(opened.file_bytes)}, every checksum is right\n"
        f"guest: {format_size(config.ram_bytes)}, {config.vcpus} vCPUs, {config.dialect} dialect,"
        f" {config.kernel}\n"
        f"unused pages: {opened.report.asked}"
    )


def _pages(opened: SnapshotFile) -> Table:
    from rich.table import Table

    report = opened.report
    table = Table(title="pages of the guest")
    for column in ("what became of them", "pages", "size", "share"):
        table.add_column(column, justify="left" if column[0] == "w" else "right")
    for reason, text in _REASONS.items():
        count: int = getattr(report, reason)
        share = f"{count / max(report.ram, 1):.1%}"
        table.add_row(text, f"{count:,}", format_size(count * PAGE_BYTES), share)
    table.caption = f"in the balloon: {format_size(report.ballooned * PAGE_BYTES)}"
    return table


def _parts(opened: SnapshotFile) -> Table:
    from rich.table import Table

    table = Table(title="parts of the machine")
    for column in ("part", "version", "bytes"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in opened.parts:
        name = f"{part.kind} {part.instance}" if part.instance else part.kind
        table.add_row(name, str(part.version), f"{len(part.payload):,}")
    return table
