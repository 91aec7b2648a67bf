# SPDX-License-Identifier: Apache-2.0
"""The entropy device: virtio-rng (VIRTIO 1.2, section 5.4)."""
