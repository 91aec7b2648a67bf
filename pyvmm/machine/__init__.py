# SPDX-License-Identifier: Apache-2.0
"""The machine: KVM VM, vCPU threads, buses, interrupts, notifiers and the list of devices.

It needs no event loop. The packages that need one (guest requests, snapshots, migrations) are
above it.
"""
