# SPDX-License-Identifier: Apache-2.0
"""The public test kit for device models: board, RAM, driver and recorders; needs no KVM."""
