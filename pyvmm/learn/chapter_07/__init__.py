# SPDX-License-Identifier: Apache-2.0
"""A descriptor can refer to a table of descriptors elsewhere in memory. Then a buffer of many
pieces takes one descriptor of the queue.

A driver sends one buffer of three pieces twice: as a chain of the queue's own descriptors, then
through a table. Below are the descriptors that the device walks, and each buffer as it sees it.
`table_gpa` is the address of the table that a descriptor is in, 0 for the queue's own.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=7,
    slug="indirect-descriptors",
    title="Indirect descriptors",
    goal="Send a buffer of many pieces through one descriptor of the queue.",
    minutes=20,
    run_needs="nothing",
    view="queues/recorder/requestq",
)
