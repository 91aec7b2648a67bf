# SPDX-License-Identifier: Apache-2.0
"""`pyvmm demo`: measure where KVM works, report on this terminal.

Without a usable KVM, this command runs again in the lab, with `--measure-only`, and returns its
figures in a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from guest_images.build import build_image
from pyvmm.blocking.event_loop import run_on_new_loop
from pyvmm.boot.loader import read_boot_files
from pyvmm.cli.demo.measure import (
    MEASUREMENTS_FILE,
    PLOT_FILE,
    Demonstration,
    GuestSizes,
    demo_config,
)
from pyvmm.cli.errors import CommandError
from pyvmm.cli.huge_pages import prepare_huge_pages
from pyvmm.cli.json_output import json_option
from pyvmm.cli.options import boot_option, parse_size_value
from pyvmm.config import DIALECTS, HugePages, MachineConfig
from pyvmm.files.output import JSON_START, PNG_START, check_output, write_output
from pyvmm.lab.choose import KvmMode, run_where_kvm_works
from pyvmm.progress.reporter import show_progress
from pyvmm.standard_streams.text import print_message
from pyvmm.units import MIB


@click.command()
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.option(
    "--dialect",
    type=click.Choice(DIALECTS),
    show_default="that of IMAGE",
    help="Balloon protocol.",
)
@click.option(
    "--memory",
    "ram_bytes",
    type=parse_size_value,
    default="1G",
    show_default=True,
    metavar="SIZE",
    help="Guest RAM.",
)
@boot_option("--hugepages")
@click.option(
    "--inflate",
    "inflate_bytes",
    type=parse_size_value,
    default="512M",
    show_default=True,
    metavar="SIZE",
    help="RAM that the balloon takes.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Directory for the plot and the figures.",
)
@boot_option("--kvm")
@json_option
@click.option("--measure-only", is_flag=True, hidden=True)
def demo(
    image: Path | None,
    dialect: str | None,
    ram_bytes: int,
    hugepages: HugePages,
    inflate_bytes: int,
    output: Path,
    kvm: KvmMode,
    as_json: bool,
    measure_only: bool,
) -> int:
    """Boot a Linux guest, inflate and deflate its balloon, and show where its memory is.

    The guest fills its memory, gives a part of it to the balloon and gets it back. It verifies
    every byte that it kept, and the resident memory of pyvmm is sampled from /proc all the time.
    IMAGE is a guest.img; without IMAGE the default image is used, and built the first time.

    The exit status is 0 when at least 95 % of the inflated memory was returned to the host and no
    byte that the guest kept has changed, and 1 otherwise.
    """
    sizes = GuestSizes(ram_bytes // MIB, inflate_bytes // MIB)
    if image is None:
        with show_progress() as progress:
            image = build_image(progress=progress)
    _make_directory(output)
    figures = output / MEASUREMENTS_FILE
    check_output(figures, JSON_START)
    check_output(output / PLOT_FILE, PNG_START)
    config = demo_config(image, sizes, dialect, hugepages)
    if measure_only:
        return _measure(config, sizes, figures)
    # Report an unusable image before the lab starts.
    read_boot_files(config)
    status = _measure_where_kvm_works(config, sizes, output, kvm)
    if status:
        return status
    # Late: saves 23 ms (rich) in the measuring process, ten times that where it is emulated.
    from pyvmm.cli.demo.report import report

    return report(json.loads(figures.read_text()), output, as_json)


def _make_directory(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"cannot create the directory {output}: {error.strerror}", "choose another --output"
        ) from error


def _measure(config: MachineConfig, sizes: GuestSizes, figures: Path) -> int:
    async def run() -> None:
        result = await Demonstration(config, sizes, _announce).measure()
        text = json.dumps(result.to_json_object(), indent=1)
        write_output(figures, text.encode(), JSON_START)

    prepare_huge_pages(config.hugepages, config.ram_bytes)
    run_on_new_loop(run)
    return 0


def _measure_where_kvm_works(
    config: MachineConfig, sizes: GuestSizes, output: Path, kvm: KvmMode
) -> int:
    def measure_in_lab() -> int:
        # Late: saves 12 ms (the lab) where KVM is fit, and in the lab itself.
        from pyvmm.cli.lab import run_guest_in_lab

        return run_guest_in_lab(argv, sizes.ram_mib, files=[config.kernel, output])

    argv = [sys.executable, "-m", "pyvmm", "demo", str(config.kernel), "--output", str(output)]
    argv += ["--memory", f"{sizes.ram_mib}M", "--inflate", f"{sizes.inflate_mib}M"]
    argv += ["--hugepages", config.hugepages, "--dialect", config.dialect, "--measure-only"]
    return run_where_kvm_works(
        kvm, lambda: _measure(config, sizes, output / MEASUREMENTS_FILE), measure_in_lab
    )


def _announce(text: str) -> None:
    print_message(f"{text} ...", "  ")
