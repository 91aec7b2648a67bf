# SPDX-License-Identifier: Apache-2.0
"""Build the standard guest image: a Linux kernel with our patches, and an initramfs.

`recipe` lists the inputs, `kernel` and `initramfs` build the two halves, `build` caches the result
and `manifest` describes it. Needs the leaves and root modules of pyvmm only.
"""
