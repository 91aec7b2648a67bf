# SPDX-License-Identifier: Apache-2.0
"""CPUID: `policy` for new guests, and `compatibility` of a saved guest's CPUID with this host."""
