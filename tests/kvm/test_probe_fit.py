# SPDX-License-Identifier: Apache-2.0
"""The probe accepts a KVM that runs Linux."""

import pytest

from pyvmm.machine import kvm_probe
from pyvmm.machine.kvm_verdict import KVM_DEVICE

pytestmark = pytest.mark.kvm


def test_the_probe_accepts_a_working_kvm() -> None:
    fitness = kvm_probe.probe(KVM_DEVICE)
    assert fitness.fit, fitness
    assert fitness.syscall_arrives
