# SPDX-License-Identifier: Apache-2.0
"""The traditional memory balloon (VIRTIO 1.2, section 5.5), in four dialects.

`device` is the device, `config` its configuration space, `features` its feature bits and `dialects`
the protocols; `bitmap` and `records` decode three of them, `messages` is their common interface.
Each queue has a handler (`queue_handler`): `page_queues`, `stats` with `stat_tags`, `misc`,
`hinting` and `reporting`. Nothing here knows of KVM, threads or the event loop; the host's side is
`pyvmm.balloon`.
"""
