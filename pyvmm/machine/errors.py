# SPDX-License-Identifier: Apache-2.0
"""Reasons why a machine cannot be created, paused or continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pykvm import KvmError
from pyvmm.errors import UserError


class KvmUnusable(UserError):
    """This process cannot run a guest."""


class MachineNotCreated(UserError):
    """KVM or the host refused a request that the machine needs; the message names the request."""


class VcpuNotStopped(UserError):
    """A vCPU has not left the guest in time, so the guest was not paused."""


@contextmanager
def host_errors_reported() -> Iterator[None]:
    """Raise `MachineNotCreated` for a request that KVM or the host refuses in the block."""
    try:
        yield
    except OSError as error:
        reason = error if isinstance(error, KvmError) else error.strerror
        raise MachineNotCreated(f"the machine cannot be created: {reason}") from error


def kvm_refusal(error: BaseException) -> str:
    """Return the request that KVM has refused and the reason; "" for any other error."""
    if isinstance(error, KvmError):
        return str(error)
    # The native loop, which knows no KvmError, raises an OSError that begins with the request.
    reason = error.strerror if isinstance(error, OSError) else None
    return reason if reason is not None and reason.startswith("KVM_RUN: ") else ""
