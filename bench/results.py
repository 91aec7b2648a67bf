# SPDX-License-Identifier: Apache-2.0
"""Results as JSON: the cases of one benchmark and the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bench.measure import Case
from bench.peers import BASELINE, baseline, is_pinned
from pyvmm.errors import NotInstalled
from pyvmm.files.output import JSON_START, write_output
from pyvmm.sockets.lab_paths import in_lab

FORMAT = 1
NO_QEMU = "none"
_BASELINE = re.compile(rf"\b{BASELINE}\b(?! \d)")


@dataclass
class Result:
    """One benchmark's run."""

    bench: str
    title: str
    quick: bool
    taken: str
    """Time of the run, ISO 8601 in UTC."""
    machine: dict[str, str]
    cases: list[Case]

    @property
    def emulated(self) -> bool:
        """True if it was taken in the lab, on an emulated KVM."""
        return "emulated" in self.machine["kvm"]

    @property
    def qemu_version(self) -> str:
        """The number of the version of QEMU; "" if there was none."""
        described = self.machine["qemu"]
        return "" if described == NO_QEMU else described.split()[0]

    @property
    def has_pinned_qemu(self) -> bool:
        """QEMU was of the version that ratios and limits refer to, or there was none."""
        return not self.qemu_version or is_pinned(self.qemu_version)

    def named(self, text: str) -> str:
        """Return `text` with the version of QEMU where it names the baseline only."""
        return _BASELINE.sub(f"{BASELINE} {self.qemu_version}".strip(), text)

    def with_versions(self) -> Result:
        """Return a copy for readers, whose contenders have the version of QEMU in their names."""
        return replace(self, cases=[self._with_versions(case) for case in self.cases])

    def _with_versions(self, case: Case) -> Case:
        return replace(
            case,
            against=self.named(case.against),
            rounds={self.named(name): values for name, values in case.rounds.items()},
            stages={self.named(name): values for name, values in case.stages.items()},
        )

    def case(self, name: str) -> Case:
        """Return the case called `name`; KeyError if it was not measured."""
        for case in self.cases:
            if case.name == name:
                return case
        raise KeyError(name)

    def save(self, path: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"
        write_output(path, text.encode(), JSON_START)


def new_result(bench: str, title: str, quick: bool, cases: list[Case]) -> Result:
    """Return a result of cases measured just now, on this machine."""
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    return Result(bench, title, quick, taken, describe_machine(), cases)


def load(path: Path) -> Result:
    """Read a file written by `save`."""
    values = json.loads(path.read_text())
    if values.pop("format") != FORMAT:
        raise ValueError(f"{path} was written by another version of the benchmarks")
    return Result(**{**values, "cases": [Case(**case) for case in values["cases"]]})


def describe_machine() -> dict[str, str]:
    """Return the properties of the machine that matter for its figures."""
    return {
        "processor": _cpu_model(),
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB",
        "kernel": platform.release(),
        "huge pages": _selected(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "python": platform.python_version(),
        "qemu": _qemu_version(),
        "kvm": "emulated, in the lab" if in_lab() else "this machine's",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _selected(path: Path) -> str:
    """Return the word in brackets, by which sysfs marks the selected value."""
    if not path.exists():
        return "not in this kernel"
    return path.read_text().partition("[")[2].partition("]")[0]


def _qemu_version() -> str:
    try:
        qemu = baseline()
    except NotInstalled:
        return NO_QEMU
    return f"{qemu.version} {qemu.package}".strip()
