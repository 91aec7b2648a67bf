# SPDX-License-Identifier: Apache-2.0
"""An array names each page by 32 bits, and Linux sends 256 of them in a request. The protocol of
2016 names each page by one bit.

The same Linux guest boots twice, with the driver of the standard and with that for bitmaps, and
puts 64 MiB in its balloon. Below are the requests that each of them needed; the recording has the
second guest.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=9,
    slug="bitmaps",
    title="Bitmaps",
    goal="Read and write a request of the bitmap protocol by hand.",
    minutes=20,
    run_needs="guest",
    view="queues/balloon/inflate",
)
