# SPDX-License-Identifier: Apache-2.0
"""Reasons why a file cannot be written."""

from __future__ import annotations

from pyvmm.errors import UserError


class OutputNotWritten(UserError):
    """A result cannot be written to the path that a person has named."""
