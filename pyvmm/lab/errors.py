# SPDX-License-Identifier: Apache-2.0
"""Reasons why the host's KVM or the lab cannot be used."""

from __future__ import annotations

from pyvmm.errors import UserError


class LabError(UserError):
    """The lab did not start, or ended or broke while a command was running in it."""

    exit_status = 125


class HostKvmUnusable(UserError):
    """This machine's KVM was requested; `verdict` is the probe's (`kvm_probe.Verdict.value`)."""

    def __init__(self, message: str, verdict: str) -> None:
        super().__init__(message)
        self.verdict = verdict
