# SPDX-License-Identifier: Apache-2.0
"""Driver and device exchange buffers through a split virtqueue: three tables in the guest's memory.
The descriptor table says where buffers are, the available ring which of them the driver offers, the
used ring which of them the device returns.

A Linux guest with a virtio-rng device boots now, and reads random bytes. Below is where its queue
lies, and then each descriptor that the device walks, each buffer that it takes, and its return.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=4,
    slug="split-rings",
    title="Split virtqueues",
    goal="Send buffers through a virtqueue, and take them back.",
    minutes=25,
    run_needs="guest",
    view="queues/rng/request",
)
