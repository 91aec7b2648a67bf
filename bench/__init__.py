# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: pyvmm beside QEMU and beside the limits of the machine.

A benchmark is a module with a function `measure(plan) -> list[Case]` and a row in
`bench.catalogue`. A `Case` is one measurement of several contenders, once in every round; the
contenders of a round take turns, so that a slow phase of the machine slows all of them
(`bench.measure`). The result is the ratio of two medians of one run; seconds of different runs,
or of different machines, are not comparable. Benchmarks assert that the work was done (the memory
is gone, the guest has its pages back), never how long it took.

`pyvmm bench` runs them (`bench.cli`), stores the results as JSON with a description of the machine
(`bench.results`), and makes tables and plots of them (`bench.report`, `bench.plots`).
`bench.targets` has the ratios to reach. The limits of the machine come from the C programs in
`bench/c`, compiled when they are first needed (`bench.native`).
"""
