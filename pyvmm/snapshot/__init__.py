# SPDX-License-Identifier: Apache-2.0
"""Snapshots: save a running guest to a file, and restore a guest from one.

`saver` takes one: `copier` copies memory to the file that `writer` writes. `reader` opens one and
`restore` makes a machine from it, whose memory `userfaultfd_loader` loads as it is touched. The
layout of the file is in `format`, its account of pages in `report`; what is saved besides memory is
in `pyvmm.state`.
"""
