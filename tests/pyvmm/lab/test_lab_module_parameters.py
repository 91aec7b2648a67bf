# SPDX-License-Identifier: Apache-2.0
"""Module parameters are passed to the modules that the lab loads, as modprobe does."""

from __future__ import annotations

import pytest

from pyvmm.lab.module_parameters import module_parameters


@pytest.mark.parametrize(
    ("command_line", "module", "parameters"),
    [
        ("quiet kvm_amd.nested=0 kvm_amd.npt=1", "kvm-amd", "nested=0 npt=1"),
        ("kvm-amd.nested=0", "kvm_amd", "nested=0"),
        ("kvm_amd.nested=0", "kvm", ""),
        ("kvm.enable_vmware_backdoor kvm_amd.nested=0", "kvm", "enable_vmware_backdoor"),
        ("9pnet.debug=1 9p.x=2", "9p", "x=2"),
        ("root=kvm_amd.nested=0", "kvm_amd", ""),
        ("root=kvm_amd.nested=0", "root=kvm_amd", ""),
        ("a.b=1.5 a.c=x.y", "a", "b=1.5 c=x.y"),
        ('a.b="two words" a.c=1', "a", 'b="two words" c=1'),
        ('"a.b=two words" "a.flag"', "a", 'b="two words" flag'),
        ("a.b=1 -- a.c=2", "a", "b=1"),
        ("a.b=1\n", "a", "b=1"),
        ("", "a", ""),
    ],
)
def test_parameters_of_a_module(command_line: str, module: str, parameters: str) -> None:
    assert module_parameters(command_line, module) == parameters
