# SPDX-License-Identifier: Apache-2.0
"""Events of the machine: the tracers, for people and recordings, that devices report to."""
