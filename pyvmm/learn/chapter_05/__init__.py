# SPDX-License-Identifier: Apache-2.0
"""A driver that has made buffers available notifies the device, by a write to a register. A device
that has returned buffers notifies the driver, by an interrupt. Each side can say that it needs no
notification for now.

A Linux guest with a virtio-rng device boots now, and reads random bytes. Below are the MSI-X
vectors that its driver assigns, and then each notification, in both directions.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=5,
    slug="notifications",
    title="Notifications and interrupts",
    goal="Suppress interrupts without losing one.",
    minutes=25,
    run_needs="guest",
    view="timeline",
)
