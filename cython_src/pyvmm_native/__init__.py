# SPDX-License-Identifier: Apache-2.0
"""Hot paths in Cython: page runs, guest memory, virtqueues, discards, the KVM_RUN loop.

Code belongs here when a profile of a booting, ballooning or migrating guest says so, and knows
neither devices nor machines. Page frames are of 4 KiB everywhere, as in the balloon's interface
(VIRTIO 1.2, 5.5.6) and on x86; the host's pages may be larger.
"""

PAGE_BYTES = 4096
