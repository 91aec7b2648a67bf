# SPDX-License-Identifier: Apache-2.0
"""Run tests and fuzzers with sanitizers: `python -m tests.sanitizers.run [SECONDS]`.

In this order, each with builds of its own (`tests.sanitizers.build`):

1. ThreadSanitizer watches pairs of threads that share native objects (`tests.sanitizers.races`).
2. Every defect of `tests.sanitizers.defects` must be noticed.
3. The tests that reach native code run with AddressSanitizer and UndefinedBehaviorSanitizer.
4. So does each fuzzer, for SECONDS (60).

A finding ends the run with status 1, and its report is the last output.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.run import DIRECTORY, FUZZERS, Fuzzer, prepare
from tests.sanitizers.build import ADDRESS, ROOT, THREAD, Sanitizer, environment, package, python
from tests.sanitizers.defects import DEFECTS, SeededDefect

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
RACE_TESTS = "tests/native/test_native_serial.py"
ADDRESS_TESTS = (
    "tests/native",
    *(f"tests/devices/{room}" for room in ("balloon", "console", "rng", "virtio")),
    "tests/conformance",
    "tests/fuzz",
    "tests/pyvmm/memory",
    "tests/pyvmm/snapshot",
    *(f"tests/pyvmm/migration/test_migration_{name}.py" for name in ("properties", "stream")),
)
"""Those that reach native code; not those of time limits, for they run at half the speed."""
IGNORED_TESTS = (
    "tests/conformance/test_conformance_document.py",
    "tests/native/test_native_docs.py",
)
"""They read documents."""
FUZZER_OPTIONS = ["-rss_limit_mb=4096", "-print_final_stats=1"]
FUZZER_RUNTIME = Path(sysconfig.get_path("purelib"), "asan_with_fuzzer.so")
"""Atheris' build of the runtime: that of gcc would hide libFuzzer's counters."""
FUZZ_DIRECTORY = DIRECTORY / "sanitizers"
SEEDS_EVERY = 10
"""The tests run the whole corpus; a fuzzer would spend half a minute on it before it begins."""
PROCESSORS = os.cpu_count() or 1
DEFECT_TRIES = 10


@contextmanager
def step(title: str) -> Iterator[None]:
    print(f"sanitizers: {title}", flush=True)
    begin = time.monotonic()
    yield
    print(f"sanitizers: {time.monotonic() - begin:.0f} s", flush=True)


def run(sanitizer: Sanitizer, directory: Path, *arguments: str) -> None:
    """Run Python with these arguments and a sanitizer, and exit if it fails."""
    command = python(sanitizer, *arguments)
    where = environment(sanitizer, directory)
    if subprocess.run(command, cwd=ROOT, env=where, check=False).returncode:
        sys.exit(f"sanitizers: failed: {' '.join(arguments)}")


def watch_threads() -> None:
    with package(THREAD) as directory:
        run(THREAD, directory, "-m", "tests.sanitizers.races")
        run(THREAD, directory, *PYTEST, "-s", RACE_TESTS)


def missed(seeded: SeededDefect) -> str | None:
    """Return the title of a defect unless it is reported as expected.

    A race is reported when both threads are in it at once, which on a busy machine may take several
    tries.
    """
    with package(seeded.sanitizer, seeded.defect) as directory:
        for _ in range(DEFECT_TRIES):
            done = subprocess.run(
                python(seeded.sanitizer, *seeded.arguments),
                cwd=ROOT,
                env=environment(seeded.sanitizer, directory),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode != 0 and seeded.report in done.stdout:
                print(f"noticed: {seeded.title}", flush=True)
                return None
    print(f"MISSED: {seeded.title}", flush=True)
    return f"{seeded.title}\n{done.stdout}"


def check_defects() -> None:
    with ThreadPoolExecutor(PROCESSORS) as pool:
        all_missed = [each for each in pool.map(missed, DEFECTS) if each]
    if all_missed:
        sys.exit("sanitizers: defects are not noticed: " + "\n".join(all_missed))


def fuzz(fuzzer: Fuzzer, seconds: int, directory: Path) -> tuple[str, bool]:
    """Run a fuzzer; return a line about it, or its output if it failed, and whether it did."""
    done = subprocess.run(
        python(ADDRESS, *fuzzer.arguments(seconds, FUZZER_OPTIONS)),
        cwd=FUZZ_DIRECTORY,
        env=environment(ADDRESS, directory) | {"LD_PRELOAD": str(FUZZER_RUNTIME)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    executions = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    if done.returncode or not executions or "no interesting inputs" in done.stdout:
        return done.stdout, True
    return f"{fuzzer.name}: {executions[1]} executions, no finding", False


def run_fuzzers(seconds: int) -> None:
    prepare(FUZZ_DIRECTORY, SEEDS_EVERY)
    with package(ADDRESS) as directory, ThreadPoolExecutor(PROCESSORS) as pool:
        results = list(pool.map(lambda fuzzer: fuzz(fuzzer, seconds, directory), FUZZERS))
    print("\n".join(text for text, _ in results), flush=True)
    if any(failed for _, failed in results):
        sys.exit("sanitizers: a fuzzer failed")


def main(seconds: int = 60) -> None:
    with step("threads that share native objects"):
        watch_threads()
    with step("defects that must be noticed"):
        check_defects()
    with step("tests"), package(ADDRESS) as directory:
        workers = ("-n", str(PROCESSORS), "--dist", "worksteal")
        chosen = ("-m", "not kvm and not resident_memory", *ADDRESS_TESTS)
        ignored = (f"--ignore={path}" for path in IGNORED_TESTS)
        run(ADDRESS, directory, *PYTEST, *workers, *ignored, *chosen)
    with step(f"fuzzers, {seconds} s each"):
        run_fuzzers(seconds)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
