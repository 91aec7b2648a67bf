# SPDX-License-Identifier: Apache-2.0
"""`pyvmm cache`: show, prune and limit what the cache holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pyvmm.cache.contents import (
    CacheEntry,
    apply_limit,
    list_entries,
    read_limit,
    remove_entry,
    set_limit,
)
from pyvmm.cache.directory import CacheUnusable, cache_root
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import parse_size_value
from pyvmm.standard_streams.text import print_line
from pyvmm.units import format_size

KINDS = {
    "images": "guest images",
    "kernel": "source and objects of the guest images' kernel",
    "kvm": "fitness of KVM",
    "lab": "initramfs and boot snapshots of the lab",
    "vmlinux": "kernels, unpacked",
    "elf": "tables of kernels",
    "debian": "kernels for tests",
    "bench": "programs for benchmarks",
    "tests": "programs for tests",
}


def parse_limit(text: str) -> int | None:
    """Convert a size to bytes, "none" to None; a click type."""
    return None if text == "none" else parse_size_value(text)


@click.group(invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> None:
    """Show, prune or limit the cache of guest images, kernels and labs; by default, show it.

    The cache is below $XDG_CACHE_HOME, by default ~/.cache. All of it can be computed again.

    The exit status is 0 when the command has succeeded, and 2 when there is no directory for the
    cache or it cannot be changed.
    """
    if context.invoked_subcommand is None:
        context.invoke(show)


@cache.command()
@json_option
def show(as_json: bool) -> None:
    """Show what the cache holds: kinds, sizes and last uses."""
    root = cache_root()
    entries = list_entries(root)
    if as_json:
        print_json(_document(root, entries))
    else:
        _print_table(root, entries)


@cache.command()
@click.argument("kinds", nargs=-1, metavar="[KIND]...", type=click.Choice(list(KINDS)))
@json_option
def prune(kinds: tuple[str, ...], as_json: bool) -> None:
    """Remove everything from the cache, or everything of each KIND, that is not in use.

    A file is in use while a process has it open; on a network file system, always. The kernel's
    trees are in use while an image is built.
    """
    root = cache_root()
    entries = [entry for entry in list_entries(root) if not kinds or entry.kind in kinds]
    removed = [entry for entry in entries if remove_entry(root, entry)]
    in_use = [entry for entry in entries if entry not in removed]
    if as_json:
        print_json({"removed": _sum(removed), "in-use": [str(entry.path) for entry in in_use]})
        return
    print_line(f"removed: {format_size(_sum(removed))}")
    for entry in in_use:
        print_line(f"in use: {entry.path}")


@cache.command()
@click.argument("size", type=parse_limit)
def limit(size: int | None) -> None:
    """Keep the cache below SIZE, such as 2G, from now on; SIZE "none" removes the limit.

    When something is added, what was used longest ago is removed first.
    """
    root = cache_root()
    try:
        set_limit(root, size)
    except OSError as error:
        raise CacheUnusable(f"cannot write to the cache {root}: {error.strerror}") from error
    apply_limit(root)


def _sum(entries: Sequence[CacheEntry]) -> int:
    return sum(entry.size_bytes for entry in entries)


def _document(root: Path, entries: Sequence[CacheEntry]) -> dict[str, Any]:
    """Return the document of `pyvmm cache show --json`."""
    return {
        "directory": str(root),
        "size": _sum(entries),
        "limit": read_limit(root),
        "entries": [
            {
                "kind": entry.kind,
                "file": str(entry.path),
                "file-bytes": entry.size_bytes,
                "last-used": datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds"),
            }
            for entry in entries
        ],
    }


def _print_table(root: Path, entries: Sequence[CacheEntry]) -> None:
    # Late: saves 23 ms (rich) in `prune` and `limit`.
    from rich.table import Table

    from pyvmm.standard_streams.rich_console import TextConsole

    limit_bytes = read_limit(root)
    limit_text = "no limit" if limit_bytes is None else f"limit {format_size(limit_bytes)}"
    table = Table(title=f"{root}: {format_size(_sum(entries))}, {limit_text}")
    for column in ("kind", "contents", "number", "size", "last use"):
        table.add_column(column, justify="right" if column in ("number", "size") else "left")
    for row in _rows(entries):
        table.add_row(*row)
    TextConsole().print(table)


def _rows(entries: Sequence[CacheEntry]) -> Iterator[tuple[str, ...]]:
    for kind in sorted({entry.kind for entry in entries}):
        chosen = [entry for entry in entries if entry.kind == kind]
        used = time.localtime(max(entry.used for entry in chosen))
        yield (
            kind,
            KINDS.get(kind, ""),
            str(len(chosen)),
            format_size(_sum(chosen)),
            time.strftime("%Y-%m-%d %H:%M", used),
        )
