# SPDX-License-Identifier: Apache-2.0
"""CPUID: `policy` for guests here, and `compatibility` of a saved guest's CPUID with this host.

`features` names the bits, `dependencies` says which of them need others.
"""
