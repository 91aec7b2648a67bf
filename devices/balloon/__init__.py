# SPDX-License-Identifier: Apache-2.0
"""The virtio memory balloon (VIRTIO 1.2, 5.5), in the standard and the bitmap dialect.

`device` is the model, `dialects` says which queues and payload formats a dialect has, and each
queue has a handler in a module of its own.
"""
