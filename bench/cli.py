# SPDX-License-Identifier: Apache-2.0
"""`pyvmm bench`: run benchmarks, in the lab what needs a KVM that this machine has not.

A benchmark runs in a process of its own (this program again, with `--measure-into`), here or in the
lab, and leaves a file; tables and plots are made here from the files.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import click

from bench.catalogue import CATALOGUE, SMALL_LAB_MIB, Benchmark, Kvm, Unnamed
from bench.measure import Kept, Plan
from bench.results import load, new_result
from pyvmm.errors import UserError
from pyvmm.lab.choose import KvmProvider, choose_kvm
from pyvmm.machine.kvm_probe import probe_host_kvm
from pyvmm.progress.reporter import show_progress

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("build/bench")
LAB_TRIES = 3
LAB_TIMEOUT_S = 1800.0
"""A process that the emulator never lets end must not hold up the rest for ever."""


def _known(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> list[str]:
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(CATALOGUE)}")
    return list(names)


def _unnamed(quick: bool) -> list[str]:
    run = (Unnamed.ALWAYS, Unnamed.QUICKLY) if quick else (Unnamed.ALWAYS,)
    return [name for name, benchmark in CATALOGUE.items() if benchmark.unnamed in run]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", callback=_known)
@click.option("--quick", is_flag=True, help="One small round of each, to see that they work.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for figures and plots [default: bench/results, or build/bench if --quick].",
)
@click.option("--measure-into", type=click.Path(path_type=Path), hidden=True)
def bench(names: list[str], quick: bool, output: Path | None, measure_into: Path | None) -> int:
    """Measure pyvmm beside what you would use instead, and beside what the machine can do.

    \b
    NAME is any of
      device       7 of 8 GiB given back by the device model alone, no guest
      scaling      one inflate against its size and its fragmentation
      exits        what a register access costs
      balloon      a real guest's balloon, beside QEMU's
      boot         to the first line of user space, beside QEMU
      footprint    memory beside guest RAM, beside QEMU
    which are run if none is named, or of
      balloon-smp  a real guest's balloon, 4 vCPUs
      migration    to another process, with and without unused pages, beside QEMU
      migration-writing  the same of a guest that writes all the time
      snapshot     into a file, with and without unused pages, beside QEMU
    which take long, the last three also 20 GiB of memory.
    Contenders take turns in every round; compare ratios, not seconds. Leave the machine alone
    meanwhile.
    """
    if measure_into is not None:
        _measure(names[0], quick, measure_into)
        return 0
    output = output or (QUICK_RESULTS if quick else RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    for name in names or _unnamed(quick):
        _run(name, CATALOGUE[name], quick, output / f"{name}.json")
    from bench.report import update_readme, write_report

    results = [load(path) for path in _measured(output)]
    write_report(output, results)
    if output == RESULTS:
        update_readme(RESULTS.parents[1] / "README.md", output, results)
    return 0


def _measured(output: Path) -> list[Path]:
    """Files of the benchmarks measured so far, in the catalogue's order."""
    paths = (output / f"{name}.json" for name in CATALOGUE)
    return [path for path in paths if path.exists()]


def _run(name: str, benchmark: Benchmark, quick: bool, file: Path) -> None:
    """Have a process of its own measure one benchmark, where it can."""
    new = file.with_suffix(".new")
    kept = file.with_suffix(".kept")
    for path in (new, kept):
        path.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "pyvmm", "bench", name, "--measure-into", str(new)]
    argv += ["--quick"] if quick else []
    if benchmark.kvm is Kvm.FIT:
        from guest_images.build import build_image

        with show_progress() as progress:
            build_image(progress=progress)
    if _needs_lab(benchmark.kvm):
        status = _run_in_lab(argv, SMALL_LAB_MIB if quick else benchmark.lab_mib)
    else:
        status = subprocess.run(argv, check=False).returncode
    if status or not new.exists():
        raise UserError(f"the benchmark {name} ended with status {status}; its output says why")
    new.replace(file)
    kept.unlink(missing_ok=True)


def _run_in_lab(argv: list[str], memory_mib: int) -> int:
    """Where the emulator or a guest stops (DECISIONS.md, "A hanging emulator"), try another lab."""
    from pyvmm.lab.errors import LabError
    from pyvmm.lab.run import run_in_lab

    for _ in range(LAB_TRIES - 1):
        try:
            status = run_in_lab(argv, memory_mib=memory_mib, timeout_s=LAB_TIMEOUT_S)
            if status == 0:
                return 0
            print(f"going on in another lab after status {status}", file=sys.stderr, flush=True)
        except LabError as error:
            print(f"going on in another lab: {error}", file=sys.stderr, flush=True)
    return run_in_lab(argv, memory_mib=memory_mib, timeout_s=LAB_TIMEOUT_S)


def _needs_lab(kvm: Kvm) -> bool:
    if kvm is Kvm.RUNS and probe_host_kvm().ring0_instructions_per_second is not None:
        return False
    return kvm is not Kvm.NONE and choose_kvm("auto") is KvmProvider.LAB


def _measure(name: str, quick: bool, file: Path) -> None:
    benchmark = CATALOGUE[name]
    module = importlib.import_module(f"bench.{benchmark.module}")
    with show_progress() as progress:
        plan = Plan(quick, progress, Kept(file.with_suffix(".kept")))
        cases = getattr(module, benchmark.function)(plan)
    new_result(name, benchmark.title, quick, cases).save(file)
