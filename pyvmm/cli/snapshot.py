# SPDX-License-Identifier: Apache-2.0
"""`pyvmm snapshot`: write a running guest to a file, or show what such a file holds.

The guest's own process writes the file. The command starts that over QMP, shows the progress, and
reports how many pages were left out and why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pyvmm.cli.collected_signals import collected_signals
from pyvmm.cli.errors import CommandError
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import optional_qmp_option, timeout_option, unused_option
from pyvmm.cli.qmp_command import run_qmp_command
from pyvmm.progress.reporter import show_progress
from pyvmm.qmp.client import QmpClient
from pyvmm.standard_streams.text import print_line, print_message
from pyvmm.units import MIB, format_size
from pyvmm_native import PAGE_BYTES

POLL_PERIOD_S = 0.1
PAGE_LABELS = {
    "stored": "in the file",
    "zero": "zero",
    "unused": "unused by the guest",
    "absent": "never touched or in the balloon",
}
"""Classes of pages in `query-snapshot` and in a snapshot's report."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@optional_qmp_option
@click.option("--info", is_flag=True, help="Check all of FILE and show what it holds.")
@click.option(
    "--keep-running/--stop",
    default=True,
    show_default=True,
    help="Keep the guest running afterwards, or end it.",
)
@click.option("--force", is_flag=True, help="Replace FILE even if it is not a snapshot.")
@unused_option
@timeout_option(10.0, "Continue without the guest's answer after this many seconds.")
@json_option
def snapshot(
    file: Path,
    address: str | None,
    info: bool,
    keep_running: bool,
    force: bool,
    query_unused: bool,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Write a running guest to FILE, which 'pyvmm run --restore FILE' resumes.

    The guest runs while its pages are copied, and is paused only to copy those that it changed
    meanwhile; with --stop it is paused from the start. Pages that it does not use, zero pages and
    pages in its balloon are left out, so the file holds little more than the guest needs. It
    replaces an older snapshot in FILE only when it is complete and on disk. Nothing else is
    replaced: a pipe, a socket or a device never, another regular file with --force.

    \b
    Save a guest, show the file, resume the guest:
      pyvmm snapshot vm.snap --qmp unix:/tmp/vm.sock --stop
      pyvmm snapshot vm.snap --info
      pyvmm run --restore vm.snap

    FILE holds the guest's memory, secrets included; only its owner can read it.

    A signal such as Ctrl-C ends the command only: the snapshot continues in the guest's process.

    The exit status is 0 when the snapshot is complete, 1 when the guest ended, 2 when it cannot be
    taken or, with --info, when FILE is damaged, 128 + N when signal N ended the wait.
    """
    source = click.get_current_context().get_parameter_source("address")
    if source is ParameterSource.COMMANDLINE if info else address is None:
        raise CommandError("give either --vm, --qmp or --info", "see 'pyvmm snapshot --help'")
    if info or address is None:
        # Late: saves 60 ms (rich, the snapshot reader, the machine's parts) without --info.
        from pyvmm.cli.snapshot_info import show_snapshot

        show_snapshot(file, PAGE_LABELS, as_json)
        return 0
    options = {"keep-running": keep_running, "unused": query_unused, "timeout": timeout_s}
    if force:
        options["force"] = True

    def work(client: QmpClient) -> int:
        with collected_signals() as signals:
            client.execute("snapshot-to-file", path=str(file.absolute()), **options)
            answer = _wait(client, signals)
        if answer is None:
            paused = "" if keep_running else "; the guest then stays paused"
            print_message(f"interrupted; {file} is still being written, see 'pyvmm status'{paused}")
            return 128 + signals[0]
        if as_json:
            print_json({"file": str(file), **answer})
        else:
            print_line(summary(file, answer))
        if not keep_running:
            client.execute("quit")
        return 0

    return run_qmp_command(address, "pyvmm snapshot", work)


def _wait(client: QmpClient, signals: Sequence[int]) -> dict[str, Any] | None:
    """Show progress until the snapshot is complete; returns the answer of `query-snapshot`.

    Returns None when the process has received one of `signals`; the snapshot continues.
    """
    with show_progress() as progress:
        progress.stage("querying unused pages")
        shown_mib, total = 0, 0
        while (answer := client.execute("query-snapshot"))["status"] == "active":
            if total == 0 and answer["total"]:
                total = answer["total"]
                progress.stage("copying memory", -(-total // MIB))
            # Pages that the guest changes are copied, and counted, again.
            now_mib = min(answer["completed"], total) // MIB
            if now_mib > shown_mib:
                progress.advance(now_mib - shown_mib)
                shown_mib = now_mib
            if signals:
                return None
            time.sleep(POLL_PERIOD_S)
    if answer["status"] != "completed":
        # Late: saves 14 ms (the errors of every package) without an error.
        from pyvmm.cli.remedies import reported_remedy

        reason = answer.get("error-desc", "no snapshot was taken")
        remedies = (reported_remedy(reason), "the guest still runs")
        raise CommandError(reason, "; ".join(filter(None, remedies)))
    completed: dict[str, Any] = answer
    return completed


def summary(file: Path, answer: dict[str, Any]) -> str:
    """Return the line that reports a completed snapshot."""
    pages = answer["pages"]
    left_out = ", ".join(
        f"{format_size(pages[name] * PAGE_BYTES)} {text}"
        for name, text in PAGE_LABELS.items()
        if name != "stored" and pages[name]
    )
    return (
        f"{file}: {format_size(answer['file-bytes'])} in {answer['seconds']:.2f} s, downtime"
        f" {answer['stopped-seconds']:.2f} s; left out: {left_out or 'nothing'}"
    )
