# SPDX-License-Identifier: Apache-2.0
"""The contenders of the benchmarks of events: the tracers that a machine has, and who watches."""

NO_BUFFER, UNWATCHED, RECORDED, WATCHED = "without events", "not watched", "recorded", "watched"
"""A tracer that can keep no events, and three times one that can."""
