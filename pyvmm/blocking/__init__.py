# SPDX-License-Identifier: Apache-2.0
"""Calls that may block without limit, such as name look-up (a leaf): nothing waits for their end.

A system call on a dead file system or a look-up at a slow name server cannot be interrupted, and
`concurrent.futures` makes the interpreter wait for its threads. So such calls are made in daemon
threads, which end with the process: `deadline` for code that waits itself, `in_thread` for
coroutines.
"""
