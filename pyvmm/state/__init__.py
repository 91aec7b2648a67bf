# SPDX-License-Identifier: Apache-2.0
"""Saved state of a machine: everything but memory, as records of a snapshot or a migration.

`records` is the format of a record and its versions. `parts` saves and restores a whole machine:
`kvm_vcpu` and `kvm_vm` what KVM holds, the device models (`devices.state`) the rest.
`capabilities`, `msrs` and `clock` tell whether this host can run the guest, and how.
`config_record` is the configuration that the machine is made from.
"""
