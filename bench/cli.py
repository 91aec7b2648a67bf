# SPDX-License-Identifier: Apache-2.0
"""`pyvmm bench`: run benchmarks, in the lab where they need a KVM that this machine lacks.

A benchmark runs in a process of its own (this program again, with `--measure-into`), here or in the
lab, and writes a file; tables and plots are made here from the files.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import click

from bench.catalogue import CATALOGUE, SMALL_LAB_MIB, DefaultRun, Kvm
from bench.measure import Checkpoint, Plan
from bench.peers import further
from bench.results import load, new_result
from pyvmm.errors import UserError
from pyvmm.files.errors import OutputNotWritten
from pyvmm.files.output import JSON_START, check_output
from pyvmm.lab.choose import KvmProvider, choose_kvm
from pyvmm.machine.kvm_probe import probe_host_kvm
from pyvmm.progress.reporter import show_progress

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("build/bench")
LAB_ATTEMPTS = 3
LAB_TIMEOUT_S = 1800.0
"""The time limit of a process that hangs in the emulator."""


def _known(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> list[str]:
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(CATALOGUE)}")
    return list(names)


def _default_names(quick: bool) -> list[str]:
    run = (DefaultRun.ALWAYS, DefaultRun.QUICK_ONLY) if quick else (DefaultRun.ALWAYS,)
    return [name for name, benchmark in CATALOGUE.items() if benchmark.default_run in run]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", callback=_known)
@click.option("--quick", is_flag=True, help="One small round of each, to check that they work.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="bench/results, or build/bench with --quick",
    help="Directory for results and plots.",
)
@click.option(
    "--qemu",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="PROGRAM",
    help="Another QEMU to measure as well, as any of another version on PATH is.",
)
@click.option("--measure-into", type=click.Path(path_type=Path), hidden=True)
def bench(
    names: list[str],
    quick: bool,
    output: Path | None,
    qemu: Path | None,
    measure_into: Path | None,
) -> int:
    """Compare pyvmm with QEMU and with the limits of the machine.

    \b
    Each NAME is a benchmark. Run by default:
      device       the device model alone, without a guest: discarding 7 of 8 GiB
      scaling      inflate time by size and by fragmentation
      encodings-device  all dialects in the device alone, without a guest
      requests     latency of one request and of many at once, without a guest
      migration-path  memory from process to process, and plain sockets
      snapshot-path  memory to a file and back, and plain files
      exits        cost of a register access
      exit-delay   a register access while the event loop is busy
      balloon      balloon of a Linux guest, and QEMU's
      watching     one exit and one inflate, unwatched, recorded and watched
      watching-guest  the same for a boot and an inflate of a Linux guest
      scope        the scope's page with a million events, in Chromium
      start        start to the first KVM_RUN of the guest, and QEMU's
      boot         boot to the first line of user space, and QEMU's
      command      a command in a guest of its own, and the boot alone
      console      streams through a port, and QEMU's virtio-serial
      footprint    memory of the VMM without guest RAM, and QEMU's
    Run only by name, because they take long (those of 8 GiB also need 20 GiB of memory):
      balloon-smp  balloon of a Linux guest with 4 vCPUs
      encodings    balloon in every dialect, by how fragmented free memory is, and QEMU's
      migration    live migration, with and without unused pages, and QEMU's
      migration-writing  the same, of a guest that writes continuously
      snapshot     snapshots, with and without unused pages, and QEMU's
      migration-8gib, migration-writing-8gib, snapshot-8gib  one round of larger guests

    Contenders take turns in every round; compare ratios, not seconds. Leave the machine idle
    while they run. Ratios to QEMU are to version 7.2, or else the first one on PATH.

    The exit status is 0 when all benchmarks have run, even if a target is missed, and 2 when one
    has failed.
    """
    if measure_into is not None:
        _measure(names[0], quick, qemu, measure_into)
        return 0
    output = output or (QUICK_RESULTS if quick else RESULTS)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritten(f"cannot create {output}: {error.strerror}") from error
    names = names or _default_names(quick)
    for name in names:  # before minutes of measuring
        check_output(output / f"{name}.json", JSON_START)
    for name in names:
        _run(name, quick, qemu, output / f"{name}.json")
    from bench.report import update_readme, write_report

    results = [load(path) for path in _measured(output)]
    write_report(output, results)
    if output == RESULTS:
        update_readme(RESULTS.parents[1] / "README.md", output, results)
    return 0


def _measured(output: Path) -> list[Path]:
    """Return the files of the benchmarks measured so far, in the catalogue's order."""
    paths = (output / f"{name}.json" for name in CATALOGUE)
    return [path for path in paths if path.exists()]


def _run(name: str, quick: bool, qemu: Path | None, file: Path) -> None:
    """Measure one benchmark in a process of its own, here or in the lab."""
    benchmark = CATALOGUE[name]
    new = file.with_suffix(".new")
    checkpoint = file.with_suffix(".checkpoint")
    for path in (new, checkpoint):
        path.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "pyvmm", "bench", name, "--measure-into", str(new)]
    argv += ["--quick"] if quick else []
    argv += ["--qemu", str(qemu)] if qemu is not None else []
    if benchmark.kvm is Kvm.LINUX:
        from guest_images.build import build_image

        with show_progress() as progress:
            build_image(progress=progress)
    if _needs_lab(benchmark.kvm):
        status = _run_in_lab(argv, SMALL_LAB_MIB if quick else benchmark.lab_mib)
    else:
        status = subprocess.run(argv, check=False).returncode
    if status or not new.exists():
        raise UserError(
            f"the benchmark {name} ended with status {status}; see its output for the reason"
        )
    new.replace(check_output(file, JSON_START))
    checkpoint.unlink(missing_ok=True)


def _run_in_lab(argv: list[str], memory_mib: int) -> int:
    """Run in the lab; retry if something hangs (docs/adr/0011)."""
    from pyvmm.lab.errors import LabError
    from pyvmm.lab.run import run_in_lab

    for _ in range(LAB_ATTEMPTS - 1):
        try:
            status = run_in_lab(argv, memory_mib=memory_mib, timeout_s=LAB_TIMEOUT_S)
            if status == 0:
                return 0
            print(f"retrying in another lab after status {status}", file=sys.stderr, flush=True)
        except LabError as error:
            print(f"retrying in another lab: {error}", file=sys.stderr, flush=True)
    return run_in_lab(argv, memory_mib=memory_mib, timeout_s=LAB_TIMEOUT_S)


def _needs_lab(kvm: Kvm) -> bool:
    if kvm is Kvm.MINIMAL and probe_host_kvm().ring0_instructions_per_second is not None:
        return False
    return kvm is not Kvm.NONE and choose_kvm("auto") is KvmProvider.LAB


def _measure(name: str, quick: bool, qemu: Path | None, file: Path) -> None:
    benchmark = CATALOGUE[name]
    module = importlib.import_module(f"bench.{benchmark.module}")
    with show_progress() as progress:
        checkpoint = Checkpoint(file.with_suffix(".checkpoint"))
        plan = Plan(quick, progress, checkpoint, further(None if qemu is None else str(qemu)))
        cases = getattr(module, benchmark.function)(plan)
    new_result(name, benchmark.title, quick, cases).save(file)
