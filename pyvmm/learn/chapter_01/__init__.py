# SPDX-License-Identifier: Apache-2.0
"""A guest runs on the processor itself until it does something that only the monitor can do. Then
the processor leaves the guest: a trap, in KVM's words an exit. The monitor reads the reason, does
what the hardware would have done, and lets the guest run on.

The guest of this chapter is 34 bytes of machine code. It asks a serial port, before each character,
whether the port can take one, and prints a greeting. Below is each exit, then the greeting.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=1,
    slug="traps",
    title="What is a trap?",
    goal="Write the loop that serves the exits of a guest.",
    minutes=20,
    run_needs="kvm",
    check_needs_kvm=True,
    view="timeline",
)
