# SPDX-License-Identifier: Apache-2.0
"""Lessons: the runnable parts, exercises and checks of the chapters in `docs/learn`."""
