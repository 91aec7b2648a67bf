# SPDX-License-Identifier: Apache-2.0
"""`pyvmm snapshot FILE --info`: check a snapshot file and show its contents.

A module of its own because only `--info` needs rich, the snapshot reader and the list of the
machine's parts, which take 60 ms to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from pyvmm.cli.json_output import print_json
from pyvmm.machine.catalogue import part_kinds
from pyvmm.progress.reporter import show_progress
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.standard_streams.rich_console import TextConsole
from pyvmm.units import format_size
from pyvmm_native import PAGE_BYTES


def show_snapshot(file: Path, labels: Mapping[str, str], as_json: bool) -> None:
    """Verify every checksum of the snapshot `file` and print its contents; raises `UserError`.

    `labels` maps the classes of pages in a snapshot's report to texts for people.
    """
    with SnapshotFile(file, part_kinds()) as opened:
        with show_progress() as progress:
            progress.stage("checking", len(opened.blocks))
            opened.check(lambda pages: progress.advance())
        if as_json:
            print_json(_document(opened))
            return
        console = TextConsole()
        console.print(_description(opened), soft_wrap=True)
        console.print(_pages(opened, labels))
        console.print(_parts(opened))


def _document(opened: SnapshotFile) -> dict[str, Any]:
    """Return the document of `--json`."""
    config = opened.config
    return {
        "file": str(opened.path),
        "file-bytes": opened.file_bytes,
        "base-memory": config.ram_bytes,
        "cpus": config.vcpus,
        "dialect": config.dialect,
        "kernel": str(config.kernel),
        "initrd": str(config.initrd) if config.initrd is not None else None,
        "command-line": config.command_line,
        "pages": asdict(opened.report),
        "parts": [
            {
                "kind": part.kind,
                "instance": part.instance,
                "version": part.version,
                "bytes": len(part.payload),
            }
            for part in opened.parts
        ],
    }


def _description(opened: SnapshotFile) -> str:
    config = opened.config
    return (
        f"{opened.path}: {format_size(opened.file_bytes)}, all checksums match\n"
        f"guest: {format_size(config.ram_bytes)}, {config.vcpus} vCPUs, {config.dialect} dialect,"
        f" {config.kernel}\n"
        f"unused pages: {opened.report.asked}"
    )


def _pages(opened: SnapshotFile, labels: Mapping[str, str]) -> Table:
    report = opened.report
    table = Table(title="pages of the guest")
    for column in ("where", "pages", "size", "share"):
        table.add_column(column, justify="left" if column == "where" else "right")
    for name, text in labels.items():
        count: int = getattr(report, name)
        share = f"{count / max(report.ram, 1):.1%}"
        table.add_row(text, f"{count:,}", format_size(count * PAGE_BYTES), share)
    table.caption = f"in the balloon: {format_size(report.ballooned * PAGE_BYTES)}"
    return table


def _parts(opened: SnapshotFile) -> Table:
    table = Table(title="parts of the machine")
    for column in ("part", "version", "bytes"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in opened.parts:
        name = f"{part.kind} {part.instance}" if part.instance else part.kind
        table.add_row(name, str(part.version), f"{len(part.payload):,}")
    return table
