# SPDX-License-Identifier: Apache-2.0
"""The balloon's driver allocates pages in the guest and names them to the device, which frees the
memory behind them on the host. In the standard protocol a request is an array of page frame
numbers.

A Linux guest boots with the standard driver. The host requests a balloon of 64 MiB, then one of
32 MiB. Below are the target, each request with the pages that it named, and the size that the
driver reports.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=8,
    slug="pfn-arrays",
    title="Page frame number arrays",
    goal="Follow an inflate from the target to the freed page, in 4 KiB units.",
    minutes=20,
    run_needs="guest",
    view="memory",
)
