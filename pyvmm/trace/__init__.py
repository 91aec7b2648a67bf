# SPDX-License-Identifier: Apache-2.0
"""Events of the machine, for people and recordings: the tracers that devices and machine report to."""
