# SPDX-License-Identifier: Apache-2.0
"""The lab: a machine with a correct KVM, emulated where the host's own is missing or unfit.

`run.run_in_lab` runs one command in it as if it ran here: same files, directory, environment,
terminal, signals and exit status; `choose.choose_kvm` says when that is needed. From the outside
in: `qemu` (the emulated machine), `kernel` and `initramfs` (what it boots), `snapshot` with `start`
(so that it boots once), `session` with `stdio` and `dialling` (this side of the link), `mux` and
`frames` (the link), `agent` with `mounts`, `warm` and `outward` (the inner side), `places` and
`outside` (what a command in the lab has to know, and how it reaches what is not in it).
"""
