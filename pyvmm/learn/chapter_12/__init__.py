# SPDX-License-Identifier: Apache-2.0
"""A migration copies the memory of a guest that runs. The dirty log names the pages that the guest
has written to meanwhile, and the next round copies those.

A Linux guest boots, and one of its programs writes to the same 4 MiB all the time. Below are the
rounds of the loop that the text describes, on KVM's dirty log: first with all pages, then without
those that the guest does not use.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=12,
    slug="dirty-logging-and-migration",
    title="Dirty logging and migration",
    goal="Copy the memory of a running guest without losing a write.",
    minutes=20,
    run_needs="guest",
    view="memory",
)
