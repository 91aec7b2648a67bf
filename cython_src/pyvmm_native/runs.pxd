# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from pyvmm_native.run_list cimport RunList


cdef class PageRuns:
    # Ascending, disjoint, never adjacent, never empty; not changed once the object exists.
    cdef RunList list
    cdef readonly uint64_t pages
    cdef readonly uint64_t largest

    cdef PageRuns _finish(self, bint complete)
