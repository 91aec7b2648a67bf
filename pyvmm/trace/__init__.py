# SPDX-License-Identifier: Apache-2.0
"""Events of the machine: the tracers to which devices report, for logs and recordings."""
