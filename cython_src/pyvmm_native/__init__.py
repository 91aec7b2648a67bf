# SPDX-License-Identifier: Apache-2.0
"""Hot paths in Cython: page runs, guest memory, virtqueues, discards, the KVM_RUN loop.

Code belongs here if a profile of a booting, ballooning or migrating guest shows it; it knows
neither devices nor machines. A page frame is 4 KiB everywhere, as on x86 and in the balloon's
interface (VIRTIO 1.2, 5.5.6); the host's pages may be larger.
"""

PAGE_BYTES = 4096
