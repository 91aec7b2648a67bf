# SPDX-License-Identifier: Apache-2.0
"""The lab: a QEMU machine that emulates hardware with KVM, for hosts whose own is missing or unfit.

`run.run_in_lab` runs one command in it as if it ran on the host: same files, directory,
environment, terminal, signals and exit status. `choose.choose_kvm` decides whether that is needed.
Only `pyvmm.cli` knows this package; code that runs in the lab uses `pyvmm.sockets.lab_paths`.

- The machine: `qemu`, `kernel` and `initramfs` (what it boots), `boot_snapshot` and `start`.
- The host's side: `session`, `stdio`, `forwarding` and `outbound_connector`.
- The link: `mux`, `frame_link` and `frames`.
- The lab's side: `agent` (its init process), `mounts`, `preload`, `proxy` and
  `pinned_static_keys`.
"""
