# SPDX-License-Identifier: Apache-2.0
"""Reasons why a machine cannot be created, paused or continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pykvm import KvmError
from pyvmm.errors import TOO_MANY_FILES, UserError


class KvmUnusable(UserError):
    """This process cannot run a guest."""


class MachineNotCreated(UserError):
    """KVM or the host refused a request that the machine needs; the message names the request."""


class PlatformNotCreated(MachineNotCreated):
    """KVM refused a request before any vCPU has run; another KVM may run the guest."""


class TooManyOpenFiles(MachineNotCreated):
    """The process, or the host, has as many open files as it may have."""


class VcpuNotStopped(UserError):
    """A vCPU has not left the guest in time, so the guest was not paused."""


@contextmanager
def host_errors_reported(
    refused: type[MachineNotCreated] = MachineNotCreated,
) -> Iterator[None]:
    """Raise `MachineNotCreated` for a request that the host refuses in the block.

    If KVM refuses it, raise `refused`, but `TooManyOpenFiles` if that is why.
    """
    try:
        yield
    except OSError as error:
        raise_if_too_many_files(error)
        if isinstance(error, KvmError):
            raise refused(f"the machine cannot be created: {error}") from error
        raise MachineNotCreated(f"the machine cannot be created: {error.strerror}") from error


def raise_if_too_many_files(error: OSError) -> None:
    """Raise `TooManyOpenFiles` if that is the reason of `error`, and not KVM."""
    if error.errno in TOO_MANY_FILES:
        raise TooManyOpenFiles("the machine cannot be created: too many open files") from error


def kvm_refusal(error: BaseException) -> str:
    """Return the request that KVM has refused and the reason; "" for any other error."""
    if isinstance(error, KvmError):
        return str(error)
    # The native loop, which knows no KvmError, raises an OSError that begins with the request.
    reason = error.strerror if isinstance(error, OSError) else None
    return reason if reason is not None and reason.startswith("KVM_RUN: ") else ""
