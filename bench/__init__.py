# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: how long things take here, beside what a person would use instead.

A benchmark is a module with a function `measure(plan) -> list[Case]` and a row in
`bench.catalogue`. A `Case` is one thing measured for several contenders, once in every round; the
contenders of a round take turns, so that what slows the machine down for a while slows all of them
(`bench.measure`). What counts is the ratio of two medians of one run; seconds of different runs,
or of different machines, are not comparable. Benchmarks assert that what they measure happened
(the memory is gone, the guest has its pages back), never how long it took.

`pyvmm bench` runs them (`bench.cli`), keeps what they found as JSON with the machine described
(`bench.results`), and makes tables and plots of it (`bench.report`, `bench.plots`). The limits of
the machine come from the C programs in `bench/c`, compiled on the spot (`bench.native`).
"""
