# SPDX-License-Identifier: Apache-2.0
"""Events of the machine: the tracers to which devices report, the log, and recordings.

`kinds` has all events, `tracer` the tracer that can be watched, `stream` what a reader sees.
`taker` is the thread that takes them: for `recorder`, which writes them to a file, and for `watch`,
from which a client reads them. The layout of a file is in `recording_format`; `recording` reads it,
and `export` writes it in the formats of other programs.
"""
