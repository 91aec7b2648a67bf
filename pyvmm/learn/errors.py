# SPDX-License-Identifier: Apache-2.0
"""Errors of the lessons that the user can correct."""

from __future__ import annotations

from pyvmm.errors import UserError


class ExerciseUnusable(UserError):
    """The file to check cannot be read."""
