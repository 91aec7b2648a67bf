# SPDX-License-Identifier: Apache-2.0
"""CPUID: `policy` makes that of a new guest, `compatibility` compares a saved guest's with it."""
