# SPDX-License-Identifier: Apache-2.0
"""The emulated machine, seen from a command that runs in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm import System
from pyvmm.cpuid.dependencies import requirements
from pyvmm.cpuid.features import by_leaf, shown
from pyvmm.sockets.lab_paths import in_lab

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not in_lab(), reason="this is not the lab"),
]


def test_parameters_on_the_command_line_reach_the_modules() -> None:
    parameters = Path("/sys/module/kvm_amd/parameters")
    words = Path("/proc/cmdline").read_text().split()
    assert "kvm_amd.nested=0" in words
    assert (parameters / "nested").read_text().strip() in ("0", "N")
    with System() as system:
        assert "svm" not in shown(by_leaf(system.get_supported_cpuid().entries))


def test_the_processor_has_no_feature_without_those_that_it_requires() -> None:
    (flags,) = {
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line[:5] == "flags"
    }
    features = {*flags.partition(":")[2].split()}
    lacking = {
        feature: {each for each in requirements().get(feature, ()) if "." not in each} - features
        for feature in features
    }
    assert not {feature: lacks for feature, lacks in lacking.items() if lacks}
