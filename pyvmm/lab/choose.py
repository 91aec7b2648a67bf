# SPDX-License-Identifier: Apache-2.0
"""Choose where to run a command that needs KVM: on this host or in the lab.

`auto` probes this host, unless its KVM is known to be fit, and uses the lab only if its KVM is
missing or unfit. In the lab the choice is always the host, so labs do not nest.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pyvmm.lab.errors import HostKvmUnusable
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.standard_streams.text import print_message

KvmMode = Literal["auto", "host", "lab"]


class KvmProvider(Enum):
    """The machine whose KVM runs the guest."""

    HOST = "host"
    LAB = "lab"


def choose_kvm(mode: KvmMode, *, quiet: bool = False) -> KvmProvider:
    """Return the choice for `mode`.

    Unless `quiet`, the reason is printed on standard error if `auto` chooses the lab.

    Raises HostKvmUnusable if `mode` is `host` and this machine's KVM cannot be used.
    """
    if in_lab():
        return KvmProvider.HOST
    if mode == "lab":
        return KvmProvider.LAB
    # Late: saves 0.5 ms (the cache) in the lab.
    from pyvmm.machine.kvm_verdict import known_fit

    return KvmProvider.HOST if known_fit() else _probe(mode, quiet)


def _probe(mode: KvmMode, quiet: bool) -> KvmProvider:
    # Late: saves 10 ms where KVM is known to be fit.
    from pyvmm.machine.kvm_probe import Verdict, probe_host_kvm
    from pyvmm.machine.kvm_verdict import record_fit

    fitness = probe_host_kvm()
    if fitness.fit:
        record_fit()
        return KvmProvider.HOST
    if mode == "host":
        message = f"this machine's KVM cannot be used: {fitness.reason}"
        raise HostKvmUnusable(message, fitness.verdict.value)
    if not quiet:
        unfit = fitness.verdict is Verdict.UNFIT
        reason = f"this machine's KVM is unfit: {fitness.reason}" if unfit else fitness.reason
        print_message(f"running in the lab: {reason}")
    return KvmProvider.LAB
