# SPDX-License-Identifier: Apache-2.0
"""`pyvmm image`: build guest images and inspect them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from guest_images.build import build_image, image_path
from guest_images.manifest import Manifest, read_manifest
from guest_images.recipe import read_recipe
from pyvmm.cache.contents import apply_limit
from pyvmm.cache.directory import cache_root
from pyvmm.cli.errors import CommandError
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.progress.reporter import show_progress
from pyvmm.standard_streams.text import print_line

BUILD_REMEDY = "run: pyvmm image build"
_PATH = click.Path(path_type=Path)
_SOURCE = click.option(
    "--source",
    type=_PATH,
    metavar="PATH",
    help="A Linux 6.12 source tree or archive, instead of Debian's linux-source-6.12.",
)


@click.group()
def image() -> None:
    """Build and inspect guest images.

    The exit status is 0 when the command has succeeded, and 2 when a file, the kernel source or a
    tool is missing or cannot be used.
    """


@image.command()
@click.option(
    "--output",
    "-o",
    type=_PATH,
    metavar="FILE",
    help="Write the image to FILE, too.",
)
@_SOURCE
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="one per CPU",
    help="Number of parallel jobs.",
)
@click.option("--force", is_flag=True, help="Build even if the image is up to date.")
@json_option
def build(
    output: Path | None, source: Path | None, jobs: int | None, force: bool, as_json: bool
) -> None:
    """Build the guest image unless it is up to date; print its path.

    The image is one ELF file: a Linux 6.12 kernel with pyvmm's balloon driver, and a small user
    space.
    """
    with show_progress() as progress:
        path = build_image(output, source=source, jobs=jobs, progress=progress, force=force)
    apply_limit(cache_root(), path)
    _print_path(path, as_json)


@image.command()
@click.argument("file", type=_PATH)
@json_option
def info(file: Path, as_json: bool) -> None:
    """Show the manifest of the guest image FILE."""
    try:
        manifest = read_manifest(file)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}", BUILD_REMEDY) from error
    if manifest is None:
        raise CommandError(f"{file} is not a guest image: it has no manifest", BUILD_REMEDY)
    if as_json:
        print_json(_document(file, manifest))
    else:
        _print_manifest(file, manifest)


@image.command()
@_SOURCE
@json_option
def where(source: Path | None, as_json: bool) -> None:
    """Print the path of the up-to-date guest image in the cache."""
    path = image_path(read_recipe(source))
    if not path.exists():
        raise CommandError("no guest image has been built from the present inputs", BUILD_REMEDY)
    _print_path(path, as_json)


def _print_path(path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(path)})
    elif sys.stdout.isatty():
        print_line(str(path))
    else:  # for a program, which needs the bytes of the name
        click.echo(os.fsencode(path))


def _document(file: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the document of `pyvmm image info --json`."""
    return {
        "file": str(file),
        "file-bytes": file.stat().st_size,
        "kernel": manifest.kernel,
        "driver": manifest.driver,
        "dialect": manifest.dialect,
        "created": manifest.created,
        "inputs": manifest.inputs,
        "command-lines": {
            dialect: manifest.command_line(dialect) for dialect in manifest.dialect_append
        },
    }


def _print_manifest(file: Path, manifest: Manifest) -> None:
    # Late: saves 23 ms (rich) in `build` and `where`.
    from rich.table import Table

    from pyvmm.standard_streams.rich_console import TextConsole

    table = Table(title=str(file), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "kernel": f"Linux {manifest.kernel}",
        "balloon driver": manifest.driver,
        "dialect": manifest.dialect,
        "size": f"{file.stat().st_size / (1 << 20):.1f} MiB",
        "created": manifest.created,
        "inputs": manifest.inputs,
    }
    for dialect in manifest.dialect_append:
        rows[f"command line, {dialect}"] = manifest.command_line(dialect)
    for name, value in rows.items():
        table.add_row(name, value)
    TextConsole().print(table)
