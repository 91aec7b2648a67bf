# SPDX-License-Identifier: Apache-2.0
"""Lessons: the runnable parts, exercises and checks of the chapters in `docs/learn`.

`chapter` describes a chapter and finds all of them: each is a package `chapter_NN` with

* `__init__`: its description, `CHAPTER`, and as docstring the text that `pyvmm learn N` prints;
* `run`: the runnable part, a function `run(stage: Stage)` that `run_process` calls (`stage`);
* `exercise`: a driver, device or monitor with a planted bug, which students copy and mend;
* `solution`: the same without the bug;
* `check`: a function `check(exercise)` that raises `CheckFailed` (`checking`) with an explanation.

`file_check` runs a check on a student's file in a process of its own, `check_process`. `completed`
remembers the chapters whose check has passed.

Exercises and checks use `devices.testing`, so that all but the first chapter's need no KVM.
"""
