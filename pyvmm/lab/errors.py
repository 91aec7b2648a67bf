# SPDX-License-Identifier: Apache-2.0
"""Reasons why the host's KVM or the lab cannot be used."""

from __future__ import annotations

from pathlib import Path

from pyvmm.errors import UserError


class LabError(UserError):
    """The lab did not start, or ended or broke while a command was running in it."""

    exit_status = 125


class LabKernelUnreadable(UserError):
    """The kernel `image` suits the lab, but this user has no permission to read it."""

    def __init__(self, image: Path) -> None:
        super().__init__(f"this user has no permission to read the lab's kernel, {image}")
        self.image = image


class NotSharedWithLab(UserError):
    """A file or directory of the host that the lab cannot reach, having its own at that path."""


class HostKvmUnusable(UserError):
    """This machine's KVM was requested; `verdict` is the probe's (`kvm_probe.Verdict.value`)."""

    def __init__(self, message: str, verdict: str) -> None:
        super().__init__(message)
        self.verdict = verdict
