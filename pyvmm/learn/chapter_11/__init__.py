# SPDX-License-Identifier: Apache-2.0
"""Hints name pages that a copy may leave out; reports name pages that the host may free.

A Linux guest boots with both features. The host asks for hints as a migration does, and holds
them for a moment. Meanwhile the guest reports its free memory of its own accord. Below is what
the host knows after each, and the resident memory of the monitor.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=11,
    slug="hints-and-reports",
    title="Hints and reports",
    goal="Say which free page a host may skip, and which it may discard.",
    minutes=20,
    run_needs="guest",
    view="memory",
)
