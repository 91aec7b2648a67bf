# SPDX-License-Identifier: Apache-2.0
"""Where Linux runs, the probe says so."""

import pytest

from pyvmm.machine import kvm_probe as probe

pytestmark = pytest.mark.kvm


def test_a_working_kvm_is_found_fit() -> None:
    fitness = probe.probe(probe.KVM_DEVICE)
    assert fitness.fit, fitness
    assert fitness.syscall_arrives
