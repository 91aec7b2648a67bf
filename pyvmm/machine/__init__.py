# SPDX-License-Identifier: Apache-2.0
"""The machine: KVM VM, vCPU threads, buses, interrupts, notifiers and the list of devices.

Needs no event loop; what needs one (requests to the guest, snapshots, migrations) is above it.
"""
