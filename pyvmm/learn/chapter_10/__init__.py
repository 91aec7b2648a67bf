# SPDX-License-Identifier: Apache-2.0
"""The host asks the guest for its unused pages. The driver has offered an empty buffer for the
question; it responds on the same queue.

A Linux guest boots with the driver for bitmaps, and the host asks twice: before and after a
program in the guest has filled 64 MiB of memory. Below are the pages of each response and the
buffers of the queue. The question is a used buffer with a length of 16 bytes, 0x10; responses are
chains of readable bytes.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=10,
    slug="misc-queue",
    title="The misc queue",
    goal="Let a device ask its driver, and match responses with requests.",
    minutes=20,
    run_needs="guest",
    view="queues/balloon/queue 3",
)
