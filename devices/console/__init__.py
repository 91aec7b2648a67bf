# SPDX-License-Identifier: Apache-2.0
"""The console device: virtio-console (VIRTIO 1.2, section 5.3).

`device` has the queues, `port` what a program on the host sees of one port, `control` the messages
about ports and `config` the configuration space.
"""
