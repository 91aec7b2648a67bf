# SPDX-License-Identifier: Apache-2.0
"""Choose where to run a command that needs KVM: on this host or in the lab.

`auto` probes this host, unless its KVM is known to be fit, and uses the lab only if its KVM is
missing or unfit. In the lab the choice is always the host, so labs do not nest.

What is known may be out of date. `run_where_kvm_works` finds out when KVM refuses the guest's
platform, of which nothing has run then: it probes, and chooses again. `choose_kvm`, for commands
that cannot be started twice, has KVM create a virtual machine first.
"""

from __future__ import annotations

from collections.abc import Callable
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
    known = _known_choice(mode)
    if known is KvmProvider.HOST and not in_lab() and not _creates_vm():
        known = None
    return known or _probe(mode, quiet)


def run_where_kvm_works(
    mode: KvmMode,
    on_host: Callable[[], int],
    in_the_lab: Callable[[], int],
    *,
    quiet: bool = False,
) -> int:
    """Call `on_host` or `in_the_lab`, as `choose_kvm` would choose, and return its result.

    If `on_host` raises `PlatformNotCreated`, this machine's KVM is probed again, and the choice is
    that of the probe. Raises as `choose_kvm`, and what the two raise.
    """
    if (_known_choice(mode) or _probe(mode, quiet)) is KvmProvider.HOST:
        # Late: saves 3 ms (pykvm) in front of the lab.
        from pyvmm.machine.errors import PlatformNotCreated

        try:
            return on_host()
        except PlatformNotCreated:
            if in_lab() or _probe(mode, quiet) is KvmProvider.HOST:
                raise
    return in_the_lab()


def known_host(mode: KvmMode) -> bool:
    """Return whether `run_where_kvm_works` tries this host without a probe."""
    return _known_choice(mode) is KvmProvider.HOST


def _known_choice(mode: KvmMode) -> KvmProvider | None:
    """Return the choice for `mode`, or None if it needs a probe."""
    if in_lab():
        return KvmProvider.HOST
    if mode == "lab":
        return KvmProvider.LAB
    # Late: saves 0.5 ms (the cache) in the lab.
    from pyvmm.machine.kvm_verdict import known_fit

    return KvmProvider.HOST if known_fit() else None


def _creates_vm() -> bool:
    """Return whether this machine's KVM creates a virtual machine."""
    # Late: saves 3 ms of `pyvmm run`.
    from pykvm import KvmError, System

    try:
        with System() as system, system.create_vm():
            return True
    except KvmError:
        return False


def _probe(mode: KvmMode, quiet: bool) -> KvmProvider:
    # Late: saves 10 ms where KVM is known to be fit.
    from pyvmm.machine.kvm_probe import Verdict, probe_host_kvm
    from pyvmm.machine.kvm_verdict import forget_fit, record_fit

    fitness = probe_host_kvm()
    if fitness.fit:
        record_fit()
        return KvmProvider.HOST
    forget_fit()
    if mode == "host":
        message = f"this machine's KVM cannot be used: {fitness.reason}"
        raise HostKvmUnusable(message, fitness.verdict.value)
    if not quiet:
        unfit = fitness.verdict is Verdict.UNFIT
        reason = f"this machine's KVM is unfit: {fitness.reason}" if unfit else fitness.reason
        print_message(f"running in the lab: {reason}")
    return KvmProvider.LAB
