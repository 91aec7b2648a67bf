# SPDX-License-Identifier: Apache-2.0
"""The list of benchmarks, with the KVM that each needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Kvm(Enum):
    """The KVM that a benchmark needs; the lab provides it where this machine does not."""

    NONE = auto()
    MINIMAL = auto()  # runs a guest of a few instructions
    LINUX = auto()  # runs Linux: see pyvmm.machine.kvm_probe


SMALL_LAB_MIB = 4096
"""Enough for any quick run; a single size, because the first lab of each size has to be booted."""

MOVE_LAB_MIB, LARGE_MOVE_LAB_MIB = 6144, 18432
"""For two guests of 1 GiB or 8 GiB, or for one and its file."""


class DefaultRun(Enum):
    """Runs without names that include a benchmark."""

    ALWAYS = auto()
    QUICK_ONLY = auto()  # only with --quick: its full run takes long
    NEVER = auto()


@dataclass(frozen=True)
class Benchmark:
    """A row of the catalogue; its code is `function` in `bench.<module>`."""

    module: str
    title: str
    kvm: Kvm
    lab_mib: int = SMALL_LAB_MIB
    """RAM of that lab."""
    default_run: DefaultRun = DefaultRun.ALWAYS
    function: str = "measure"
    is_appendix: bool = False
    """Its results are at the end of the report: few rounds, because each takes minutes."""


CATALOGUE = {
    "device": Benchmark(
        "device_path", "Device path without a guest: discarding 7 of 8 GiB", Kvm.NONE
    ),
    "scaling": Benchmark("scaling", "Inflate time by size and by fragmentation", Kvm.NONE),
    "encodings-device": Benchmark(
        "encodings_device", "Encodings of pages: the device without a guest", Kvm.NONE
    ),
    "requests": Benchmark(
        "requests", "Requests without a guest: from notification to used element", Kvm.NONE
    ),
    "migration-path": Benchmark(
        "migration_path", "Migration without a guest: 2 GiB from RAM to RAM", Kvm.NONE
    ),
    "snapshot-path": Benchmark(
        "snapshot_path", "Snapshots without a guest: 1 GiB between RAM and a file", Kvm.NONE
    ),
    "exits": Benchmark("exits", "VM exits: cost of a register access", Kvm.MINIMAL, 2048),
    "exit-delay": Benchmark(
        "exit_delay", "VM exits: a register access while the event loop is busy", Kvm.MINIMAL, 2048
    ),
    "balloon": Benchmark("balloon", "Balloon of a Linux guest: 7 of 8 GiB", Kvm.LINUX, 12288),
    "balloon-smp": Benchmark(
        "balloon",
        "Balloon of a Linux guest: 7 of 8 GiB, 4 vCPUs",
        Kvm.LINUX,
        12288,
        DefaultRun.NEVER,
        "measure_smp",
    ),
    "encodings": Benchmark(
        "encodings",
        "Encodings of pages: guests of 1 GiB, and rates of guests of 8 GiB",
        Kvm.LINUX,
        12288,
        DefaultRun.QUICK_ONLY,
    ),
    "watching": Benchmark("watching", "Events: one exit and one inflate, by who watches", Kvm.NONE),
    "watching-guest": Benchmark(
        "watching_guest", "Events of a Linux guest: boot and inflate, by who watches", Kvm.LINUX
    ),
    "scope": Benchmark("scope", "The scope's page with a million events", Kvm.NONE),
    "start": Benchmark("start", "Start of the VMM to the first KVM_RUN of its guest", Kvm.MINIMAL),
    "boot": Benchmark("boot", "Boot to the first line of user space", Kvm.LINUX),
    "command": Benchmark("command", "A command in a guest of its own", Kvm.LINUX),
    "console": Benchmark("console", "Streams out of a Linux guest and into it", Kvm.LINUX),
    "footprint": Benchmark("footprint", "Memory of the VMM, without guest RAM", Kvm.LINUX),
    "migration": Benchmark(
        "migration",
        "Live migration of an idle 1 GiB guest",
        Kvm.LINUX,
        MOVE_LAB_MIB,
        DefaultRun.QUICK_ONLY,
    ),
    "migration-writing": Benchmark(
        "migration",
        "Live migration of a 1 GiB guest that writes 50 MB/s",
        Kvm.LINUX,
        MOVE_LAB_MIB,
        DefaultRun.QUICK_ONLY,
        "measure_writing",
    ),
    "snapshot": Benchmark(
        "snapshot",
        "Snapshots of an idle 1 GiB guest",
        Kvm.LINUX,
        MOVE_LAB_MIB,
        DefaultRun.QUICK_ONLY,
    ),
    "migration-8gib": Benchmark(
        "migration",
        "Live migration of an idle 8 GiB guest",
        Kvm.LINUX,
        LARGE_MOVE_LAB_MIB,
        DefaultRun.NEVER,
        "measure_large",
        is_appendix=True,
    ),
    "migration-writing-8gib": Benchmark(
        "migration",
        "Live migration of an 8 GiB guest that writes 50 MB/s",
        Kvm.LINUX,
        LARGE_MOVE_LAB_MIB,
        DefaultRun.NEVER,
        "measure_writing_large",
        is_appendix=True,
    ),
    "snapshot-8gib": Benchmark(
        "snapshot",
        "Snapshots of an idle 8 GiB guest",
        Kvm.LINUX,
        LARGE_MOVE_LAB_MIB,
        DefaultRun.NEVER,
        "measure_large",
        is_appendix=True,
    ),
}
