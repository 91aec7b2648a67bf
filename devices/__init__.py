# SPDX-License-Identifier: Apache-2.0
"""Device models: guest accesses in, guest memory and interrupts out; no KVM, threads or sockets.

A model talks to its machine through the ports in `devices.ports`, raises `devices.errors`, decodes
registers with `devices.registers` and saves itself through `devices.state`. Platform devices are
in `legacy`; `pci` and `virtio` are frameworks; each virtio device has a folder of its own;
`testing` is the public test kit.
"""
