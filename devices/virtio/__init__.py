# SPDX-License-Identifier: Apache-2.0
"""The virtio framework: the core of all virtio devices and their PCI transport (VIRTIO 1.2, 2-4.1).

A device subclasses `device.VirtioDevice`. `queue` serves split virtqueues, `status` is the device
status state machine, and `pci_transport` is the modern PCI transport.
"""
