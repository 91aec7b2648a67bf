# SPDX-License-Identifier: Apache-2.0
"""With the feature EVENT_IDX each side says exactly which event it needs a notification of: the
driver writes to `used_event` the index of the used ring that it waits for, the device to
`avail_event` that of the available ring.

A Linux guest boots now, and its balloon takes 128 MiB. Below are the notifications that its driver
and the device send or save, each with the index that decided.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=6,
    slug="event-index",
    title="EVENT_IDX",
    goal="Decide from three indices whether to notify.",
    minutes=20,
    run_needs="guest",
    view="queues/balloon/inflate",
)
