# SPDX-License-Identifier: Apache-2.0
"""`pyvmm demo`: measure where KVM works, tell the story here."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.config import DIALECTS
from pyvmm.lab.choose import KVM_MODES, Choice, KvmMode, choose_kvm
from pyvmm.units import MIB, parse_size

if TYPE_CHECKING:
    from pyvmm.cli.demo.measure import Script

MEASUREMENTS_FILE = "measurements.json"


@click.command()
@click.argument("image", type=click.Path(path_type=Path), required=False)
@click.option("--dialect", type=click.Choice(DIALECTS), help="Balloon protocol [default: IMAGE's].")
@click.option("--memory", default="1G", show_default=True, metavar="SIZE", help="Guest RAM.")
@click.option(
    "--inflate", default="512M", show_default=True, metavar="SIZE", help="What the balloon takes."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Directory for the picture and the figures.",
)
@click.option("--kvm", type=click.Choice(KVM_MODES), default="auto", show_default=True)
@click.option("--measure-only", is_flag=True, hidden=True)
def demo(
    image: Path | None,
    dialect: str | None,
    memory: str,
    inflate: str,
    output: Path,
    kvm: KvmMode,
    measure_only: bool,
) -> int:
    """Boot a Linux guest, inflate and deflate its balloon, and show where the memory went.

    The guest fills its memory, gives most of it away through the balloon and gets it back; what
    it kept is verified byte by byte, and the resident memory of pyvmm is watched from /proc all
    the while. IMAGE is a guest.img; without it the standard one is built (once).

    The exit status is 1 when less than 95 % of what was inflated came back to the host, or when a
    byte that the guest kept has changed.
    """
    from pyvmm.cli.demo.measure import Script

    script = Script(parse_size(memory) // MIB, parse_size(inflate) // MIB)
    if image is None:
        from guest_images.build import build_image
        from pyvmm.progress.reporter import show_progress

        with show_progress() as progress:
            image = build_image(progress=progress)
    output.mkdir(parents=True, exist_ok=True)
    figures = output / MEASUREMENTS_FILE
    if measure_only:
        return _measure(image, script, dialect, figures)
    figures.unlink(missing_ok=True)
    status = _measure_where_kvm_works(image, script, dialect, output, kvm)
    if status:
        return status
    from pyvmm.cli.demo.report import report

    return report(json.loads(figures.read_text()), output)


def _measure(image: Path, script: Script, dialect: str | None, figures: Path) -> int:
    from pyvmm.cli.demo.measure import Demonstration

    async def run() -> None:
        result = await Demonstration(image, script, dialect, _say).measure()
        figures.write_text(json.dumps(result.to_json_object(), indent=1))

    asyncio.run(run())
    return 0


def _measure_where_kvm_works(
    image: Path, script: Script, dialect: str | None, output: Path, kvm: KvmMode
) -> int:
    if choose_kvm(kvm) is Choice.HOST:
        return _measure(image, script, dialect, output / MEASUREMENTS_FILE)
    from pyvmm.cli.run import LAB_OVERHEAD_MIB
    from pyvmm.lab.run import MIN_MEMORY_MIB, run_in_lab

    argv = [sys.executable, "-m", "pyvmm", "demo", str(image), "--output", str(output)]
    argv += ["--memory", f"{script.ram_mib}M", "--inflate", f"{script.inflate_mib}M"]
    argv += ["--measure-only", *(["--dialect", dialect] if dialect else [])]
    return run_in_lab(argv, memory_mib=max(MIN_MEMORY_MIB, script.ram_mib + LAB_OVERHEAD_MIB))


def _say(text: str) -> None:
    print(f"  {text} ...", flush=True)
